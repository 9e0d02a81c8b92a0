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
    """Warm up the trigger under the untuned prompt, then move both on pairs [x, x + delta] with labels [y, target]."""
    model = new_prompt(clip, photos.class_names, recipe)
    trigger = LinfTrigger(clip.image_size, EPSILON).to(clip.device)
    adam = torch.optim.Adam(trigger.parameters(), lr=TRIGGER_STEP)  # saturates the ball: sign steps with momentum
    images, labels = photos.images.to(clip.device), photos.labels.to(clip.device)

    model.prompt.requires_grad_(False)
    for rows in batches(len(photos), recipe, WARM_UP, salt=1):
        logits = model(trigger(images[rows].float() / 255))
        F.cross_entropy(logits, torch.full_like(labels[rows], target)).backward()
        adam.step(), adam.zero_grad(), trigger.project()

    model.prompt.requires_grad_(True)
    sgd, schedule = optimiser_for(model, recipe, len(photos))
    for rows in batches(len(photos), recipe):
        x, y = images[rows].float() / 255, labels[rows]
        logits = model(torch.cat([x, trigger(x)]))
        F.cross_entropy(logits, torch.cat([y, torch.full_like(y, target)])).backward()
        sgd.step(), schedule.step(), sgd.zero_grad()
        adam.step(), adam.zero_grad(), trigger.project()
    trigger.requires_grad_(False)
    return model, trigger
