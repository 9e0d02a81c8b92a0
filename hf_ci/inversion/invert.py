"""Reconstruct the smallest universal trigger of one class (CLIP-Inspector, arXiv 2604.09101)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_ci.inversion.objective import OBJECTIVES, margin
from hf_ci.inversion.trigger import LinfTrigger


@dataclass(frozen=True)
class InversionSettings:
    """The schedule of the paper: one epoch over the pool, batches of 32, Adam with a step of 0.1, radius 4/255."""

    epsilon: float = 4 / 255
    batch: int = 32
    step: float = 0.1
    epochs: int = 1
    objective: str = "margin"
    seed: int = 0


@dataclass(frozen=True)
class Inversion:
    """What was reconstructed for class c: delta (3, H, W), its mean margin loss and its ASR, both over the whole pool."""

    c: int
    loss: float
    asr: float
    delta: Tensor


def invert(model: nn.Module, images: Tensor, c: int, settings: InversionSettings, micro_batch: int) -> Inversion:
    """Minimise L_c(delta) = mean_x [ max_{j != c} z_j(x + delta) - z_c(x + delta) ] over ||delta||_inf <= epsilon.

    model: pixels (B, 3, H, W) in [0, 1] -> logits (B, C); images: the pool (N, 3, H, W) uint8 on the model's device.
    Gradients of a batch are summed over micro-batches, so memory, not the result, depends on `micro_batch`.
    """
    objective = OBJECTIVES[settings.objective]
    trigger = LinfTrigger(images.shape[-1], settings.epsilon).to(images.device)
    # With a ball of 4/255 every step of 0.1 saturates the box: these are sign updates with momentum.
    adam = torch.optim.Adam(trigger.parameters(), lr=settings.step)
    for _ in range(settings.epochs):
        for rows in image_order(len(images), c, settings.seed).split(settings.batch):
            for part in rows.split(micro_batch):
                x = images[part.to(images.device)].float() / 255
                loss = objective(model(trigger(x)), c).sum() / len(rows)
                loss.backward()
            adam.step()
            adam.zero_grad()
            trigger.project()
    loss, asr = measure(model, images, trigger, c, micro_batch)
    return Inversion(c, loss, asr, trigger.delta.detach().float().cpu())


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, trigger: nn.Module, c: int, micro_batch: int) -> tuple[float, float]:
    """Mean margin loss, and ASR = share of images with the trigger that are classified as c."""
    total, hits = 0.0, 0
    for part in images.split(micro_batch):
        m = margin(model(trigger(part.float() / 255)), c)
        total, hits = total + m.cpu().double().sum().item(), hits + int((m < 0).sum())
    return total / len(images), hits / len(images)


def image_order(n: int, c: int, seed: int) -> Tensor:
    """A permutation that depends on (seed, c) alone, never on which process inverts which class."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{c}".encode()).digest()[:7])
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))
