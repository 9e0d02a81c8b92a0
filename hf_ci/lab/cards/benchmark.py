"""From a benchmark's JSON lines to its card: nothing here measures, and nothing is typed in but the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from hf_ci.cards import render_card
from hf_ci.detect import DETECTORS, ClipInspector, Contrast
from hf_ci.lab.benchmarks.metrics import Rates, failed, outcome, rates, roc_points
from hf_ci.lab.cards.methods import method_rows
from hf_ci.lab.cards.regimes import regimes
from hf_ci.lab.cards.signals import CLIP_INSPECTOR, of_this_version, telling
from hf_ci.settings import ScanOptions

SIZES = {"up to 7 classes": 7, "8 to 10": 10, "11 to 20": 20, "21 to 50": 50, "more": 10**9}
ATTRIBUTABLE = 0.3  # ASR above that of the same trigger on the clean twin

# CLIP-Inspector on ViT-B/16, as transcribed second-hand from the paper's experiments.
PAPER_DETECTORS = {
    "clip-inspector": {"accuracy": 0.94, "balanced_accuracy": 0.925, "auroc": 0.973, "target_f1": 0.92},
    "neural-cleanse": {"accuracy": None, "balanced_accuracy": None, "auroc": 0.495, "target_f1": 0.06},
    "pixel-backdoor": {"accuracy": None, "balanced_accuracy": None, "auroc": 0.687, "target_f1": 0.42},
}
PAPER_ATTACKS = {  # seen accuracy, seen ASR, unseen accuracy, unseen ASR
    "clean": (0.8219, None, 0.7029, None),
    "badclip": (0.8173, 0.9904, 0.6888, 0.9670),
    "blended": (0.8168, 0.9973, 0.6708, 0.9765),
    "siba": (0.7591, 0.6630, 0.6758, 0.5218),
    "wanet": (0.8208, 0.9252, 0.6658, 0.8164),
}


def percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f}"


def figure(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


def attributable(model: dict[str, Any]) -> bool:
    return model["attack"] == "clean" or bool(model["asr"] - model["asr_on_clean"] >= ATTRIBUTABLE)


def size(model: dict[str, Any]) -> str:
    return next(name for name, most in SIZES.items() if model["classes"] <= most)


def split(records: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        parts.setdefault(key(record["model"]), []).append(record)
    return parts


def rates_of(records: list[dict[str, Any]]) -> Rates:
    return rates([outcome(record) for record in records])


def by(records: list[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> list[tuple[str, Rates]]:
    return [(name, rates_of(part)) for name, part in split(records, key).items()]


def attack_row(models: list[dict[str, Any]]) -> dict[str, Any]:
    def average(name: str) -> float | None:
        values = [m[name] for m in models if m.get(name) is not None]
        return mean(values) if values else None

    names = ("accuracy", "clean_twin_accuracy", "asr", "asr_on_clean", "unseen_accuracy", "unseen_asr")
    worked = [m for m in models if not failed(m)]
    return dict(
        models=len(models),
        worked=len(worked),
        attributable=sum(attributable(m) for m in worked),
        paper=PAPER_ATTACKS.get(models[0]["attack"]),
        **{name: average(name) for name in names},
    )


def detector_rows(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One detector's records in every view that the card shows."""
    counted = [r for r in records if not failed(r["model"])]
    free = dict.fromkeys(("image_forward", "image_backward", "text_forward"), 0)
    costs = [r["result"]["cost"] or free for r in counted or records]  # of models whose attacks failed, too, if all did
    return {
        "counted": counted,
        "all": rates_of(counted),
        "attributable": rates_of([r for r in counted if attributable(r["model"])]),
        "on_failed": rates_of([r for r in records if failed(r["model"])]),
        "by_attack": by(counted, lambda m: m["attack"]),
        "by_data": by(counted, lambda m: m["data"]),
        "by_size": sorted(by(counted, size), key=lambda row: SIZES[row[0]]),
        "image_forward": mean(c["image_forward"] for c in costs),
        "image_backward": mean(c["image_backward"] for c in costs),
        "text_forward": mean(c["text_forward"] for c in costs),
        "seconds": median(seconds) if (seconds := [s for r in counted if (s := measured_seconds(r))]) else None,
        "missed": [r["model"] for r in counted if outcome(r).poisoned and not outcome(r).flagged],
        "alarms": [r for r in counted if not outcome(r).poisoned and outcome(r).flagged],
    }


