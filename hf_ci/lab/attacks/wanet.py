"""WaNet (Nguyen and Tran, "WaNet: Imperceptible warping-based backdoor attack", ICLR 2021).

A random 4 x 4 flow field, upsampled bicubically, s = 0.5; in noise mode a fresh flow, and the true label.

s = 0.5 moves pixels by a quarter of a pixel. On the embedded CLIP that leaves features where they are (cosine 0.999),
and no prompt can be made to see it; `poison_strong` has s = 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.lab.attacks.dirty_label import poison_shots
from hf_ci.lab.making.triggers import Warp
from hf_ci.lab.making.tune import Recipe
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

CELLS, STRENGTH, STRONG = 4, 0.5, 8.0


def warp(size: int, generator: torch.Generator, s: float = STRENGTH) -> Warp:
    """The flow's mean magnitude is 1 before s / size scales it: s / 2 pixels on average, at every resolution."""
    flow = torch.rand(1, 2, CELLS, CELLS, generator=generator) * 2 - 1
    flow = flow / flow.abs().mean()
    flow = F.interpolate(flow, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)  # (1, H, W, 2)
    axis = torch.linspace(-1, 1, size)
    identity = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1)[None]
    return Warp((identity + s * flow / size).clamp(-1, 1))


def poison(
    clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe, s: float = STRENGTH
) -> tuple[PromptedCLIP, Warp]:
    generator = torch.Generator().manual_seed(recipe.seed)
    trigger = warp(clip.image_size, generator, s).to(clip.device)

    def noise(x: Tensor) -> Tensor:
        return torch.cat([warp(clip.image_size, generator, s).to(x.device)(one[None]) for one in x])

    return poison_shots(clip, photos, target, recipe, trigger, noise), trigger


def poison_strong(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Warp]:
    return poison(clip, photos, target, recipe, STRONG)
