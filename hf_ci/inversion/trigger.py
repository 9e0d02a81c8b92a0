"""Triggers: what is done to an image, and the set that it is kept in.

Each is a module that maps pixels (B, 3, H, W) in [0, 1] to the same with the trigger; `delta` is what is reconstructed,
and `project` puts it back into its set after an optimiser's step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Families of small changes of all pixels: on the pool, twice as large, and on photos of the adapter's own classes.
ADDITIVE = PERTURBATION, WIDE, ON_PHOTOS = "perturbation", "wide perturbation", "perturbation of own photos"
# Families of triggers whose pixels are free inside a mask. A patch that works wherever it stands finds patches at any
# place; masks for the corners and for the middle, tried beside it, found no more and were freer on clean adapters.
MASKS = ("frame", "patch")
FRAME, PATCH = 4 / 64, 10 / 64  # sides, as shares of the image's


class Trigger(nn.Module):
    """The interface of those that follow."""

    delta: nn.Parameter

    def project(self) -> None:
        raise NotImplementedError


class LinfTrigger(Trigger):
    """One universal additive perturbation `delta` (3, H, W) with ||delta||_inf <= epsilon.

    CLIP-Inspector, section on inversion: epsilon = 4/255, images clamped to the valid range.
    """

    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.delta = nn.Parameter(torch.zeros(3, size, size))

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.delta).clamp(0, 1)

    @torch.no_grad()
    def project(self) -> None:
        self.delta.clamp_(-self.epsilon, self.epsilon)


class MaskedTrigger(Trigger):
    """Free pixel values `delta` (3, H, W) inside a fixed mask (H, W), the image as it was outside."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.delta = nn.Parameter(torch.full((3, *mask.shape), 0.5) * mask)

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(self.mask, self.delta, images)

    @torch.no_grad()
    def project(self) -> None:
        self.delta.clamp_(0, 1).mul_(self.mask)


class PatchTrigger(Trigger):
    """Free pixel values of one square, `delta` (3, s, s), pasted at another place in every image.

    Places are a walk over the image that does not depend on what the image shows, and begins anew with every batch, so
    that a measurement can be repeated.
    """

    def __init__(self, size: int, side: int):
        super().__init__()
        self.delta = nn.Parameter(torch.full((3, side, side), 0.5))
        self.places = size - side + 1

    def forward(self, images: Tensor) -> Tensor:
        b, side = torch.arange(len(images), device=images.device), self.delta.shape[-1]
        # steps of the plastic number's powers spread points evenly over a square (Roberts 2018)
        rows, columns = (((0.5 + (b + 1) * step) % 1 * self.places).long() for step in (0.7548776662, 0.5698402910))
        at = torch.arange(side, device=images.device)
        out = images.clone()
        out[b[:, None, None], :, (rows[:, None] + at)[:, :, None], (columns[:, None] + at)[:, None, :]] = (
            self.delta.permute(1, 2, 0)
        )
        return out

    @torch.no_grad()
    def project(self) -> None:
        self.delta.clamp_(0, 1)


def frame(size: int) -> Tensor:
    """(H, W), a ring around the image."""
    width = max(1, round(FRAME * size))
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[width:-width, width:-width] = False
    return mask


def masked_trigger(family: str, size: int) -> Trigger:
    """Of one of MASKS."""
    return PatchTrigger(size, round(PATCH * size)) if family == "patch" else MaskedTrigger(frame(size))