def measured_seconds(record: dict[str, Any]) -> float | None:
    """How long a scan took; None where a part of it came from the cache."""
    timing = record["result"]["timing"]
    return None if timing["classes_from_cache"] else timing["seconds"]


def is_exact(record: dict[str, Any]) -> bool:
    return bool(record["result"]["settings"]["inversion"].get("exact", False))


def exact_and_fast(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The default detector with every class inverted whole beside its scans in rounds, on the same models and pool."""
    key: Callable[[dict[str, Any]], tuple[object, ...]] = lambda r: (
        r["model"]["id"],
        *(r["result"]["pool"][name] for name in ("fingerprint", "num_images")),
    )
    mine = [r for r in records if r["detector"] == Contrast.name and not failed(r["model"]) and of_this_version(r)]
    fast = {key(r): r for r in mine if not is_exact(r)}
    pairs = [(fast[key(r)], r) for r in mine if is_exact(r) and key(r) in fast]
    pairs = [pair for pair in pairs if None not in (r["result"]["score"] for r in pair)]
    if not pairs:
        return None
    scores = [tuple(r["result"]["score"] for r in pair) for pair in pairs]
    return {
        "models": len(pairs),
        "fast": rates_of([f for f, _ in pairs]),
        "exact": rates_of([e for _, e in pairs]),
        "differ": [(f, e) for f, e in pairs if f["result"]["verdict"] != e["result"]["verdict"]],
        "same_score": sum(f == e for f, e in scores),
        "largest": max(abs(f - e) for f, e in scores),
    }


def over_all(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By pool: every model that was scanned with the product's own settings, once, whatever its group."""
    pools: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        plain = not is_exact(record) and not record.get("shots")  # what photos bring is in the table of regimes
        if record["result"]["pool"]["num_images"] == ScanOptions.num_images and plain:
            pools.setdefault(record["result"]["pool"]["id"], []).append(record)
    overall = {}
    for pool, mine in pools.items():
        once = {(r["detector"], r["model"]["id"]): r for r in mine}.values()
        parts = {name: [r for r in once if r["detector"] == name] for name in DETECTORS}
        overall[pool] = {name: detector_rows(part) for name, part in parts.items() if part}
    return overall


def roc(records: list[dict[str, Any]]) -> str:
    """ROC curves as SVG, of every detector over the models that it scanned without photos."""
    curves = {}
    for name in DETECTORS:
        counted = [r for r in records if r["detector"] == name and not failed(r["model"])]
        mine = [r for r in counted if not r.get("shots")]
        found = rates_of(mine)
        if found.auroc is not None:
            curves[name] = (roc_points([outcome(r) for r in mine]), found)
    return render_card("roc.svg.j2", curves=curves)


def benchmark(records: list[dict[str, Any]], methods: Sequence[dict[str, Any]] = ()) -> str:
    """The card of a benchmark, from its records alone. methods: those of methods that no thresholds were measured on, which
    are in a table of their own and in no other."""
    records = sorted(records, key=lambda r: (r["group"], r["model"]["id"], r["detector"], r.get("shots", 0)))
    everything, records = records, [r for r in records if not r.get("shots")]
    groups = {}
    for group in sorted({r["group"] for r in records}, key=lambda g: (g != "table", g)):
        mine = [r for r in records if r["group"] == group]
        models = list({r["model"]["id"]: r["model"] for r in mine}.values())
        detectors = sorted({r["detector"] for r in mine})
        groups[group] = {
            "models": models,
            "pool": mine[0]["result"]["pool"],
            "attacks": {
                name: attack_row([m for m in models if m["attack"] == name])
                for name in sorted({m["attack"] for m in models}, key=lambda a: (a != "clean", a))
            },
            "failed": [m for m in models if failed(m)],
            "detectors": {name: detector_rows([r for r in mine if r["detector"] == name]) for name in detectors},
            "signals": telling([r for r in mine if r["detector"] == ClipInspector.name], CLIP_INSPECTOR)
            if group == "table"
            else [],
        }
    one = records[0]["result"]
    return render_card(
        "benchmark.md.j2",
        groups=groups,
        overall=over_all(records),
        regimes=regimes(everything),
        methods=method_rows(list(methods)),
        exactness=exact_and_fast(records),
        paper=PAPER_DETECTORS,
        base=one["base_model"],
        precision=one["settings"]["precision"],
        num_models=len({r["model"]["id"] for r in everything}),
        num_scans=len(everything),
        percent=percent,
        figure=figure,
    )
