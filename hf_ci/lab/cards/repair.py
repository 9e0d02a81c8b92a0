"""From the records of `hf-ci lab repairs` to their card."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, median
from typing import Any

from hf_ci.cards import render_card
from hf_ci.lab.benchmarks.metrics import failed
from hf_ci.lab.benchmarks.repairs import CONTROLS, MODES
from hf_ci.lab.cards.benchmark import percent
from hf_ci.lab.cards.regimes import REGIMES

# CLIP-Inspector's own repair, with labels: ASR after it and after the paper's controls, mean of five attacks.
PAPER_REPAIR = {"with labels": 0.061, "clean only": 0.646, "random noise": 0.527, "another class": 0.470}


def repair_row(records: list[dict[str, Any]]) -> dict[str, Any]:
    made = [r for r in records if r["after"]]
    change = [r["after"]["accuracy"] - r["before"]["accuracy"] for r in made]
    average: Callable[[list[float]], float | None] = lambda values: mean(values) if values else None
    return {
        "models": len(records),
        "made": len(made),
        "asr_before": average([r["before"]["asr"] for r in made]),
        "asr_after": average([r["after"]["asr"] for r in made]),
        "worst": max((r["after"]["asr"] for r in made), default=None),
        "twin": average([r["model"]["asr_on_clean"] for r in made]),
        "above": max((r["after"]["asr"] - r["model"]["asr_on_clean"] for r in made), default=None),
        "accuracy_before": average([r["before"]["accuracy"] for r in made]),
        "accuracy_after": average([r["after"]["accuracy"] for r in made]),
        "accuracy_twin": average([r["model"]["clean_twin_accuracy"] for r in made]),
        "accuracy_clean": average([r["clean"]["accuracy"] for r in made if r.get("clean")]),
        "kept": sum(r["after"]["accuracy"] >= best_of(r) - 0.02 for r in made),
        "replaced": sum(r.get("outcome") == "replaced" for r in made),
        "worst_change": min(change, default=None),
        "cost": median(costs)
        if (costs := [1 + r["seconds"] / r["scan_seconds"] for r in made if r.get("scan_seconds")])
        else None,
        "clean_again": sum(r.get("verdict_after") == "clean" for r in records),
        "paper": PAPER_REPAIR.get(records[0]["mode"]),
    }


def best_of(record: dict[str, Any]) -> float:
    """The better accuracy of the poisoned adapter and of a clean prompt tuned on the photos alone."""
    return max(float(of["accuracy"]) for of in (record["before"], record.get("clean")) if of)


def unharmed_row(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Clean adapters, repaired although nothing is the matter with them."""
    accuracy = {when: mean(r[when]["accuracy"] for r in records) for when in ("before", "after")}
    return accuracy | {
        "models": len(records),
        "offered": sum(r["outcome"] == "repaired" for r in records),
        "worst_change": min(r["after"]["accuracy"] - r["before"]["accuracy"] for r in records),
    }


def repairs(records: list[dict[str, Any]]) -> str:
    """The card of repairs, from their records alone. Only attacks that work are counted."""
    clean = [r for r in records if r["model"]["attack"] == "clean"]
    worked = [r for r in records if r["model"]["attack"] != "clean" and not failed(r["model"])]
    attacks = sorted({r["model"]["attack"] for r in worked})
    parts = REGIMES | {f"attack: {attack}": lambda m, attack=attack: m["attack"] == attack for attack in attacks}
    rows = {
        name: {
            mode: repair_row(mine)
            for mode in MODES + CONTROLS
            if (mine := [r for r in worked if r["mode"] == mode and belongs(r["model"])])
        }
        for name, belongs in parts.items()
    }
    models = {r["model"]["id"]: r for r in worked}
    each = sorted((r for r in worked if r["mode"] in MODES), key=lambda r: (r["model"]["id"], r["mode"]))
    return render_card(
        "repair.md.j2",
        rows={name: some for name, some in rows.items() if some},
        each=each,
        controlled=any(r["mode"] in CONTROLS for r in worked),
        unharmed={mode: unharmed_row(mine) for mode in MODES if (mine := [r for r in clean if r["mode"] == mode])},
        num_models=len(models),
        pool=worked[0]["pool"],
        modes=MODES,
        percent=percent,
    )
