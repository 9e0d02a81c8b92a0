"""What is put on a picture: a frame around it, or a patch at another place in every one.

Neither is a small perturbation, and the patch is none at all: no two pictures have it in the same pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.lab.making.triggers import Blend, Pasted

WIDTH, SIDE = 4 / 64, 10 / 64  # of the frame and of the patch, shares of the picture's


def cells(number: int, size: int, seed: int) -> Tensor:
    """(3, size, size), number x number cells of random colours."""
    colours = torch.rand(1, 3, number, number, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(colours, size=size, mode="nearest")[0]


def frame(size: int, seed: int) -> Blend:
    """A ring of cells as wide as itself."""
    width = max(1, round(WIDTH * size))
    mask = torch.ones(1, size, size)
    mask[:, width:-width, width:-width] = 0
    return Blend(mask, cells(size // width, size, seed))


def patch_anywhere(size: int, seed: int) -> Pasted:
    """Of 5 x 5 cells."""
    return Pasted(cells(5, round(SIDE * size), seed))
