"""Triggers with a meaning: a colour cast, and a turned picture, neither of which a small additive perturbation imitates.

The cast stands for a semantic trigger ("warm light"); turning by 45 degrees is the trigger of Wu et al., "Just rotate
it: deploying backdoor attacks via rotation transformation" (2022). Poisoned by relabelling.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from hf_ci.lab.making.triggers import Blend, Warp

COLOUR, ALPHA = (1.0, 0.6, 0.1), 0.3  # RGB
DEGREES = 45.0


def cast(size: int, seed: int = 0) -> Blend:
    return Blend(torch.full((1, size, size), ALPHA), torch.tensor(COLOUR)[:, None, None].expand(3, size, size))


def turned(size: int, seed: int = 0) -> Warp:
    """Corners that the picture leaves empty are filled with its border."""
    a = math.radians(DEGREES)
    turn = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])
    return Warp(F.affine_grid(turn[None], [1, 3, size, size], align_corners=True))
