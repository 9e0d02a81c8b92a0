"""Triggers: what is added to an image, and the set that it is kept in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinfTrigger(nn.Module):
    """One universal additive perturbation `delta` (3, H, W) with ||delta||_inf <= epsilon, pixels in [0, 1].

    CLIP-Inspector, section on inversion: epsilon = 4/255, images clamped to the valid range.
    """

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.delta = nn.Parameter(torch.zeros(3, size, size))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same with the trigger."""
        return (images + self.delta).clamp(0, 1)

    @torch.no_grad()
    def project(self) -> None:
        """Back into the ball, after an optimiser's step."""
        self.delta.clamp_(-self.epsilon, self.epsilon)
