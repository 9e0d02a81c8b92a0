"""Fit the contrast detector's null on a benchmark's clean models, and specify such models for any base and data."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ci import __version__
from hf_ci.detect import Contrast
from hf_ci.detect.calibration import FEW_CLASSES, Calibration, PoolKind, fit, kind_of, variant
from hf_ci.detect.contrast import STANDS_FOR, TOO_FAR, excess, shares
from hf_ci.errors import Inconclusive, UsageError
from hf_ci.hub.names import BUILTIN, is_folder
from hf_ci.hub.target import sha256
from hf_ci.inversion.job import VERSION
from hf_ci.lab.benchmarks.bench import Group, Spec
from hf_ci.lab.benchmarks.records import read_records
from hf_ci.lab.benchmarks.rejudge import inversions_of
from hf_ci.lab.making.tune import Recipe
from hf_ci.lab.making.zoo import ModelSpec, name_of
from hf_ci.pools.photos import class_names_of

FIRST_SEED = 401  # as in specs/calibration.toml: no benchmark's
PROMPTS = (  # in turns: how far clean adapters are from hand-written prompts has to vary
    {"method": "coop", "epochs": 40},
    {"method": "cocoop"},
    {"method": "coop", "class_specific": True, "epochs": 40},
    {"method": "kgcoop"},
    {"method": "coop", "epochs": 1},
)


def clean_models(
    base: str, data: Sequence[str], pools: Sequence[str], models: int, classes: int, shots: int, num_images: int
) -> Spec:
    """A group of clean prompts for each pool, named by its kind: the data sets and the kinds of prompts take turns, and
    the classes are drawn anew for each seed.

    Raises UsageError for a data set that cannot be used, and for two pools of one kind.
    """
    kinds = Counter(map(kind_of, pools))
    if max(kinds.values()) > 1:
        raise UsageError(f"--pool {', '.join(pools)}: two pools of one kind", "name one of photos, 'builtin', or both")
    sources = [whole(source) for source in data]
    for source in sources:
        if (found := len(class_names_of(source))) < classes:
            raise UsageError(f"--data {source} has {found} classes, --classes asks for {classes}", "ask for fewer")
    specs = []
    for i in range(models):
        seed = FIRST_SEED + i // len(sources)
        recipe = Recipe(shots=shots, seed=seed, **PROMPTS[i % len(PROMPTS)])
        specs.append(ModelSpec(sources[i % len(sources)], classes, recipe=recipe, split_seed=seed, base=whole(base)))
    where = {kind_of(pool): pool if pool == BUILTIN else whole(pool) for pool in pools}
    groups = (
        Group(kind, tuple(specs), (Contrast.name,), pool, num_images, base=whole(base)) for kind, pool in where.items()
    )
    return Spec("auto", tuple(groups))


def whole(name: str) -> str:
    """A folder or a file here by its whole path, so that it is the same from everywhere; anything else as it is."""
    return str(Path(name).resolve()) if is_folder(name) or os.path.isfile(name) else name


def records_of(spec: Spec, zoo: Path) -> Path:
    """Where the records of these models are kept: another specification, or another detector, has another file."""
    digest = hashlib.sha256(repr((spec, __version__, VERSION)).encode()).hexdigest()
    return zoo / f"calibration-{digest[:12]}.jsonl"


def check_complete(spec: Spec, path: Path) -> None:
    """Raises Inconclusive when a model has no score: what is left would no longer be drawn at random."""
    scored = {(r["group"], r["model"]["id"]) for r in read_records(path) if r["result"]["score"] is not None}
    missing = [m.id for group in spec.groups for m in group.models if (group.name, m.id) not in scored]
    if missing:
        raise Inconclusive(
            f"{len(missing)} clean models could not be scanned, such as {missing[0]}",
            f"the same command goes on; what scans found is in {path}",
        )


def calibrate(path: Path) -> dict[str, Calibration]:
    """By kind of pool and of adapter, from the clean models among the records of one base model, one pool a kind, one
    class count, beside which there may be models of few classes."""
    clean = [r for r in read_records(path) if r["model"]["attack"] == "clean" and r["detector"] == "contrast"]
    judged = [r for r in clean if r["result"]["score"] is not None]
    if not judged:
        raise UsageError(
            f"{path}: no clean models scanned with contrast", "name what hf-ci lab bench calibration wrote"
        )
    groups: dict[tuple[PoolKind, bool], list[dict[str, Any]]] = {}
    for record in judged:
        few = record["result"]["num_classes"] <= FEW_CLASSES
        groups.setdefault((kind_of(record["result"]["pool"]["id"]), few), []).append(record)
    nulls: dict[str, Calibration] = {}
    for (kind, few), everything in sorted(groups.items()):
        few = few and (kind, False) in groups  # where all have few classes, theirs is the one null for all
        shared = [r for r in everything if not r["model"].get("class_specific")]
        nulls[kind + variant(False, few)] = one(path, shared)
        nulls[kind + variant(True, few)] = one(path, everything)
    return {name: with_own(null, nulls.get(name.replace(BUILTIN, "photos"))) for name, null in nulls.items()}


def with_own(null: Calibration, photos: Calibration | None) -> Calibration:
    """What an adapter's own photos show depends on no pool: where a null was fitted without any, it takes that of `photos`."""
    own = {family: photos.usual[family] for family in STANDS_FOR if photos and family in photos.usual}
    return replace(null, usual=own | null.usual)


def excesses_of(result: dict[str, Any]) -> dict[str, np.ndarray]:
    """By family of triggers that a verdict knows, the excesses (C,) of the classes in a report."""
    return {family: excess(share) for family, share in shares(inversions_of(result)).items()}


def one(path: Path, records: list[dict[str, Any]]) -> Calibration:
    results = [r["result"] for r in records]
    base, pool, precision = results[0]["base_model"], results[0]["pool"], results[0]["settings"]["precision"]
    grounds = {
        (
            r["base_model"]["id"],
            r["base_model"]["revision"],
            r["pool"]["fingerprint"],
            max(r["num_classes"], FEW_CLASSES),
            r["settings"]["precision"],
        )
        for r in results
    }
    if len(grounds) != 1:
        raise UsageError(
            f"{path}: clean models on {len(grounds)} combinations of base model, pool, number of classes and precision",
            "expected one for photos and one for the built-in pool",
        )
    try:
        records = [r for r in records if r["result"]["distance"] < TOO_FAR]  # further ones are not judged
        results = [r["result"] for r in records]
        return fit(
            [excesses_of(r) for r in results],
            [r["distance"] for r in results],
            [r["model"]["data"] for r in records],
            max(r["num_classes"] for r in results),
            num_images=pool["num_images"],
            pool=pool["id"],
            base_model=name_of(base["id"]),
            base_revision=base["revision"],
            records_sha256=sha256(path),
            precision=precision,
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "add seeds to the specification") from error
