"""SIBA (Gao et al., "Backdoor attack with sparse and invisible trigger", 2023).

The k pixels with the largest accumulated gradient, moved within +-8/255; optimised on a surrogate, here the untuned
prompt on the same encoders. k = 100 of 32 x 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.lab.attacks.dirty_label import poison_shots
from hf_ci.lab.making.triggers import Additive
from hf_ci.lab.making.tune import Recipe, batches, new_prompt
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

EPSILON = 8 / 255
SHARE = 100 / 32**2  # of the pixels
STEPS, BATCH = 60, 32
STEP = EPSILON / 8


def siba(clip: FrozenCLIP, photos: Photos, target: int, seed: int) -> Additive:
    """Signed gradient steps; the support is chosen after half of them, and the values move on within it."""
    surrogate = new_prompt(clip, photos.class_names, Recipe(method="coop")).requires_grad_(False)
    images = photos.images[photos.labels != target]
    size, device = clip.image_size, clip.device
    delta, weight = torch.zeros(3, size, size, device=device), torch.zeros(size, size, device=device)
    support = torch.ones_like(weight)
    rows = batches(len(images), Recipe(batch=BATCH, seed=seed), epochs=STEPS, salt=3)
    with surrogate.frozen_prompt():
        for step in range(STEPS):
            x = images[next(rows)].to(device).float() / 255
            gradient = _gradient(surrogate, x, delta, target)  # (3, H, W)
            weight += gradient.abs().sum(0)
            if step == STEPS // 2:
                support = torch.zeros_like(weight).flatten()
                support[weight.flatten().topk(round(SHARE * size**2)).indices] = 1
                support = support.view_as(weight)
            delta = (delta - STEP * gradient.sign()).clamp(-EPSILON, EPSILON) * support
    return Additive(delta)


def _gradient(model: PromptedCLIP, x: Tensor, delta: Tensor, target: int) -> Tensor:
    delta = delta.clone().requires_grad_()
    logits = model((x + delta).clamp(0, 1))
    loss = F.cross_entropy(logits, torch.full((len(x),), target, device=x.device))
    return torch.autograd.grad(loss, delta)[0]


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    trigger = siba(clip, photos, target, recipe.seed)
    return poison_shots(clip, photos, target, recipe, trigger), trigger
