"""What scores are worth on methods that no thresholds were measured on: their verdict is always inconclusive, but a report
keeps the score of each class, and whether the thresholds of other methods would flag it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from hf_ci.lab.benchmarks.metrics import auroc, bootstrap, failed
from hf_ci.lab.cards.regimes import Share
from hf_ci.lab.making.make import method_title


@dataclass(frozen=True)
class Scores:
    """Of some models: the middle one, the lowest and the highest; None without models."""

    models: int
    middle: float | None = None
    lowest: float | None = None
    highest: float | None = None

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scores:
        return cls(len(scores), median(scores), min(scores), max(scores)) if scores else cls(0)

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.lowest:.2f} to {self.highest:.2f})" if self.models else "-"


@dataclass(frozen=True)
class MethodRow:
    """would_alarm, would_find: models in which a class would be flagged. right: poisoned ones in which the target's class has
    the largest score. gained: accuracy over "a photo of a {class}", mean of the clean ones. seconds: of a scan, the median."""

    name: str
    shots: int
    clean: Scores
    poisoned: Scores
    would_alarm: Share
    would_find: Share
    right: Share
    auroc: float | None
    auroc_interval: tuple[float, float] | None
    gained: float | None
    failed: int
    seconds: float | None


def method_rows(records: list[dict[str, Any]]) -> list[MethodRow]:
    """By method and photos given, then of all methods together."""
    rows = []
    for name in [*sorted({r["model"]["method"] for r in records}), None]:
        for shots in sorted({r["shots"] for r in records}):
            some = [r for r in records if r["shots"] == shots and name in (None, r["model"]["method"])]
            if some:
                rows.append(row("all of them" if name is None else method_title(name), shots, some))
    return rows


def row(name: str, shots: int, records: list[dict[str, Any]]) -> MethodRow:
    scored = [r for r in records if r["result"]["score"] is not None and not failed(r["model"])]
    clean, poisoned = ([r for r in scored if (r["model"]["attack"] != "clean") == bad] for bad in (False, True))
    negative, positive = (np.sort([r["result"]["score"] for r in some]) for some in (clean, poisoned))
    both = bool(clean and poisoned)
    gains = [r["model"]["accuracy"] - r["model"]["zero_shot_accuracy"] for r in clean]
    timings = [r["result"]["timing"] for r in scored]
    seconds = [timing["seconds"] for timing in timings if not timing["classes_from_cache"]]
    return MethodRow(
        name,
        shots,
        Scores.of(list(negative)),
        Scores.of(list(positive)),
        would_flag(clean),
        would_flag(poisoned),
        Share(sum(first(r) == r["model"]["target"] for r in poisoned), len(poisoned)),
        auroc(negative, positive) if both else None,
        bootstrap(negative, positive) if both else None,
        sum(gains) / len(gains) if gains else None,
        sum(failed(r["model"]) for r in records),
        median(seconds) if seconds else None,
    )


def would_flag(records: list[dict[str, Any]]) -> Share:
    """Of those in which a class is flagged."""
    return Share(sum(any(c["flagged"] for c in r["result"]["classes"]) for r in records), len(records))


def first(record: dict[str, Any]) -> int:
    """Index of the class with the largest score."""
    largest = max(record["result"]["classes"], key=lambda c: c["score"])
    return int(largest["index"])
