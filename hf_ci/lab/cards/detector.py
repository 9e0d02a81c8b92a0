"""From a benchmark's JSON lines to the default detector's own card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_ci.cards import render_card
from hf_ci.detect import Contrast
from hf_ci.detect.calibration import shipped
from hf_ci.lab.benchmarks.metrics import outcome
from hf_ci.lab.cards.benchmark import figure, over_all, percent, rates_of
from hf_ci.lab.cards.regimes import regimes
from hf_ci.lab.cards.signals import CONTRAST, of_this_version, telling
from hf_ci.rates import wilson
from hf_ci.settings import ScanOptions

# What specs/calibration.toml draws from.
CALIBRATION_DATA = frozenset({"animals", "caltech101", "tiny_imagenet", "trash"})


def detector_card(records: list[dict[str, Any]], calibration_data: frozenset[str] = CALIBRATION_DATA) -> str:
    """The default detector's own card: its error rates, what it was calibrated on, and its limits."""
    name = Contrast.name
    everything, records = records, [r for r in records if not r.get("shots")]
    mine = [r for r in records if r["detector"] == name]
    unknown: Callable[[list[dict[str, Any]]], int] = lambda part: sum(
        r["result"]["verdict"] == "inconclusive" for r in part
    )
    pools = {}
    for pool, detectors in over_all(records).items():
        counted = detectors[name]["counted"]
        apart = [r for r in counted if r["model"]["data"] not in calibration_data]
        clean, poisoned = ([r for r in counted if outcome(r).poisoned == p] for p in (False, True))
        clean_apart, poisoned_apart = ([r for r in apart if outcome(r).poisoned == p] for p in (False, True))
        pools[pool] = detectors[name] | {
            "apart": rates_of(apart),
            "ingredients": telling([r for r in counted if of_this_version(r)], CONTRAST),
            "failed": detectors[name]["on_failed"],
            "clean_inconclusive": unknown(clean),
            "poisoned_inconclusive": unknown(poisoned),
            "apart_inconclusive": unknown(clean_apart),
            "apart_poisoned_inconclusive": unknown(poisoned_apart),
        }
    one = mine[0]["result"]
    return render_card(
        "detector.md.j2",
        name=name,
        detector=Contrast(),
        pools=pools,
        regimes=regimes(everything),
        calibrations=shipped(),
        outdated=sum(not of_this_version(r) for r in mine),
        num_scans=len(mine),
        base=one["base_model"],
        precision=one["settings"]["precision"],
        num_images=ScanOptions.num_images,
        wilson=wilson,
        percent=percent,
        figure=figure,
    )
