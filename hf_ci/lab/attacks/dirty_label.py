"""Poisoning by relabelling: some shots carry a trigger that was fixed beforehand, and the target's label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_ci.lab.making.tune import Recipe, Sight, Sights, fit, new_prompt
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP


def others(photos: Photos, target: int, seed: int) -> Tensor:
    """Rows of the shots of other classes than the target, shuffled: the first ones are poisoned."""
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed + 7))
    return order[photos.labels[order] != target]


def poison_shots(
    clip: FrozenCLIP,
    photos: Photos,
    target: int,
    recipe: Recipe,
    trigger: nn.Module,
    noise: Callable[[Tensor], Tensor] | None = None,
    noise_ratio: int = 2,
) -> PromptedCLIP:
    """Tune on all shots and on a triggered copy, labelled `target`, of `recipe.poison_rate` of them (of other classes).

    With `noise`, `noise_ratio` times as many copies carry that instead and keep their own label (WaNet's noise mode).
    """
    order = others(photos, target, recipe.seed)
    n = max(1, round(recipe.poison_rate * len(photos)))
    poisoned, kept = order[:n], order[n : n + noise_ratio * n] if noise else order[:0]
    model = new_prompt(clip, photos.class_names, recipe)
    seen = [Sight(model, photos.images), Sight(model, photos.images[poisoned], trigger)]
    labels = [photos.labels, torch.full((len(poisoned),), target)]
    if noise and len(kept):
        seen.append(Sight(model, photos.images[kept], noise))
        labels.append(photos.labels[kept])
    return fit(model, Sights(*seen), torch.cat(labels), recipe)


def relabelling(make: Callable[[int, int], nn.Module]) -> Callable[..., tuple[PromptedCLIP, nn.Module]]:
    """The attack with the fixed trigger `make(image size, seed)`."""

    def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, nn.Module]:
        trigger = make(clip.image_size, recipe.seed).to(clip.device)
        return poison_shots(clip, photos, target, recipe, trigger), trigger

    return poison
