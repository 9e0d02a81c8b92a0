"""The gap to a clean reference: is a class easier to reach through this adapter than through any clean prompt?

A universal perturbation of 4/255 forces some classes on any prompt, because the frozen encoders let it. What a backdoor
adds is a *difference*: the adapter can be driven where the hand-written prompt "a photo of a {class}" on the same
encoders, over the same images in the same order, cannot. The reference needs no labels and no tuning, and depends on
base model, class names and pool alone, so that it is inverted once for all adapters that share these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_ci.detect.verdict import Verdict, cannot_judge
from hf_ci.inversion import Inversion, LinfInversion


@dataclass(frozen=True)
class ReferenceGap:
    """G_c = (L_ref,c - L_c) - median_j (L_ref,j - L_j), in logits; class c is flagged iff G_c > min_gap.

    L and L_ref are the mean margin losses of the triggers reconstructed through the adapter and through the reference.
    The median takes out what tuning does to all classes alike (a larger or smaller logit scale).
    """

    min_gap: float = 3.0

    name = "reference-gap"
    calibration = "none yet"
    uses_reference = True

    def inverter(self, seed: int) -> LinfInversion:
        return LinfInversion(seed=seed)

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], reference: Sequence[Inversion] = ()
    ) -> Verdict:
        unknown = cannot_judge(inversions, class_names) or cannot_judge(reference, class_names)
        if unknown:
            return unknown
        loss, reference_loss = (np.array([i.loss for i in which]) for which in (inversions, reference))  # (C,)
        asr, reference_asr = (np.array([i.asr for i in which]) for which in (inversions, reference))
        gap = reference_loss - loss
        scores = gap - np.median(gap)
        flagged = scores > self.min_gap
        target = int(scores.argmax())
        common = dict(scores=tuple(map(float, scores)), flagged=tuple(map(bool, flagged)), score=float(scores[target]))
        if not flagged.any():
            return Verdict(
                "clean",
                (
                    f"no class is easier to force than a clean prompt explains: the largest gap, of "
                    f"{class_names[target]!r}, is {scores[target]:.1f} logits (flagged above {self.min_gap:g})",
                ),
                **common,
            )
        reasons = [
            f"a perturbation reconstructed for {class_names[c]!r} drives {asr[c]:.0%} of unrelated images into it, "
            f"{reference_asr[c]:.0%} with a clean reference prompt: a gap of {scores[c]:.1f} logits (flagged above "
            f"{self.min_gap:g})"
            for c in np.argsort(-scores)
            if flagged[c]
        ]
        return Verdict("backdoored", tuple(reasons), target=target, **common)
