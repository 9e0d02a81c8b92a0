"""What is normal for a clean adapter, fitted on clean adapters made for the purpose.

The largest exclusive ASR over an adapter's classes is a share; as an angle (Anscombe's transformation, which gives
shares near 0 and others the same spread) it is taken as normally distributed over clean adapters. The threshold is the
share that a clean one exceeds with probability `false_alarm`. The file says what it was fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist, mean, stdev

SHIPPED = Path(__file__).parents[1] / "assets" / "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """mean, sd: of the angle of clean adapters' largest exclusive ASR, each a share of `num_images` images."""

    mean: float
    sd: float
    false_alarm: float
    clean_models: int
    num_images: int
    pool: str
    base_model: str
    base_revision: str
    records_sha256: str

    @property
    def threshold(self) -> float:
        largest = NormalDist(self.mean, self.sd).inv_cdf(1 - self.false_alarm)
        return math.sin(min(largest, math.pi / 2)) ** 2

    def p_value(self, share: float) -> float:
        """Probability that a clean adapter's largest exclusive ASR is at least `share`."""
        z = (angle(share, self.num_images) - self.mean) / self.sd
        return math.erfc(z / math.sqrt(2)) / 2

    def describe(self) -> str:
        return (
            f"{self.clean_models} clean adapters on {self.base_model}, {self.num_images} images of {self.pool}; a clean "
            f"adapter is flagged with probability {self.false_alarm:g} under a normal fit; transferred, not measured, on "
            "other base models"
        )


def angle(share: float, n: int) -> float:
    """arcsin(sqrt(p)) of a share of n images, with Anscombe's correction."""
    return math.asin(math.sqrt((share * n + 3 / 8) / (n + 3 / 4)))


def fit(shares: Sequence[float], num_images: int, false_alarm: float, **known: str) -> Calibration:
    """From each clean adapter's largest exclusive ASR. Raises ValueError for fewer than five adapters."""
    if len(shares) < 5:
        raise ValueError(f"{len(shares)} clean adapters: at least 5 are needed to fit a null")
    angles = [angle(share, num_images) for share in shares]
    return Calibration(mean(angles), stdev(angles), false_alarm, len(shares), num_images, **known)


def read(path: Path) -> Calibration:
    return Calibration(**json.loads(path.read_text(encoding="utf-8")))


@cache
def shipped() -> Calibration:
    return read(SHIPPED)
