"""What a detector says, and the interface of detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypedDict

from hf_ci.detect.calibration import Calibration
from hf_ci.inversion import Inversion, Inverter
from hf_ci.prompts.methods import METHODS

FEWEST_CLASSES = 3  # with fewer there is no "rest" that one class could stand out from


@dataclass(frozen=True)
class Verdict:
    """Per-class scores and flags in class order; `score` is the model's, `target` the index of the named class."""

    verdict: Literal["clean", "backdoored", "inconclusive"]
    reasons: tuple[str, ...]
    scores: tuple[float, ...] = ()
    flagged: tuple[bool, ...] = ()
    score: float | None = None
    target: int | None = None
    families: tuple[str, ...] = ()  # of triggers, by class: the one that gave it its score; empty without any


class Scores(TypedDict, total=False):
    """What a `Verdict` has, whatever it is."""

    scores: tuple[float, ...]
    flagged: tuple[bool, ...]
    score: float
    families: tuple[str, ...]


class Detector(Protocol):
    """A small frozen value; its fields are its thresholds, where `thresholds` does not say otherwise.

    calibration: what the thresholds were fitted on. inverter: how each class is inverted. null: what they were computed
    from; None where they come from nothing that was fitted.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: str
    null: Calibration | None = None

    @property
    def calibration(self) -> str: ...

    @classmethod
    def for_pool(cls, pool: str, **settings: Any) -> Self:
        """With what was calibrated on such a pool, and thresholds or a calibration of the user's own."""
        return cls(**settings)

    def for_adapter(self, class_specific: bool, num_classes: int) -> Self:
        """With what was calibrated for such adapters: contexts shared by all classes, or of each class."""
        return self

    def inverter(self, seed: int) -> Inverter: ...

    def thresholds(self, num_classes: int, distance: float = 0.0) -> dict[str, float]:
        """Those that an adapter with so many classes, so far from its references, is judged by."""
        return asdict(self)

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], distance: float | None = None
    ) -> Verdict: ...


def doubted(verdict: Verdict, reasons: Sequence[str]) -> Verdict:
    """The verdict, which is not clean where there are reasons to doubt that everything was judged."""
    if verdict.verdict != "clean" or not reasons:
        return verdict
    return replace(verdict, verdict="inconclusive", reasons=tuple(reasons))


def unmeasured(verdict: Verdict, method: str, class_names: Sequence[str]) -> Verdict:
    """The verdict, which is always inconclusive on adapters of a method that no thresholds were measured on: how often
    either answer would be wrong is not known. It says what would be flagged by the thresholds of other methods."""
    if METHODS[method].measured:
        return verdict
    order = sorted(range(len(verdict.flagged)), key=lambda c: -verdict.scores[c])
    flagged = [class_names[c] for c in order if verdict.flagged[c]]
    would = "no class would be flagged" if verdict.flagged else "no class could be scored"
    if flagged:
        would = f"{named(flagged)} would be flagged"
    reason = (
        f"the thresholds were not measured on {METHODS[method].title} adapters, so that this one is called neither clean nor "
        f"backdoored; by those of other methods {would}"
    )
    return replace(verdict, verdict="inconclusive", reasons=(reason, *verdict.reasons), target=None)


def cannot_judge(
    inversions: Sequence[Inversion], class_names: Sequence[str], fewest: int = FEWEST_CLASSES
) -> Verdict | None:
    """The verdict where no rule can be applied: fewer classes than that, or losses that are no numbers."""
    if len(inversions) < fewest:
        return Verdict(
            "inconclusive",
            (f"{len(inversions)} classes are too few to tell which of them stands out",),
        )
    bad = [class_names[i.c] for i in inversions if not math.isfinite(i.loss)]
    if bad:
        return Verdict("inconclusive", (f"the loss of {named(bad)} is not a number: the weights are unusable",))
    return None


def named(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more
