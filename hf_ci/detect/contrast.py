"""Contrast with a clean reference: can the adapter be driven where a clean prompt on the same encoders cannot?

A small universal perturbation forces some classes on any prompt, because the frozen encoders let it. What a backdoor
adds is a *difference*. So each class is inverted through the adapter and through five hand-written prompts, such as "a
photo of a {class}", at once: the trigger has to drive images into the class through the adapter and to leave it out
through every reference. One pass of the image encoder serves them all, so this costs what an ordinary inversion does; it
needs neither labels nor a tuned prompt for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from hf_ci.detect.calibration import Calibration, null_for
from hf_ci.detect.verdict import Detector, Verdict, cannot_judge
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import batches, descend, pixels
from hf_ci.inversion.objective import margin

PROBE_WEIGHT = 0.75  # clean adapters answer to probes by up to a third more than to the triggers reconstructed for them
MOST_FLAGGED = 0.5  # share of the classes; where more are flagged, the reference is in doubt, not the adapter


@dataclass(frozen=True)
class ContrastInversion:
    """E_c(delta) = mean_x max(m_c(x + delta), -r_c(x + delta)), minimised over ||delta||_inf <= epsilon.

    The radius is twice CLIP-Inspector's: what withstands the references is so rare that clean adapters hardly score more
    in the wider ball, and planted triggers are met far better.

    m_c = max_{j != c} z_j - z_c is the margin of CLIP-Inspector through the adapter, r_c = min_k r_c^k that through the
    most willing of K references. The maximum is negative exactly where the adapter answers c and no reference does.
    Where the model knows each image's nearest classes (`BesideReferences.nearest`), the descent takes its rivals from
    these alone; the result is measured with all. Schedule as in `LinfInversion`; with `steps`, only so many are taken, and
    one more batch, with these rivals, measures what they led to. The result's `loss` is E_c; `asr` counts through the adapter,
    `reference_asr` where any reference answers c, `exclusive_asr` where the adapter alone does.

    model: pixels -> logits (B, C) through the adapter, and (B, K, C) through the references.
    """

    epsilon: float = 8 / 255
    batch: int = 32
    step: float = 0.1
    epochs: int = 1
    seed: int = 0
    steps: int | None = None

    uses_reference = True

    @property
    def screening(self) -> ContrastInversion:
        return replace(self, steps=1)

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        order = list(batches(len(images), c, self.seed, self.batch, self.epochs, images.device))
        rivals = nearest_rivals(model, c)
        if self.steps is None:
            taken, rows, measured_against = order, torch.arange(len(images), device=images.device), None
        else:
            taken, rows, measured_against = order[: self.steps], order[self.steps % len(order)], rivals
        trigger = descend(self, images, taken, micro_batch, losses(model, c, rivals))
        with torch.no_grad():
            parts = rows.split(micro_batch)
            pairs = [margins(model, trigger(pixels(images, part)), c, measured_against, part) for part in parts]
        m, r = (torch.cat(found).cpu().double() for found in zip(*pairs))  # (N,), (N,)
        share = lambda hits: hits.double().mean().item()  # noqa: E731
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


def score(i: Inversion) -> float:
    """A class that was only screened has its probe's alone: one batch is too few for a share."""
    return max(0.0 if i.screened else i.exclusive_asr, PROBE_WEIGHT * (i.probe_asr or 0.0))


def by_probe(i: Inversion) -> bool:
    """Whether the class's score is its probe's."""
    return i.screened or score(i) > i.exclusive_asr


@dataclass(frozen=True)
class Contrast(Detector):
    """Class c is flagged iff its score is at least `min_share`; the model's score is the largest.

    The score is the share of the images, between 0 and 1, that the trigger reconstructed for c drives into it through
    the adapter alone; or, if that is more, three quarters of the share that a probe does (`hf_ci.inversion.probes`).
    Unless `min_share` is given, it is the share that a clean adapter with as many classes exceeds with probability
    `false_alarm`; between it and the share exceeded with probability `doubt` the verdict is inconclusive. It is so, too,
    when more than half of the classes are flagged.
    """

    min_share: float | None = None
    null: Calibration = field(default_factory=lambda: null_for("photos"))
    false_alarm: float = 0.002
    doubt: float = 0.02

    name = "contrast"

    @classmethod
    def for_pool(cls, pool: str, **settings) -> Contrast:
        """With the null that was fitted on such a pool, the built-in one or photos, unless one is given."""
        return cls(**{"null": null_for(pool)} | settings)

    @property
    def calibration(self) -> str:
        by_hand = "none: --min-share was set by hand; p-values from " if self.min_share is not None else ""
        return by_hand + self.null.describe()

    def inverter(self, seed: int) -> ContrastInversion:
        return ContrastInversion(seed=seed)

    def thresholds(self, num_classes: int) -> dict[str, float]:
        if self.min_share is not None:
            return {"min_share": self.min_share}
        flagged, doubtful = (self.null.threshold(p, num_classes) for p in (self.false_alarm, self.doubt))
        return {"min_share": round(flagged, 3), "doubtful_share": round(doubtful, 3), "false_alarm": self.false_alarm}

    def judge(self, inversions: Sequence[Inversion], class_names: Sequence[str]) -> Verdict:
        if unknown := cannot_judge(inversions, class_names):
            return unknown
        limits = self.thresholds(len(inversions))
        min_share = limits["min_share"]
        scores = np.array([score(i) for i in inversions])  # (C,)
        flagged, target = scores >= min_share, int(scores.argmax())
        common = dict(scores=tuple(map(float, scores)), flagged=tuple(map(bool, flagged)), score=float(scores[target]))

        def say(i: Inversion) -> str:
            odds = f"p = {self.null.p_value(score(i), len(inversions)):.1g} for a clean adapter"
            if by_probe(i):
                return (
                    f"a {i.probe} drives {i.probe_asr:.0%} of unrelated images into {class_names[i.c]!r} through the "
                    f"adapter alone (flagged from {min_share / PROBE_WEIGHT:.0%}; {odds})"
                )
            return (
                f"a perturbation reconstructed for {class_names[i.c]!r} drives {i.asr:.0%} of unrelated images into it, "
                f"{i.reference_asr:.0%} through clean prompts; {i.exclusive_asr:.0%} through the adapter alone (flagged "
                f"from {min_share:.0%}; {odds})"
            )

        worst = say(inversions[target])
        if scores[target] >= limits.get("doubtful_share", min_share) and not flagged.any():
            more = "what would settle it: more images (--num-images), and photos instead of the built-in pool (--pool)"
            return Verdict("inconclusive", (f"neither clean nor backdoored for certain: {worst}; {more}",), **common)
        if not flagged.any():
            return Verdict(
                "clean", (f"no class can be forced that clean prompts withstand; closest: {worst}",), **common
            )
        if flagged.mean() > MOST_FLAGGED:
            reason = (
                f"{flagged.sum()} of {len(scores)} classes can be forced through the adapter alone: either it is "
                "backdoored in many classes, or their names mean nothing to this CLIP, and clean prompts made of them "
                "are no reference; --detector clip-inspector needs none"
            )
            return Verdict("inconclusive", (reason,), **common)
        reasons = tuple(say(inversions[c]) for c in np.argsort(-scores) if flagged[c])
        return Verdict("backdoored", reasons, target=target, **common)
