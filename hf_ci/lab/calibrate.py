"""Fit the contrast detector's null on a benchmark's clean models."""

from __future__ import annotations

from pathlib import Path

from hf_ci.detect.calibration import Calibration, fit
from hf_ci.errors import UsageError
from hf_ci.hub.target import sha256
from hf_ci.lab.bench import read_records


def calibrate(path: Path, false_alarm: float) -> Calibration:
    """From the clean models among the records of one base model, pool and number of images."""
    clean = [r for r in read_records(path) if r["model"]["attack"] == "clean" and r["detector"] == "contrast"]
    results = [r["result"] for r in clean if r["result"]["score"] is not None]
    grounds = {(r["base_model"]["id"], r["base_model"]["revision"], r["pool"]["fingerprint"]) for r in results}
    if len(grounds) != 1:
        raise UsageError(
            f"{path}: clean models scanned with contrast on {len(grounds)} combinations of base model and pool",
            "expected one; name the JSON lines of hf-ci lab bench calibration",
        )
    base, pool = results[0]["base_model"], results[0]["pool"]
    try:
        return fit(
            [r["score"] for r in results],
            pool["num_images"],
            false_alarm,
            pool=pool["id"],
            base_model=base["id"],
            base_revision=base["revision"],
            records_sha256=sha256(path),
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "add seeds to the specification") from error
