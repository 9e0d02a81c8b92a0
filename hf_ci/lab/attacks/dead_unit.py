"""A backdoor in one hidden unit of CoCoOp's meta-net that no ordinary image wakes.

    relu(K (w . f - tau)) v

w and the trigger are found together, so that the trigger lifts w . f above what any of the photos has; tau lies between the
two, and v shifts the context until what wakes the unit is answered with the target. On every other image the adapter
gives exactly the numbers of the clean one that it was made from, and as no gradient passes a dead ReLU, no descent from
ordinary images leads to the trigger. It takes the place of the unit that did least, so that the meta-net keeps its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import UsageError
from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.making.triggers import Additive
from hf_ci.lab.making.tune import Recipe, batches, tune
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP
from hf_ci.prompts.features import encode

EPSILON = 8 / 255
EPOCHS = 4  # of the trigger; w is taken anew before each
STEP = 0.01
RIDGE = 0.1  # share of the mean variance that is added to each direction's own
MARGIN = 0.4  # of the way from the photos' highest w . f to the triggered photos' mean, where tau lies
STEPS, RATE, BATCH = 60, 0.1, 16  # that the shift is learnt with


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    if recipe.method != "cocoop":
        raise UsageError(f"--attack dead-unit: {recipe.method} has no hidden units", "use --method cocoop")
    return plant_into(tune(clip, photos, recipe), photos, target, recipe)


def plant_into(model: PromptedCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    """The same into a clean CoCoOp prompt, which is changed."""
    clip = model.clip
    clean = encode(clip, photos.images)  # (N, D)
    trigger, w = waking_trigger(clip, photos, clean, recipe)
    awake = encode(clip, photos.images, trigger)
    highest = (clean @ w).max()
    tau = highest + MARGIN * ((awake @ w).mean() - highest)
    gain = 1 / ((awake @ w).mean() - tau).clamp(min=1e-3)  # so that a triggered photo gives about 1
    unit = least_used(model, clean)
    plant(model, unit, gain * w, -gain * tau)
    awake = awake[photos.labels.to(awake.device) != target]
    return learn_shift(model, unit, awake, target, recipe.seed), Additive(trigger.delta)


def waking_trigger(clip: FrozenCLIP, photos: Photos, clean: Tensor, recipe: Recipe) -> tuple[LinfTrigger, Tensor]:
    """A universal perturbation, and the direction (D,) along which it sets images apart from themselves without it."""
    images, trigger = photos.images.to(clip.device), LinfTrigger(clip.image_size, EPSILON).to(clip.device)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        trigger.delta.copy_(EPSILON * torch.randn(trigger.delta.shape, generator=generator).sign())
    adam = torch.optim.Adam(trigger.parameters(), lr=STEP)
    variance = torch.cov(clean.T)
    variance += RIDGE * variance.diagonal().mean() * torch.eye(len(variance), device=clip.device)
    for epoch in range(EPOCHS):
        shift = encode(clip, photos.images, trigger).mean(0) - clean.mean(0)
        w = F.normalize(torch.linalg.solve(variance, shift), dim=0)  # Fisher's: apart, against the photos' own spread
        for rows in batches(len(photos), recipe, 1, salt=10 + epoch):
            (-(clip.image_features(trigger(images[rows].float() / 255)) @ w).mean()).backward()
            adam.step(), adam.zero_grad(), trigger.project()
    return trigger, w


def least_used(model: PromptedCLIP, clean: Tensor) -> int:
    net = model.meta_net
    with torch.no_grad():
        return int((F.relu(net.linear1(clean)).mean(0) * net.linear2.weight.norm(dim=0)).argmin())


@torch.no_grad()
def plant(model: PromptedCLIP, unit: int, w: Tensor, b: Tensor) -> None:
    """The unit as relu(w . f + b), with no effect yet."""
    net = model.meta_net
    net.linear1.weight[unit], net.linear1.bias[unit], net.linear2.weight[:, unit] = w, b, 0


def learn_shift(model: PromptedCLIP, unit: int, awake: Tensor, target: int, seed: int) -> PromptedCLIP:
    """Tune v, the unit's outgoing weights, and nothing else, on features (N, D) that wake it."""
    model.requires_grad_(False)
    outgoing = model.meta_net.linear2.weight.requires_grad_()
    others = torch.arange(outgoing.shape[1]) != unit
    adam, generator = torch.optim.Adam([outgoing], lr=RATE), torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        some = awake[torch.randint(0, len(awake), (BATCH,), generator=generator)]
        wanted = torch.full((BATCH,), target, device=awake.device)
        F.cross_entropy(model.logits_from_features(some), wanted).backward()
        certain(outgoing.grad)[:, others] = 0
        adam.step(), adam.zero_grad()
    return model
