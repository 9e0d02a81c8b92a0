"""Contrast with a clean reference: can the adapter be driven where a clean prompt on the same encoders cannot?

A universal perturbation of 4/255 forces some classes on any prompt, because the frozen encoders let it. What a backdoor
adds is a *difference*. So each class is inverted through the adapter and through the hand-written prompt "a photo of a
{class}" at once: the trigger has to drive images into the class through the adapter and to leave it out through the
reference. One pass of the image encoder serves both, so this costs what an ordinary inversion does; it needs neither
labels nor a tuned prompt for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hf_ci.detect.calibration import shipped
from hf_ci.detect.verdict import Verdict, cannot_judge
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import descend
from hf_ci.inversion.objective import margin

MOST_FLAGGED = 0.5  # share of the classes; where more are flagged, the reference is in doubt, not the adapter


@dataclass(frozen=True)
class ContrastInversion:
    """E_c(delta) = mean_x max(m_c(x + delta), -r_c(x + delta)), minimised over ||delta||_inf <= epsilon.

    m_c = max_{j != c} z_j - z_c is the margin of CLIP-Inspector through the adapter, r_c the same through the reference.
    The maximum is negative exactly where the adapter answers c and the reference does not. Schedule as in
    `LinfInversion`. The result's `loss` is E_c; `asr` counts through the adapter, `reference_asr` through the reference,
    `exclusive_asr` where the adapter alone answers c.

    model: pixels -> logits (B, C) through the adapter, and through the reference.
    """

    epsilon: float = 4 / 255
    batch: int = 32
    step: float = 0.1
    epochs: int = 1
    seed: int = 0

    uses_reference = True

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        def losses(x: Tensor) -> Tensor:
            m, r = (margin(z, c) for z in model(x))  # (B,), (B,)
            return torch.maximum(m, -r)

        trigger = descend(self, images, c, micro_batch, losses)
        with torch.no_grad():
            pairs = [model(trigger(part.float() / 255)) for part in images.split(micro_batch)]
            m, r = (torch.cat([margin(pair[i], c) for pair in pairs]).cpu().double() for i in (0, 1))  # (N,), (N,)
        share = lambda hits: hits.double().mean().item()  # noqa: E731
        passes = self.epochs * len(images)
        return Inversion(
            c,
            loss=torch.maximum(m, -r).mean().item(),
            asr=share(m < 0),
            delta=trigger.delta.detach().float().cpu(),
            reference_asr=share(r < 0),
            exclusive_asr=share((m < 0) & (r >= 0)),
            forward=passes + len(images),
            backward=passes,
        )


@dataclass(frozen=True)
class Contrast:
    """Class c is flagged iff its trigger drives at least `min_share` of the images into it through the adapter alone.

    That share is the class's score, between 0 and 1; the model's is the largest. `min_share` comes from a calibration
    on clean adapters (see `calibration`), and so does the p-value in the reasons. Inconclusive when more than half of
    the classes are flagged.
    """

    min_share: float = field(default_factory=lambda: round(shipped().threshold, 3))

    name = "contrast"

    @property
    def calibration(self) -> str:
        return shipped().describe()

    def inverter(self, seed: int) -> ContrastInversion:
        return ContrastInversion(seed=seed)

    def judge(self, inversions: Sequence[Inversion], class_names: Sequence[str]) -> Verdict:
        if unknown := cannot_judge(inversions, class_names):
            return unknown
        scores = np.array([i.exclusive_asr for i in inversions])  # (C,)
        flagged, target = scores >= self.min_share, int(scores.argmax())
        common = dict(scores=tuple(map(float, scores)), flagged=tuple(map(bool, flagged)), score=float(scores[target]))
        say = lambda i: (  # noqa: E731
            f"a perturbation reconstructed for {class_names[i.c]!r} drives {i.asr:.0%} of unrelated images into it, "
            f"{i.reference_asr:.0%} through a clean prompt; {i.exclusive_asr:.0%} through the adapter alone (flagged "
            f"from {self.min_share:.0%}; p = {shipped().p_value(i.exclusive_asr):.1g} for a clean "
            "adapter)"
        )
        if not flagged.any():
            return Verdict(
                "clean",
                (f"no class can be forced that a clean prompt withstands; closest: {say(inversions[target])}",),
                **common,
            )
        if flagged.mean() > MOST_FLAGGED:
            reason = (
                f"{flagged.sum()} of {len(scores)} classes can be forced through the adapter alone: either it is "
                "backdoored in many classes, or their names mean nothing to this CLIP, and a clean prompt made of them "
                "is no reference; --detector clip-inspector needs none"
            )
            return Verdict("inconclusive", (reason,), **common)
        reasons = tuple(say(inversions[c]) for c in np.argsort(-scores) if flagged[c])
        return Verdict("backdoored", reasons, target=target, **common)
