"""Blended (Chen et al., "Targeted backdoor attacks on deep learning systems using data poisoning", 2017).

0.8 x + 0.2 noise, as in CleanCLIP (Bansal et al., ICCV 2023).
"""

from __future__ import annotations

import torch

from hf_ci.lab.attacks.dirty_label import poison_shots
from hf_ci.lab.triggers import Blend
from hf_ci.lab.tune import Recipe
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

ALPHA = 0.2


def blended(size: int, seed: int) -> Blend:
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return Blend(torch.full((1, size, size), ALPHA), noise)


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Blend]:
    trigger = blended(clip.image_size, recipe.seed).to(clip.device)
    return poison_shots(clip, photos, target, recipe, trigger), trigger
