"""Fit the contrast detector's null on a benchmark's clean models."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from hf_ci.detect.calibration import Calibration, fit, kind_of
from hf_ci.errors import UsageError
from hf_ci.hub.target import sha256
from hf_ci.lab.bench import read_records


def calibrate(path: Path) -> dict[str, Calibration]:
    """By kind of pool, from the clean models among the records of one base model, one pool a kind, one class count."""
    clean = [r for r in read_records(path) if r["model"]["attack"] == "clean" and r["detector"] == "contrast"]
    kind = lambda result: kind_of(result["pool"]["id"])  # noqa: E731
    results = sorted((r["result"] for r in clean if r["result"]["score"] is not None), key=kind)
    if not results:
        raise UsageError(
            f"{path}: no clean models scanned with contrast", "name what hf-ci lab bench calibration wrote"
        )
    return {name: one(path, list(some)) for name, some in groupby(results, kind)}


def one(path: Path, results: list[dict]) -> Calibration:
    grounds = {
        (r["base_model"]["id"], r["base_model"]["revision"], r["pool"]["fingerprint"], r["num_classes"])
        for r in results
    }
    if len(grounds) != 1:
        raise UsageError(
            f"{path}: clean models on {len(grounds)} combinations of base model, pool and number of classes",
            "expected one for photos and one for the built-in pool",
        )
    base, pool = results[0]["base_model"], results[0]["pool"]
    try:
        return fit(
            [r["score"] for r in results],
            pool["num_images"],
            results[0]["num_classes"],
            pool=pool["id"],
            base_model=base["id"],
            base_revision=base["revision"],
            records_sha256=sha256(path),
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "add seeds to the specification") from error
