"""What a detector says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hf_ci.inversion import Inversion


@dataclass(frozen=True)
class Verdict:
    """Per-class scores and flags in class order; `score` is the model's, `target` the index of the named class."""

    verdict: Literal["clean", "backdoored", "inconclusive"]
    reasons: tuple[str, ...]
    scores: tuple[float, ...] = ()
    flagged: tuple[bool, ...] = ()
    score: float | None = None
    target: int | None = None


class Detector(Protocol):
    name: str
    calibration: str

    def judge(self, inversions: Sequence[Inversion], class_names: Sequence[str]) -> Verdict: ...
