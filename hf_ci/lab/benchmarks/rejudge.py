"""Verdicts anew from what scans found: when thresholds are fitted anew, nothing has to be inverted again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from hf_ci.certain import certain
from hf_ci.detect import Contrast, Verdict
from hf_ci.detect.calibration import Calibration
from hf_ci.detect.verdict import unmeasured
from hf_ci.inversion import Inversion
from hf_ci.report import ClassScore, NamedClass
from hf_ci.scan import EXIT_CODES

NO_TRIGGER = torch.empty(0)  # records hold none


def rejudge(records: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each record as a scan of today's thresholds would have it. Those of other detectors stay as they are, and so does a
    clean adapter that was left undecided for something else than its classes: what that was, no record holds."""
    for record in records:
        result = record["result"]
        if record["detector"] != Contrast.name or result["distance"] is None:
            yield record
            continue
        class_specific, num_classes = bool(record["model"]["class_specific"]), len(result["classes"])
        detector = Contrast.for_pool(result["pool"]["id"]).for_adapter(class_specific, num_classes)
        then = replace(detector, null=Calibration.of(result["detector"]["fitted"]))
        before = judged(then, result)
        doubted = before.verdict == "clean" and result["verdict"] == "inconclusive"
        now = judged(detector, result)
        fitted = asdict(detector.null)
        reference = result["detector"] | {
            "calibration": result["detector"]["calibration"].replace(then.calibration, detector.calibration),
            "thresholds": detector.thresholds(len(result["classes"]), result["distance"]),
            "fitted": fitted | {"distances": list(fitted["distances"]), "data": list(fitted["data"])},
        }
        verdict = "inconclusive" if doubted and now.verdict == "clean" else now.verdict
        families = now.families or [None] * len(now.scores)
        classes = [
            c | {"score": round(score, 6), "flagged": flag, "family": family}
            for c, score, flag, family in zip(result["classes"], now.scores, now.flagged, families)
        ]
        target = (
            None if now.target is None else NamedClass(index=now.target, name=classes[now.target]["name"]).model_dump()
        )
        found = {
            "verdict": verdict,
            "score": round(certain(now.score), 6),
            "classes": classes,
            "target_class": target,
            "detector": reference,
            "exit_code": EXIT_CODES[verdict],
        }
        yield record | {"result": result | found}


def judged(detector: Contrast, result: dict[str, Any]) -> Verdict:
    names = [c["name"] for c in result["classes"]]
    return unmeasured(detector.judge(inversions_of(result), names, result["distance"]), result["method"], names)


def inversions_of(result: dict[str, Any]) -> list[Inversion]:
    """Of a report's classes, what a verdict needs to know."""
    classes = [ClassScore.model_validate(c) for c in result["classes"]]
    families = dict.fromkeys(family for c in classes for family in c.others)
    return [inversion(c, families) for c in classes]


def inversion(c: ClassScore, families: Iterable[str]) -> Inversion:
    """As a verdict needs it: a class that was only screened for a family has no share there."""
    others = tuple(
        Inversion(c.index, 0.0, 0.0, NO_TRIGGER, exclusive_asr=c.others.get(family, 0.0), family=family)
        for family in families
    )
    shares: dict[str, Any] = {
        "reference_asr": c.reference_asr,
        "exclusive_asr": c.exclusive_asr,
        "probe": c.probe,
        "probe_asr": c.probe_asr,
    }
    return Inversion(c.index, c.loss, c.asr, NO_TRIGGER, screened=c.screened, others=others, **shares)
