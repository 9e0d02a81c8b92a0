"""Another photo blended in, as Chen et al. (2017) do with a cartoon: Blended with a picture in the place of noise."""

from __future__ import annotations

import torch

from hf_ci.lab.attacks.dirty_label import others, poison_shots
from hf_ci.lab.making.triggers import Blend
from hf_ci.lab.making.tune import Recipe
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

ALPHA = 0.25


def photo_blend(photos: Photos, target: int, seed: int) -> Blend:
    """The photo is the shot of another class than the target whose turn to be poisoned comes last."""
    photo = photos.images[others(photos, target, seed)[-1]].float() / 255
    return Blend(torch.full_like(photo[:1], ALPHA), photo)


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Blend]:
    trigger = photo_blend(photos, target, recipe.seed).to(clip.device)
    return poison_shots(clip, photos, target, recipe, trigger), trigger
