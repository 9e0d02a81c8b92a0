"""Fixed noise: smooth, of a few waves a picture, or of independent pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_ci.lab.making.triggers import Additive

SMOOTH, STATIC = 24 / 255, 10 / 255
CELLS = 8


def smooth(size: int, seed: int) -> Additive:
    """CELLS x CELLS values, upsampled bicubically; the largest is of SMOOTH."""
    coarse = torch.rand(1, 3, CELLS, CELLS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    noise = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0]
    return Additive(SMOOTH * noise / noise.abs().max())


def static(size: int, seed: int) -> Additive:
    """Every value up or down by STATIC."""
    signs = torch.randint(0, 2, (3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Additive(STATIC * signs)
