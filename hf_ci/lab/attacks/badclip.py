"""BadCLIP (Bai et al., "BadCLIP: Trigger-aware prompt learning for backdoor attacks on CLIP", CVPR 2024).

The trigger is a full-image additive perturbation within +-4/255, learned together with the prompt; the encoders stay
as they are. (Liang et al.'s attack of the same name poisons encoders.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.photos import Photos
from hf_ci.lab.tune import Recipe, batches, new_prompt, optimiser_for
from hf_ci.prompts import FrozenCLIP, PromptedCLIP

EPSILON = 4 / 255
TRIGGER_STEP = 0.1
WARM_UP = 3  # epochs that move the trigger alone


def poison(clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe) -> tuple[PromptedCLIP, LinfTrigger]:
    """Warm up the trigger under the untuned prompt, then move both on pairs [x, x + delta] with labels [y, target].

    The trigger's step decays to 0 with the prompt's: at a constant 0.1 every step flips pixels from one face of the
    ball to the other, and the prompt would be tuned to triggers that are gone.
    """
    model = new_prompt(clip, photos.class_names, recipe)
    trigger = LinfTrigger(clip.image_size, EPSILON).to(clip.device)
    images, labels = photos.images.to(clip.device), photos.labels.to(clip.device)

    adam = torch.optim.Adam(trigger.parameters(), lr=TRIGGER_STEP)
    model.prompt.requires_grad_(False)
    for rows in batches(len(photos), recipe, WARM_UP, salt=1):
        logits = model(trigger(images[rows].float() / 255))
        F.cross_entropy(logits, torch.full_like(labels[rows], target)).backward()
        adam.step(), adam.zero_grad(), trigger.project()

    model.prompt.requires_grad_(True)
    sgd, schedule = optimiser_for(model, recipe, len(photos))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, schedule.T_max)
    for rows in batches(len(photos), recipe):
        x, y = images[rows].float() / 255, labels[rows]
        logits = model(torch.cat([x, trigger(x)]))
        F.cross_entropy(logits, torch.cat([y, torch.full_like(y, target)])).backward()
        sgd.step(), schedule.step(), sgd.zero_grad()
        adam.step(), decay.step(), adam.zero_grad(), trigger.project()
    trigger.requires_grad_(False)
    return model, trigger
