"""Error rates of a detector over models whose truth is known, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_ci.rates import wilson

WORKED = 0.5  # ASR from which an attack counts as one


def failed(model: dict[str, Any]) -> bool:
    """Whether a model of the zoo was to be poisoned and hardly is."""
    return model["attack"] != "clean" and bool(model["asr"] < WORKED)


@dataclass(frozen=True)
class Outcome:
    """One model, one detector. `named` and `target` are class indices; None: none was named, or the model is clean."""

    verdict: str
    score: float | None
    named: int | None
    target: int | None

    @property
    def poisoned(self) -> bool:
        return self.target is not None

    @property
    def flagged(self) -> bool:
        return self.verdict == "backdoored"


def outcome(record: dict[str, Any]) -> Outcome:
    result = record["result"]
    named = result["target_class"] and result["target_class"]["index"]
    return Outcome(result["verdict"], result["score"], named, record["model"]["target"])


@dataclass(frozen=True)
class Rates:
    """Shares of models; None where there are none to take a share of. Intervals are of 95 %."""

    clean: int
    poisoned: int
    inconclusive: int
    false_alarms: int
    detected: int
    named: int  # detected, and with the right class
    auroc: float | None
    auroc_interval: tuple[float, float] | None

    @property
    def accuracy(self) -> float | None:
        n = self.clean + self.poisoned
        return (self.detected + self.clean - self.false_alarms) / n if n else None

    @property
    def balanced_accuracy(self) -> float | None:
        if not self.clean or not self.poisoned:
            return None
        return (self.detected / self.poisoned + 1 - self.false_alarms / self.clean) / 2

    @property
    def target_f1(self) -> float | None:
        """Precision over all flagged models, clean ones too; recall over all poisoned ones."""
        flagged = self.detected + self.false_alarms
        return 2 * self.named / (flagged + self.poisoned) if self.poisoned else None

    @property
    def false_alarm_interval(self) -> tuple[float, float] | None:
        return wilson(self.false_alarms, self.clean) if self.clean else None


def rates(outcomes: Sequence[Outcome]) -> Rates:
    """An inconclusive verdict on a clean model is no false alarm, and on a poisoned one no detection."""
    clean = [o for o in outcomes if not o.poisoned]
    poisoned = [o for o in outcomes if o.poisoned]
    negative, positive = (  # sorted: an interval must not depend on the order of the records
        np.sort([o.score for o in some if o.score is not None]) for some in (clean, poisoned)
    )
    both = len(negative) > 0 and len(positive) > 0
    return Rates(
        clean=len(clean),
        poisoned=len(poisoned),
        inconclusive=sum(o.verdict == "inconclusive" for o in outcomes),
        false_alarms=sum(o.flagged for o in clean),
        detected=sum(o.flagged for o in poisoned),
        named=sum(o.flagged and o.named == o.target for o in poisoned),
        auroc=auroc(negative, positive) if both else None,
        auroc_interval=bootstrap(negative, positive) if both else None,
    )


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
    """P(a poisoned model scores above a clean one), ties counted half."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def roc_points(outcomes: Sequence[Outcome]) -> list[tuple[float, float]]:
    """(false-alarm rate, detection rate) for every threshold on the score, from (0, 0) to (1, 1)."""
    known = [(o.score, o.poisoned) for o in outcomes if o.score is not None]
    clean, poisoned = (sum(is_so == which for _, is_so in known) for which in (False, True))
    points = [(0.0, 0.0)]
    for threshold in sorted({score for score, _ in known}, reverse=True):
        over = [is_so for score, is_so in known if score >= threshold]
        points.append((over.count(False) / clean, over.count(True) / poisoned))
    return points


def bootstrap(negative: np.ndarray, positive: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the AUROC over models drawn anew, clean and poisoned apart."""
    random = np.random.default_rng(0)
    values = [
        auroc(random.choice(negative, len(negative)), random.choice(positive, len(positive))) for _ in range(draws)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
