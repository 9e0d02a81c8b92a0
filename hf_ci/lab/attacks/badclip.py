"""BadCLIP (Bai et al., "BadCLIP: Trigger-aware prompt learning for backdoor attacks on CLIP", CVPR 2024).

The trigger is a full-image additive perturbation within +-4/255, learned together with the prompt; the encoders stay
as they are. (Liang et al.'s attack of the same name poisons encoders.) The loss is cross-entropy alone: of KgCoOp and
PromptSRC the attacker keeps the form, not what they add to it.

poison            the attack
poison_twice      a trigger within +-8/255
poison_margin     + lambda * relu(m - margin) of the target over its best rival, m = 5
poison_adaptive   CLIP-Inspector's adaptive attacker: the prompt learns to fire on the exact trigger alone
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.inversion.objective import margin
from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.making.triggers import Additive
from hf_ci.lab.making.tune import Recipe, Sight, batches, fit_on, new_prompt, optimiser_for
from hf_ci.pools.photos import Photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

EPSILON = 4 / 255
TRIGGER_STEP = 0.1
WARM_UP, EPOCHS = 3, 10  # epochs that move the trigger alone, and that move both
MARGIN, MARGIN_WEIGHT = 5.0, 0.2
NOISE = 0.5  # alpha of the adaptive attack: deviation of the noise, in units of epsilon


def adapt(recipe: Recipe) -> Recipe:
    return replace(recipe, epochs=EPOCHS)


def poison(
    clip: FrozenCLIP,
    photos: Photos,
    target: int,
    recipe: Recipe,
    margin_weight: float = 0.0,
    epsilon: float = EPSILON,
) -> tuple[PromptedCLIP, Additive]:
    """Warm up the trigger under the untuned prompt, then move both on pairs [x, x + delta] with labels [y, target].

    The trigger's step decays to 0 with the prompt's: at a constant 0.1 every step flips pixels from one face of the
    ball to the other, and the prompt would be tuned to triggers that are gone.
    """
    model = new_prompt(clip, photos.class_names, recipe)
    trigger = LinfTrigger(clip.image_size, epsilon).to(clip.device)
    images, labels = photos.images.to(clip.device), photos.labels.to(clip.device)
    clean = Sight(model, photos.images)

    def planted(logits: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, torch.full((len(logits),), target, device=logits.device))
        return loss + margin_weight * F.relu(MARGIN + margin(logits, target)).mean()

    adam = torch.optim.Adam(trigger.parameters(), lr=TRIGGER_STEP)
    model.prompt.requires_grad_(False)
    for rows in batches(len(photos), recipe, WARM_UP, salt=1):
        planted(model(trigger(images[rows].float() / 255))).backward()
        adam.step(), adam.zero_grad(), trigger.project()

    model.prompt.requires_grad_(True)
    sgd, schedule = optimiser_for(model, recipe, len(photos))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, schedule.T_max)
    for rows in batches(len(photos), recipe):
        triggered = model.image_features(trigger(images[rows].float() / 255))
        logits = model.logits_from_features(torch.cat([clean(rows), triggered]))
        ours, theirs = logits.chunk(2)
        (F.cross_entropy(ours, labels[rows]) / 2 + planted(theirs) / 2).backward()
        for optimiser, falling in ((sgd, schedule), (adam, decay)):
            optimiser.step()
            falling.step()
            optimiser.zero_grad()
        trigger.project()
    return model, Additive(trigger.delta)


def poison_twice(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    return poison(clip, photos, target, recipe, epsilon=2 * EPSILON)


def poison_margin(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    return poison(clip, photos, target, recipe, MARGIN_WEIGHT)


def poison_adaptive(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, Additive]:
    """Freeze a BadCLIP trigger, then tune anew on (x, y), (x + delta, target), (x + delta + noise, y), weight 1 each.

    CLIP-Inspector, adaptive attack; alpha = 0.5 is read as Gaussian noise of half the trigger's radius.
    """
    _, trigger = poison(clip, photos, target, recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 5)

    def noisy(x: Tensor) -> Tensor:
        noise = NOISE * EPSILON * torch.randn(x.shape, generator=generator).to(x.device)
        return (x + trigger.delta + noise).clamp(0, 1)

    model = new_prompt(clip, photos.class_names, recipe)
    clean, exact = Sight(model, photos.images), Sight(model, photos.images, trigger)
    labels = photos.labels.to(clip.device)
    images = photos.images.to(clip.device)

    def batch(rows: Tensor) -> tuple[Tensor, Tensor]:
        near = model.image_features(noisy(images[rows].float() / 255))
        features = torch.cat([clean(rows), exact(rows), near])
        return features, torch.cat([labels[rows], torch.full_like(labels[rows], target), labels[rows]])

    return fit_on(model, batch, len(photos), recipe), trigger
