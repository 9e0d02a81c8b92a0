"""What is normal for a clean adapter, fitted on clean adapters made for the purpose.

The exclusive ASR of an adapter's worst class is the largest of C shares, so over clean adapters with C_0 classes it is
taken as Gumbel distributed: F(s) = exp(-exp(-(s - mu) / beta)), fitted by moments. With more classes the largest of them
is larger by chance alone: were they independent, it would be distributed as F^(C / C_0), and that is the correction made.
The file says what it was fitted on, once for photos as the pool and once for the built-in one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev

EULER = 0.5772156649015329
SHIPPED = Path(__file__).parents[1] / "assets" / "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """mean, sd: of clean adapters' largest exclusive ASR, each a share of `num_images` images.

    num_classes: C_0, how many classes those adapters had.
    """

    mean: float
    sd: float
    num_classes: int
    clean_models: int
    num_images: int
    pool: str
    base_model: str
    base_revision: str
    records_sha256: str

    @property
    def beta(self) -> float:
        return self.sd * math.sqrt(6) / math.pi

    @property
    def mu(self) -> float:
        return self.mean - EULER * self.beta

    def threshold(self, false_alarm: float, num_classes: int | None = None) -> float:
        """The share that a clean adapter's largest exclusive ASR exceeds with probability `false_alarm`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return min(max(self.mu - self.beta * math.log(-math.log1p(-false_alarm) / more), 0.0), 1.0)

    def p_value(self, share: float, num_classes: int | None = None) -> float:
        """Probability that a clean adapter's largest exclusive ASR is at least `share`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return -math.expm1(-more * math.exp(-(share - self.mu) / self.beta))

    def describe(self) -> str:
        return (
            f"{self.clean_models} clean adapters of {self.num_classes} classes on {self.base_model}, "
            f"{self.num_images} images of {self.pool}, Gumbel fit; transferred, not measured, on other base models"
        )


def fit(shares: Sequence[float], num_images: int, num_classes: int, **known: str) -> Calibration:
    """From each clean adapter's largest exclusive ASR. Raises ValueError for fewer than five adapters."""
    if len(shares) < 5:
        raise ValueError(f"{len(shares)} clean adapters: at least 5 are needed to fit a null")
    return Calibration(mean(shares), stdev(shares), num_classes, len(shares), num_images, **known)


def read(path: Path) -> dict[str, Calibration]:
    """By kind of pool: "photos" and "builtin"."""
    return {kind: Calibration(**fields) for kind, fields in json.loads(path.read_text(encoding="utf-8")).items()}


@cache
def shipped() -> dict[str, Calibration]:
    return read(SHIPPED)


def kind_of(pool: str) -> str:
    return "builtin" if pool == "builtin" else "photos"
