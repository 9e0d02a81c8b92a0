"""Image features once, answers many times: the encoders are frozen, so a prompt is tuned and judged on features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_ci.prompts.clip import FrozenCLIP
from hf_ci.prompts.prompted import PromptedCLIP


@torch.no_grad()
def encode(
    clip: FrozenCLIP | PromptedCLIP,
    images: Tensor,
    trigger: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 256,
) -> Tensor:
    """(N, 3, H, W) uint8 -> features (N, D) on the model's device, the base model's or those that the prompt makes of it."""
    device = (clip.clip if isinstance(clip, PromptedCLIP) else clip).device
    return torch.cat([clip.image_features(trigger(part.to(device).float() / 255)) for part in images.split(batch)])


@torch.no_grad()
def answer(model: PromptedCLIP, features: Tensor, batch: int = 128) -> Tensor:
    """Image features (N, D) -> logits (N, C) on the model's device."""
    with model.frozen_prompt():
        return torch.cat([model.logits_from_features(part) for part in features.split(batch)])


def predict(model: PromptedCLIP, features: Tensor, batch: int = 128) -> Tensor:
    """Image features (N, D) -> predicted classes (N,) on the CPU."""
    return answer(model, features, batch).argmax(1).cpu()
