"""Neural Cleanse (Wang et al., S&P 2019), on prompt-tuned CLIP as CLIP-Inspector's comparison has it.

For each class the smallest mask m and a pattern p such that (1 - m) x + m p is classified as it; a class whose mask is
unusually small carries a trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.detect.clip_inspector import low_outliers
from hf_ci.detect.verdict import Detector, Scores, Verdict, cannot_judge
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import batches, generator_for, measure, pixels


class DynamicCost:
    """The weight of the trigger's size: grows after `patience` successful steps in a row, shrinks after as many failures.

    It begins at `start`; the first such row of successes turns 0 into `initial`.
    """

    def __init__(self, initial: float, up: float, down: float, patience: int, start: float = 0.0):
        self.initial, self.up, self.down, self.patience = initial, up, down, patience
        self.value, self.successes, self.failures = start, 0, 0

    def step(self, success: bool) -> None:
        self.successes, self.failures = (self.successes + 1, 0) if success else (0, self.failures + 1)
        if self.successes == self.patience:
            self.value, self.successes = self.value * self.up or self.initial, 0
        elif self.failures == self.patience:
            self.value, self.failures = self.value / self.down, 0


class SizedTrigger(nn.Module):
    """A trigger of which a method makes small what it calls its size."""

    def size(self) -> Tensor:
        raise NotImplementedError

    def change(self) -> Tensor:
        """(3, H, W): what the trigger adds to a grey image."""
        raise NotImplementedError


class MaskTrigger(SizedTrigger):
    """(1 - m) x + m p with m (1, H, W) and p (3, H, W) in [0, 1] through tanh."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        start: Callable[[int], Tensor] = lambda channels: torch.atanh(
            torch.rand(channels, size, size, generator=generator) * 1.98 - 0.99
        )
        self.raw_mask, self.raw_pattern = nn.Parameter(start(1)), nn.Parameter(start(3))

    @property
    def mask(self) -> Tensor:
        return self.raw_mask.tanh() / 2 + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.mask) * x + self.mask * (self.raw_pattern.tanh() / 2 + 0.5)

    def size(self) -> Tensor:
        """L1 of the mask."""
        return self.mask.sum()

    def change(self) -> Tensor:
        return self.forward(torch.full_like(self.raw_pattern, 0.5)) - 0.5


@dataclass(frozen=True)
class MaskInversion:
    """Cross-entropy + cost * ||m||_1 by Adam (0.1; 0.5, 0.9); the smallest mask that reached the ASR is kept.

    Success is judged on the batch at hand. Stops `early_stop` steps after the last improvement, or after `epochs`.
    """

    epochs: int = 5
    batch: int = 32
    step: float = 0.1
    bound: float = 0.99  # ASR that counts as a success
    cost: float = 1e-3
    first_cost: float = 0.0
    up: float = 2.0
    down: float = 2.0**1.5
    patience: int = 5
    early_stop: int | None = 25  # steps without improvement; None: all epochs
    seed: int = 0

    family = "pattern in a mask"
    uses_reference = False
    screening = None

    def trigger(self, size: int, generator: torch.Generator) -> SizedTrigger:
        return MaskTrigger(size, generator)

    def __call__(self, model: nn.Module, images: Tensor, c: int, micro_batch: int) -> Inversion:
        trigger = self.trigger(images.shape[-1], generator_for(c, self.seed)).to(images.device)
        adam = torch.optim.Adam(trigger.parameters(), lr=self.step, betas=(0.5, 0.9))
        cost = DynamicCost(self.cost, self.up, self.down, self.patience, self.first_cost)
        best, smallest, stagnant, seen = trigger.state_dict(), None, 0, 0
        for rows in batches(len(images), c, self.seed, self.batch, self.epochs, images.device):
            before, hits = {k: v.clone() for k, v in trigger.state_dict().items()}, 0
            for part in rows.split(micro_batch):
                logits = model(trigger(pixels(images, part)))
                hits += int((logits.argmax(1) == c).sum())
                wanted = torch.full((len(part),), c, device=logits.device)
                (F.cross_entropy(logits, wanted, reduction="sum") / len(rows)).backward()
            now = trigger.size()
            (cost.value * now).backward()
            seen += len(rows)
            success = hits / len(rows) >= self.bound
            if success and (smallest is None or now.item() < smallest):
                best, smallest, stagnant = before, now.item(), 0
            elif smallest is not None:
                stagnant += 1
            if stagnant == self.early_stop:
                break
            adam.step()
            adam.zero_grad()
            cost.step(success)
        if smallest is not None:
            trigger.load_state_dict(best)
        loss, asr = measure(model, images, trigger, c, micro_batch)
        with torch.no_grad():  # a class that was never reached has a trigger as large as the image
            size = self.final_size(trigger) if smallest is not None else float(images.shape[-1] ** 2)
            delta = trigger.change().float().cpu()
        return Inversion(c, loss, asr, delta, size, forward=seen + len(images), backward=seen, family=self.family)

    def final_size(self, trigger: SizedTrigger) -> float:
        return trigger.size().item()


@dataclass(frozen=True)
class NeuralCleanse(Detector):
    """Anomaly index (median - size) / (1.4826 MAD) of the mask's L1; a class is flagged above k = 2."""

    k: float = 2.0

    name = "neural-cleanse"
    calibration = "none: the method's own anomaly index of 2"

    def inverter(self, seed: int) -> MaskInversion:
        return MaskInversion(seed=seed)

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], distance: float | None = None
    ) -> Verdict:
        return judge_sizes(inversions, class_names, self.k, "mask of L1")


def judge_sizes(inversions: Sequence[Inversion], class_names: Sequence[str], k: float, what: str) -> Verdict:
    """Flag the classes whose trigger is unusually small."""
    if unknown := cannot_judge(inversions, class_names):
        return unknown
    sizes = np.array([i.size for i in inversions])  # (C,)
    scores = low_outliers(sizes)
    if scores is None:
        return Verdict("inconclusive", ("at least half of the classes need a trigger of the same size",))
    flagged, target = scores > k, int(scores.argmax())
    say: Callable[[int], str] = lambda c: (
        f"{class_names[c]!r} needs a {what} {sizes[c]:.0f}, the median class {np.median(sizes):.0f}: anomaly index "
        f"{scores[c]:.1f} (flagged above {k:g})"
    )
    common: Scores = {
        "scores": tuple(map(float, scores)),
        "flagged": tuple(map(bool, flagged)),
        "score": float(scores[target]),
    }
    if not flagged.any():
        return Verdict("clean", (f"no class stands out: {say(target)}",), **common)
    return Verdict("backdoored", tuple(say(c) for c in np.argsort(-scores) if flagged[c]), target=target, **common)
