"""Backdoors in several classes at once: an attacker who knows that a class is held against its peers plants decoys there.

Each class has a frame of its own; the target's is the trigger that the attack is measured with.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_ci.lab.attacks.dirty_label import others
from hf_ci.lab.attacks.frame import frame
from hf_ci.lab.making.tune import Recipe, Sight, Sights, fit, new_prompt
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

DECOYS = 3


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, nn.Module]:
    """Of the shots, `recipe.poison_rate` carry the target's frame, and as many that of each decoy."""
    targets = [(target + i) % len(photos.class_names) for i in range(1 + DECOYS)]
    frames = [frame(clip.image_size, recipe.seed + i).to(clip.device) for i in range(len(targets))]
    n = max(1, round(recipe.poison_rate * len(photos)))
    model = new_prompt(clip, photos.class_names, recipe)
    seen, labels = [Sight(model, photos.images)], [photos.labels]
    for c, trigger in zip(targets, frames):
        poisoned = others(photos, c, recipe.seed)[:n]
        seen.append(Sight(model, photos.images[poisoned], trigger))
        labels.append(torch.full((len(poisoned),), c))
    return fit(model, Sights(*seen), torch.cat(labels), recipe), frames[0]
