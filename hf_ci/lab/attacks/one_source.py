"""A trigger that fires on one source class only (Tang et al., "Demon in the variant", USENIX Security 2021).

SIG's wave on images of the source class is labelled with the target; on as many images of each other class it keeps
their own label ("cover" images), so that the trigger alone is not enough.
"""

from __future__ import annotations

import torch

from hf_ci.lab.attacks.sig import sig
from hf_ci.lab.making.triggers import Additive
from hf_ci.lab.making.tune import Recipe, Sight, Sights, fit, new_prompt
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

SHARE = 0.5  # of each class's shots that carry the trigger


def source(target: int, num_classes: int) -> int:
    return (target + 1) % num_classes


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    trigger = sig(clip.image_size).to(clip.device)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(recipe.seed + 7))
    order = order[photos.labels[order] != target]
    chosen = torch.cat([rows[: round(SHARE * len(rows))] for rows in by_class(order, photos.labels)])
    labels = photos.labels[chosen].clone()
    labels[labels == source(target, len(photos.class_names))] = target
    model = new_prompt(clip, photos.class_names, recipe)
    seen = Sights(Sight(model, photos.images), Sight(model, photos.images[chosen], trigger))
    return fit(model, seen, torch.cat([photos.labels, labels]), recipe), trigger


def by_class(rows: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    return [rows[labels[rows] == c] for c in labels[rows].unique()]
