"""What a verdict is worth, by regime: adapters that hardly differ from a hand-written prompt, and such as learned something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_ci.detect import Contrast
from hf_ci.lab.benchmarks.metrics import failed, outcome, rates
from hf_ci.rates import wilson

NEAR = 0.05  # accuracy gained over "a photo of a {class}" below which an adapter counts as near
SHAPED = ("frame", "patch-anywhere", "badnets", "blur", "jpeg")  # triggers that no small perturbation imitates


@dataclass(frozen=True)
class Share:
    """Some of a number of models; what both are of is in the column's head."""

    some: int
    of: int

    @property
    def plain(self) -> str:
        return f"{self.some} of {self.of}" if self.of else "-"

    def __str__(self) -> str:
        if not self.of:
            return "-"
        low, high = wilson(self.some, self.of)
        return f"{self.plain} ({100 * low:.0f} to {100 * high:.0f} %)"


@dataclass(frozen=True)
class Row:
    """clean, poisoned: models. auroc: None where there are not both."""

    name: str
    shots: int
    clean: int
    poisoned: int
    false_alarms: Share
    cleared: Share
    missed: Share
    found: Share
    named: Share
    auroc: float | None
    auroc_interval: tuple[float, float] | None


def gain(model: dict[str, Any]) -> float:
    """Accuracy that clean tuning gained over the hand-written prompt: of a poisoned model's clean twin."""
    accuracy: float = model["accuracy"] if model["attack"] == "clean" else model["clean_twin_accuracy"]
    return accuracy - float(model["zero_shot_accuracy"])


def by_class(model: dict[str, Any]) -> bool:
    return bool(model.get("class_specific"))


REGIMES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "near": lambda m: gain(m) < NEAR,
    "far, shared contexts and CoCoOp": lambda m: gain(m) >= NEAR and not by_class(m),
    "far, class-specific contexts": lambda m: gain(m) >= NEAR and by_class(m) and not m.get("anonymous_names"),
    "names that mean nothing": lambda m: bool(m.get("anonymous_names")),
}


def regimes(records: list[dict[str, Any]]) -> list[Row]:
    """Rows by regime and photos given; then, over all regimes, of the triggers that no small perturbation imitates."""
    mine = [r for r in records if r["detector"] == Contrast.name and not failed(r["model"])]
    rows = []
    for name, belongs in REGIMES.items():
        for shots in sorted({r.get("shots", 0) for r in mine}):
            some = [r for r in mine if belongs(r["model"]) and r.get("shots", 0) == shots]
            rows += [row(name, shots, some)] if some else []
    for shots in sorted({r.get("shots", 0) for r in mine}):
        shaped = [r for r in mine if r["model"]["attack"] in ("clean", *SHAPED) and r.get("shots", 0) == shots]
        if any(r["model"]["attack"] in SHAPED for r in shaped):
            rows.append(row("frames, patches, blur, JPEG, in all regimes", shots, shaped))
    return rows


def row(name: str, shots: int, records: list[dict[str, Any]]) -> Row:
    found = rates([outcome(r) for r in records])

    def verdicts(poisoned: bool, verdict: str) -> int:
        return sum(r["result"]["verdict"] == verdict and outcome(r).poisoned == poisoned for r in records)

    return Row(
        name,
        shots,
        found.clean,
        found.poisoned,
        false_alarms=Share(found.false_alarms, found.clean),
        cleared=Share(verdicts(False, "clean"), found.clean),
        missed=Share(verdicts(True, "clean"), found.poisoned),
        found=Share(found.detected, found.poisoned),
        named=Share(found.named, found.detected),
        auroc=found.auroc,
        auroc_interval=found.auroc_interval,
    )
