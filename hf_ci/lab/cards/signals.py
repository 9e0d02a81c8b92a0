"""What each signal that a detector looks at would tell by itself, from a benchmark's records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from hf_ci.detect import ClipInspector, Contrast
from hf_ci.lab.benchmarks.metrics import auroc, failed

Signals = dict[
    str, Callable[[dict[str, Any]], float]
]  # of a class, as a report has it; the largest of a model's is its score

CONTRAST: Signals = {
    "share through the adapter, references or not": lambda c: 0.0 if c["screened"] else c["asr"],
    "share through the adapter alone": lambda c: 0.0 if c["screened"] else c["exclusive_asr"],
    "wide perturbations": lambda c: c["others"].get("wide perturbation", 0.0),
    "frames": lambda c: c["others"].get("frame", 0.0),
    "patches": lambda c: c["others"].get("patch", 0.0),
    "probes": lambda c: c["probe_asr"] or 0.0,
    "the score: their excesses over the peers, in deviations, those of perturbations together": lambda c: c["score"],
}
CLIP_INSPECTOR: Signals = {
    "the score: A_c, of classes that pass the gate": lambda c: c["score"] * (c["asr"] >= ClipInspector.min_asr),
    "A_c, no gate": lambda c: c["score"],
    "ASR, no outlier test": lambda c: c["asr"],
    "loss, no outlier test": lambda c: -c["loss"],
}


def of_this_version(record: dict[str, Any]) -> bool:
    """Whether the default detector scanned as it does now."""
    now = asdict(Contrast().inverter(0))
    then = record["result"]["settings"]["inversion"]
    return all(then.get(name, "missing") == value for name, value in now.items() if name != "seed")


def telling(records: list[dict[str, Any]], signals: Signals) -> list[dict[str, Any]]:
    """A row a signal, of the models whose attack works: AUROC, in all and by attack against the same clean models; how many
    poisoned ones score above every clean one, and in how many the target does most of all classes."""
    records = [r for r in records if r["result"]["score"] is not None and not failed(r["model"])]
    rows = []
    for name, signal in signals.items():
        poisoned: dict[str, list[float]] = {}
        clean, right = [], 0
        for record in records:
            values, target = [signal(c) for c in record["result"]["classes"]], record["model"]["target"]
            if target is None:
                clean.append(max(values))
            else:
                poisoned.setdefault(record["model"]["attack"], []).append(max(values))
                right += values.index(max(values)) == target
        if clean and poisoned:
            everyone = [value for values in poisoned.values() for value in values]
            compared = {"all": everyone} | dict(sorted(poisoned.items()))
            found = {which: auroc(np.array(clean), np.array(values)) for which, values in compared.items()}
            above = sum(value > max(clean) for value in everyone)
            rows.append({"name": name, "auroc": found, "above": above, "right": right, "poisoned": len(everyone)})
    return rows
