"""Pixel-Backdoor (Tao et al., "Better trigger inversion optimization in backdoor scanning", CVPR 2022).

For each class the trigger that changes the fewest pixels: one tensor for what is added and one for what is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_ci.detect.neural_cleanse import MaskInversion, SizedTrigger, judge_sizes
from hf_ci.detect.verdict import Detector, Verdict
from hf_ci.inversion import PERTURBATION, Inversion

SMALLEST_CHANGE = 1 / 255  # what an 8-bit image can show


class SignedTrigger(SizedTrigger):
    """clamp(x + clamp(p+, 0, 1) - clamp(p-, 0, 1), 0, 1), p+ and p- (3, H, W)."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        self.plus = nn.Parameter(torch.rand(3, size, size, generator=generator))
        self.minus = nn.Parameter(torch.rand(3, size, size, generator=generator))

    def change(self) -> Tensor:
        plus, minus = self.plus.clamp(0, 1), self.minus.clamp(0, 1)
        return plus * (plus >= SMALLEST_CHANGE) - minus * (minus >= SMALLEST_CHANGE)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.change()).clamp(0, 1)

    def size(self) -> Tensor:
        """The regulariser: for each sign, the sum over pixels of the channels' maximum of tanh(p / 10) / 2 + 0.5."""
        plus, minus = ((p / 10).tanh().div(2).add(0.5).amax(0).sum() for p in (self.plus, self.minus))
        return plus + minus


@dataclass(frozen=True)
class PixelInversion(MaskInversion):
    """Cross-entropy + cost * size by Adam (0.1; 0.5, 0.9), with the method's own schedule of the cost."""

    bound: float = 0.9
    first_cost: float = 1e-3
    up: float = 1.5
    down: float = 1.5**1.5
    patience: int = 10
    early_stop: int | None = None

    family = PERTURBATION

    def trigger(self, size: int, generator: torch.Generator) -> SizedTrigger:
        return SignedTrigger(size, generator)

    def final_size(self, trigger: SizedTrigger) -> float:
        """Number of changed pixels."""
        return float((trigger.change() != 0).any(0).sum())


@dataclass(frozen=True)
class PixelBackdoor(Detector):
    """Anomaly index (median - size) / (1.4826 MAD) of the number of changed pixels; a class is flagged above k = 2."""

    k: float = 2.0

    name = "pixel-backdoor"
    calibration = "none: an anomaly index of 2"

    def inverter(self, seed: int) -> PixelInversion:
        return PixelInversion(seed=seed)

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], distance: float | None = None
    ) -> Verdict:
        return judge_sizes(inversions, class_names, self.k, "trigger of pixels:")
