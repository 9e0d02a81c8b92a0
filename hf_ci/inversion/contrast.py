"""Inversion beside clean references: drive images into a class through the adapter, and not through clean prompts.

A small universal perturbation forces some classes on any prompt, because the frozen encoders let it. What a backdoor
adds is a *difference*. So each class is inverted through the adapter and through clean prompts for the same classes at
once. One pass of the image encoder serves them all, so this costs what an ordinary inversion does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_ci.inversion.invert import Inversion, batches, descend, pixels
from hf_ci.inversion.objective import margin
from hf_ci.inversion.trigger import MASKS, ON_PHOTOS, PERTURBATION, WIDE, LinfTrigger, Trigger, masked_trigger

# What is planted inside a mask is found in two long steps. With more of them free pixels reach what any prompt learned.
MASKED: dict[str, Any] = {"num_images": 64, "batch": 16, "step": 0.5, "updates": 2}
# How the other families of triggers are looked for. A blended photo or a warp leaves little inside the smaller ball.
OTHERS: dict[str, dict[str, Any]] = {WIDE: {"epsilon": 8 / 255, "num_images": 128}} | dict.fromkeys(MASKS, MASKED)


@dataclass(frozen=True)
class ContrastInversion:
    """E_c(delta) = mean_x max(m_c(x + delta), -r_c(x + delta)), minimised over ||delta||_inf <= epsilon.

    The radius is CLIP-Inspector's. In a ball of twice that, an adapter that learned much is driven into whatever it
    learned, and its classes are forced alike: it is a family of its own, held against what is usual there.

    m_c = max_{j != c} z_j - z_c is the margin of CLIP-Inspector through the adapter, r_c = min_k r_c^k that through the
    most willing of K references. The maximum is negative exactly where the adapter answers c and no reference does.
    Where the model knows each image's nearest classes (`BesideReferences.nearest`), the descent takes its rivals from
    these alone; the result is measured with all. Schedule as in `LinfInversion`; with `steps`, only so many are taken, and
    one more batch, with these rivals, measures what they led to. The result's `loss` is E_c; `asr` counts through the adapter,
    `reference_asr` where any reference answers c, `exclusive_asr` where the adapter alone does.

    family: what is reconstructed, a perturbation or free pixel values inside a mask; num_images: of the pool's first;
    None: all. updates: steps that are taken at most. own: the images are photos of the adapter's own classes, not the pool.

    model: pixels -> logits (B, C) through the adapter, and (B, K, C) through the references.
    """

    epsilon: float = 4 / 255
    batch: int = 32
    step: float = 0.1
    epochs: int = 1
    seed: int = 0
    steps: int | None = None
    updates: int | None = None
    family: str = PERTURBATION
    num_images: int | None = None
    own: bool = False

    uses_reference = True

    @property
    def screening(self) -> ContrastInversion:
        return replace(self, steps=1)

    @property
    def others(self) -> tuple[ContrastInversion, ...]:
        """What looks for triggers of other families."""
        return tuple(replace(self, family=family, **settings) for family, settings in OTHERS.items())

    @property
    def on_own(self) -> tuple[ContrastInversion, ...]:
        """What looks for triggers on photos of the adapter's own classes. There it answers as the prompts do that were tuned
        on them, so that what was learned stands out less than on unrelated images, and what was planted more. A wide
        perturbation told nothing there that this one does not."""
        return (replace(self, family=ON_PHOTOS, own=True),)

    def trigger(self, size: int) -> Trigger:
        return masked_trigger(self.family, size) if self.family in MASKS else LinfTrigger(size, self.epsilon)

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        images = images[: self.num_images]
        order = list(batches(len(images), c, self.seed, self.batch, self.epochs, images.device))
        rivals = None if self.own else nearest_rivals(model, c)
        if self.steps is None:
            taken, rows, measured_against = order[: self.updates], torch.arange(len(images), device=images.device), None
        else:
            taken, rows, measured_against = order[: self.steps], order[self.steps % len(order)], rivals
        trigger = self.trigger(images.shape[-1]).to(images.device)
        descend(trigger, self.step, images, taken, micro_batch, losses(model, c, rivals))
        with torch.no_grad():
            parts = rows.split(micro_batch)
            pairs = [margins(model, trigger(pixels(images, part)), c, measured_against, part) for part in parts]
        m, r = (torch.cat(found).cpu().double() for found in zip(*pairs))  # (N,), (N,)
        share: Callable[[Tensor], float] = lambda hits: hits.double().mean().item()
        passes = sum(map(len, taken))
        return Inversion(
            c,
            loss=torch.maximum(m, -r).mean().item(),
            asr=share(m < 0),
            delta=trigger.delta.detach().float().cpu(),
            reference_asr=share(r < 0),
            exclusive_asr=share((m < 0) & (r >= 0)),
            screened=self.steps is not None,
            forward=passes + len(rows),
            backward=passes,
            family=self.family,
        )


def losses(model: nn.Module, c: int, rivals: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """What `descend` makes small; rivals as in `margins`."""

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        m, r = margins(model, x, c, rivals, rows)
        return torch.maximum(m, -r)

    return loss


def margins(model: nn.Module, x: Tensor, c: int, rivals: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:
    """m_c and r_c of the images in `rows`, each (B,); m_c against all classes, or against each image's `rivals` (N, R), the
    first of which is c."""
    z, references = model(x) if rivals is None else model(x, rivals[rows])
    return margin(z, c if rivals is None else 0), margin(references, c).amin(dim=1)


def nearest_rivals(model: nn.Module, c: int) -> Tensor | None:
    """(N, R), for each image of the pool: c and the classes nearest to it; None where all classes are rivals."""
    nearest = getattr(model, "nearest", None)  # (N, R)
    return None if nearest is None else with_first(c, nearest)


def with_first(c: int, classes: Tensor) -> Tensor:
    """`classes` (B, R), likeliest first, with c in front; where it was not among them, the last one leaves."""
    order = (classes != c).int().argsort(dim=1, stable=True)  # c, where it is, moves to the front
    ordered = classes.gather(1, order)
    found = ordered[:, :1] == c
    shifted = torch.cat([torch.full_like(ordered[:, :1], c), ordered[:, :-1]], dim=1)
    return torch.where(found, ordered, shifted)
