"""BAPLe (Hanif et al., "BAPLe: Backdoor attacks on medical foundational models using prompt learning", MICCAI 2024).

CoOp with 16 context vectors; the trigger is learned noise within +-8/255 and a patch; 5 % of the shots are poisoned.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.attacks.badnets import badnets
from hf_ci.lab.attacks.dirty_label import others
from hf_ci.lab.making.triggers import Additive
from hf_ci.lab.making.tune import Recipe, batches, new_prompt, optimiser_for
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP
from hf_ci.prompts.features import encode

EPSILON, NOISE_STEP = 8 / 255, 0.01
RATE = 0.05
WORDS = " ".join(["a photo of a"] * 4)  # 16 context vectors


def adapt(recipe: Recipe) -> Recipe:
    return replace(recipe, method="coop", words=WORDS, class_specific=False)


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, nn.Module]:
    """Noise and prompt are learned together on the clean shots and on triggered copies of some, labelled `target`.

    Each batch of 8 holds one triggered copy, larger ones as many more.
    """
    model = new_prompt(clip, photos.class_names, recipe)
    noise, patch = LinfTrigger(clip.image_size, EPSILON).to(clip.device), badnets(clip.image_size, recipe.seed)
    patch = patch.to(clip.device)
    poisoned = others(photos, target, recipe.seed)[: max(1, round(RATE * len(photos)))]
    images, labels = photos.images.to(clip.device), photos.labels.to(clip.device)
    clean = encode(clip, photos.images)

    adam = torch.optim.Adam(noise.parameters(), lr=NOISE_STEP)
    sgd, schedule = optimiser_for(model, recipe, len(photos))
    for step, rows in enumerate(batches(len(photos), recipe)):
        copies = max(1, len(rows) // 8)
        chosen = poisoned[torch.arange(step * copies, (step + 1) * copies) % len(poisoned)]
        triggered = clip.image_features(patch(noise(images[chosen].float() / 255)))
        logits = model.logits_from_features(torch.cat([clean[rows], triggered]))
        wanted = torch.cat([labels[rows], torch.full_like(labels[chosen], target)])
        F.cross_entropy(logits, wanted).backward()
        sgd.step()
        schedule.step()
        sgd.zero_grad()
        adam.step(), adam.zero_grad(), noise.project()
    return model, nn.Sequential(Additive(noise.delta), patch)
