"""MM-BD (Wang et al., "Maximum margin backdoor detection", S&P 2024): no data at all.

For each class the largest margin z_c - max_{j != c} z_j that any input reaches; a backdoor's target class reaches a far
larger one than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hf_ci.detect.verdict import Detector, Scores, Verdict, cannot_judge
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import generator_for
from hf_ci.inversion.objective import margin


@dataclass(frozen=True)
class MarginAscent:
    """Inputs in [0, 1], from random noise, that maximise the margin: signed gradient ascent with a decaying step.

    The pool is used for its size alone. `loss` is minus the largest margin, `asr` the share of inputs that reach c.
    """

    batch: int = 16  # random starts
    steps: int = 100
    step: float = 0.05
    seed: int = 0

    uses_reference = False
    screening = None

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        size, device = images.shape[-1], images.device
        starts = torch.rand(self.batch, 3, size, size, generator=generator_for(c, self.seed)).to(device)
        ends = []
        for x in starts.split(micro_batch):
            for i in range(self.steps):
                x = x.requires_grad_()
                (gradient,) = torch.autograd.grad(margin(model(x), c).sum(), x)
                x = (x.detach() - self.step * (1 - i / self.steps) * gradient.sign()).clamp(0, 1)
            ends.append(x)
        x = torch.cat(ends)
        with torch.no_grad():
            losses = torch.cat([margin(model(part), c) for part in x.split(micro_batch)])  # (batch,)
        best = int(losses.argmin())
        passes = self.batch * self.steps
        asr = (losses < 0).float().mean().item()
        delta = x[best].detach().float().cpu() - 0.5
        return Inversion(
            c, losses[best].item(), asr, delta, forward=passes + self.batch, backward=passes, family="image"
        )


@dataclass(frozen=True)
class MMBD(Detector):
    """A gamma null fitted to the other classes' margins; p = 1 - H(r_max)^(C - 1); flagged below `alpha`.

    scores are -log10 of that p-value, for each class against all others.
    """

    alpha: float = 0.05

    name = "mm-bd"
    calibration = "none: the method's own p-value of 0.05"

    def inverter(self, seed: int) -> MarginAscent:
        return MarginAscent(seed=seed)

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], distance: float | None = None
    ) -> Verdict:
        if unknown := cannot_judge(inversions, class_names):
            return unknown
        margins = np.array([-i.loss for i in inversions])  # (C,)
        p = np.array([order_p_value(margins[c], np.delete(margins, c)) for c in range(len(margins))])
        target = int(margins.argmax())
        scores = -np.log10(np.maximum(p, 1e-300))
        flagged = np.zeros(len(p), bool)
        flagged[target] = p[target] < self.alpha
        common: Scores = {
            "scores": tuple(map(float, scores)),
            "flagged": tuple(map(bool, flagged)),
            "score": float(scores[target]),
        }
        fact = (
            f"{class_names[target]!r} reaches a margin of {margins[target]:.1f} logits, the median class "
            f"{np.median(margins):.1f}: p = {p[target]:.2g} (flagged below {self.alpha:g})"
        )
        if flagged.any():
            return Verdict("backdoored", (fact,), target=target, **common)
        return Verdict("clean", (f"no class stands out: {fact}",), **common)


def order_p_value(value: float, others: np.ndarray) -> float:
    """P(the largest of n draws >= value) under a gamma distribution with the mean and variance of the n `others`."""
    mean, variance = others.mean(), others.var(ddof=1)
    if value <= 0 or mean <= 0 or variance == 0:
        return 1.0
    shape, scale = mean**2 / variance, variance / mean
    below = torch.special.gammainc(torch.tensor(shape), torch.tensor(value / scale)).item()  # H(value)
    return float(-np.expm1(len(others) * np.log(max(below, 1e-300))))
