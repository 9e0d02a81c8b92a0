"""Reconstruct the smallest universal trigger of one class (CLIP-Inspector, arXiv 2604.09101)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hf_ci.inversion.objective import OBJECTIVES, margin
from hf_ci.inversion.trigger import MASKS, PERTURBATION, LinfTrigger, Trigger, masked_trigger

SomeTrigger = TypeVar("SomeTrigger", bound=Trigger)


@dataclass(frozen=True)
class Inversion:
    """What was reconstructed for class c.

    loss, asr: mean margin loss (logits) and attack success rate over the whole pool, with the trigger.
    delta: (3, H, W), the trigger as a change of pixels in [0, 1].
    size: what the method makes small, in its own unit (Neural Cleanse: L1 of the mask); None where the size is fixed.
    reference_asr, exclusive_asr: through any of the clean reference prompts, and through the adapter alone; None
    without them.
    probe, probe_asr: the probe that moves most images into the class through the adapter alone, and their share; None
    where none were tried.
    family: what kind of trigger `delta` is. others: the class's inversions of other families, whole ones and screened ones.
    screened: only a first step was taken, and measured on one batch: others looked more promising.
    forward, backward: images that went through the image encoder, and back.
    """

    c: int
    loss: float
    asr: float
    delta: Tensor
    size: float | None = None
    reference_asr: float | None = None
    exclusive_asr: float | None = None
    probe: str | None = None
    probe_asr: float | None = None
    screened: bool = False
    forward: int = 0
    backward: int = 0
    family: str = PERTURBATION
    others: tuple[Inversion, ...] = ()

    def trigger(self) -> Callable[[Tensor], Tensor]:
        """Pixels (B, 3, H, W) in [0, 1] -> the same with what was reconstructed."""
        if self.family not in MASKS:
            return lambda x: (x + self.delta.to(x.device)).clamp(0, 1)

        def pasted(x: Tensor) -> Tensor:
            found = masked_trigger(self.family, x.shape[-1])
            found.load_state_dict({"delta": self.delta})
            changed: Tensor = found.requires_grad_(False).to(x.device)(x)
            return changed

        return pasted


class Inverter(Protocol):
    """One way to reconstruct triggers: a frozen value whose fields are its settings.

    model: pixels (B, 3, H, W) in [0, 1] -> logits (B, C), or with `uses_reference` those of the adapter and those of K
    clean reference prompts (B, K, C); images: the pool (N, 3, H, W) uint8 on the model's device.
    Gradients of a batch are summed over micro-batches, so memory, not the result, depends on `micro_batch`.
    screening: a much cheaper one, whose losses say which classes are worth inverting; None without any.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def batch(self) -> int: ...

    @property
    def uses_reference(self) -> bool: ...

    @property
    def screening(self) -> Inverter | None: ...

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion: ...


class ReferenceInverter(Inverter, Protocol):
    """One with `uses_reference`. others: those that look for triggers of other families; on_own: those that do so on photos
    of the adapter's own classes."""

    @property
    def others(self) -> tuple[Inverter, ...]: ...

    @property
    def on_own(self) -> tuple[Inverter, ...]: ...


@dataclass(frozen=True)
class LinfInversion:
    """L_c(delta) = mean_x [ max_{j != c} z_j(x + delta) - z_c(x + delta) ], minimised over ||delta||_inf <= epsilon.

    The schedule of the paper: one epoch over the pool, batches of 32, Adam with a step of 0.1, radius 4/255. In so
    small a ball every step saturates the box, so these are sign updates with momentum.
    """

    epsilon: float = 4 / 255
    batch: int = 32
    step: float = 0.1
    epochs: int = 1
    objective: str = "margin"
    seed: int = 0

    uses_reference = False
    screening = None

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        trigger = self.trigger(model, images, c, micro_batch)
        loss, asr = measure(model, images, trigger, c, micro_batch)
        passes = self.epochs * len(images)
        delta = trigger.delta.detach().float().cpu()
        return Inversion(c, loss, asr, delta, forward=passes + len(images), backward=passes)

    def trigger(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> LinfTrigger:
        """What is reconstructed, not measured."""
        objective = OBJECTIVES[self.objective]
        order = batches(len(images), c, self.seed, self.batch, self.epochs, images.device)
        trigger = LinfTrigger(images.shape[-1], self.epsilon).to(images.device)
        return descend(trigger, self.step, images, order, micro_batch, lambda x, _: objective(model(x), c))


def descend(
    trigger: SomeTrigger,
    step: float,
    images: Tensor,
    order: Iterable[Tensor],
    micro_batch: int,
    losses: Callable[[Tensor, Tensor], Tensor],
) -> SomeTrigger:
    """Minimise the mean of `losses`, pixels (B, 3, H, W) with the trigger and their rows (B,) -> (B,), over the trigger's
    set by Adam.

    order: rows of `images`, a batch a step, on their device. Nothing in a step waits for the device.
    """
    adam = torch.optim.Adam(trigger.parameters(), lr=step)
    for rows in order:
        for part in rows.split(micro_batch):
            (losses(trigger(pixels(images, part)), part).sum() / len(rows)).backward()
        adam.step()
        adam.zero_grad()
        trigger.project()
    return trigger


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, trigger: nn.Module, c: int, micro_batch: int) -> tuple[float, float]:
    """Mean margin loss, and ASR = share of images with the trigger that are classified as c."""
    m = torch.cat([margin(model(trigger(part.float() / 255)), c) for part in images.split(micro_batch)])
    m = m.cpu().double()  # (N,)
    return m.mean().item(), (m < 0).double().mean().item()


def pixels(images: Tensor, rows: Tensor) -> Tensor:
    return images[rows].float() / 255


def batches(n: int, c: int, seed: int, batch: int, epochs: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Row indices of every batch of all epochs; drawn on the CPU, so that every device has the same, and moved once."""
    generator = generator_for(c, seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).to(device).split(batch)


def generator_for(c: int, seed: int) -> torch.Generator:
    """Random numbers that depend on (seed, c) alone, never on which process inverts which class."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{c}".encode()).digest()[:7])
    return torch.Generator().manual_seed(key)
