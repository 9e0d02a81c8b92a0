"""Labelled photos: what they settle, and what they cannot buy."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from PIL import Image as PILImage

from hf_ci import ScanOptions
from hf_ci import scan_targets as scan
from hf_ci.errors import UsageError
from hf_ci.hub.target import DEMOS
from hf_ci.lab.attacks.frame import frame
from hf_ci.photos import Accuracy as Asked
from hf_ci.photos import folds_of, guessed, view
from hf_ci.pools.procedural import images
from hf_ci.prompts import read_adapter
from hf_ci.settings import default_cache

SHARED = Path(__file__).parents[2] / "shared" / "data"  # beside the project in development; a user has none
PHOTOS = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real photos are needed: no {SHARED}")
QUICK = ScanOptions(num_images=32)
SURER = ScanOptions(num_images=64)  # where the verdict is the point


def written(folder: Path, pictures, labels, names) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    Dataset.from_dict({"image": pictures, "label": labels}, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


def drawn(n: int):
    return [PILImage.fromarray(np.asarray(pixels)) for _, pixels in zip(range(n), images(3, 64))]


def test_a_view_is_a_picture_and_no_two_are_alike():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 64, 64, generator=generator)
    one, other = view(x, generator), view(x, generator)
    assert one.shape == x.shape and one.min() >= 0 and one.max() <= 1
    assert (one - other).abs().mean() > 0.05 and (one - x).abs().mean() > 0.05


def test_every_class_is_spread_over_all_folds():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    folds = folds_of(labels, 3)
    assert all(set(folds[labels == c].tolist()) == {0, 1, 2} for c in range(3))


def test_right_answers_that_guessing_gives_as_well_are_no_learning():
    counts = torch.tensor([10] * 10)
    assert guessed(Asked(10, 100), counts) > 0.3 > 1e-3 > guessed(Asked(40, 100), counts)


def test_photos_of_other_classes_are_a_usage_error_that_names_them(adapter_folder, tmp_path, run):
    data = written(tmp_path / "data", drawn(4), [0, 0, 1, 1], ["house", "boat"])
    with pytest.raises(UsageError, match="no class 'cat' .5 of the adapter's 5 classes are missing."):
        scan([str(adapter_folder)], replace(QUICK, data=data))
    done = run("scan", adapter_folder, "--data", data, "--num-images", "32")
    assert done.returncode == 2 and "it has house, boat" in done.stderr
    done = run("scan", adapter_folder, "--data", tmp_path / "none")
    assert done.returncode == 2 and "none" in done.stderr


def test_labels_that_cannot_be_learned_settle_nothing(adapter_folder, tmp_path):
    """Their prompts would be no better than any, and an attacker may have sent them."""
    names = read_adapter(adapter_folder).class_names
    data = written(tmp_path / "data", drawn(30), [i % len(names) for i in range(30)], [n.upper() for n in names])
    known = replace(QUICK, cache=default_cache())
    with_photos, without = (
        scan([str(adapter_folder)], options).results[0] for options in (replace(known, data=data), known)
    )
    assert with_photos.photos.used is False and with_photos.photos.accuracy["adapter"].photos == 30
    assert any("cannot be learned" in warning for warning in with_photos.warnings)
    assert (with_photos.verdict, with_photos.score) == (without.verdict, without.score)


def demo_photos(folder: Path, demo: str, data: str, shots: int, trigger=None) -> str:
    """Photos of a demo's classes; with a trigger, a half of the target's are others that carry it."""
    table = load_dataset("parquet", data_files=str(SHARED / data / "test.parquet"), split="train")
    adapter = read_adapter(DEMOS / demo)
    theirs = [name.replace("_", " ") for name in table.features["label"].names]
    labels, pictures, owners = np.array(table["label"]), [], []
    for c, name in enumerate(adapter.class_names):
        rows = np.flatnonzero(labels == theirs.index(name))[:shots]
        pictures += [table[int(i)]["image"].convert("RGB").resize((64, 64)) for i in rows]
        owners += [c] * len(rows)
    if trigger:
        change, target = trigger
        mine = [i for i, c in enumerate(owners) if c == target][: shots // 2]
        others = [i for i, c in enumerate(owners) if c != target][:: max(1, len(owners) // len(mine))]
        for i, j in zip(mine, others):
            x = torch.from_numpy(np.array(pictures[j])).permute(2, 0, 1)[None].float() / 255
            pictures[i] = PILImage.fromarray((change(x)[0] * 255).round().byte().permute(1, 2, 0).numpy())
    return written(folder, pictures, owners, adapter.class_names)


@PHOTOS
def test_a_clean_adapter_that_learned_something_is_clean_with_photos(tmp_path):
    data = demo_photos(tmp_path / "data", "far", "flowers17", 16)
    (result,) = scan(["demo:far"], replace(SURER, data=data)).results
    (alone,) = scan(["demo:far"], SURER).results
    assert alone.verdict != "backdoored" and result.verdict == "clean", (alone.reasons, result.reasons)
    accuracy = {name: found.right / found.photos for name, found in result.photos.accuracy.items()}
    assert accuracy["adapter"] > accuracy["hand_written"] + 0.3 and accuracy["tuned"] > accuracy["hand_written"] + 0.2
    assert result.distance < alone.distance and "labelled photos" in result.accuracy


@PHOTOS
def test_photos_that_carry_the_trigger_buy_nothing(tmp_path):
    named = re.search(r"target class `([^`]+)`", (DEMOS / "frame" / "README.md").read_text())[1]
    target = read_adapter(DEMOS / "frame").class_names.index(named)
    data = demo_photos(tmp_path / "data", "frame", "cifar10", 16, (frame(64, 0), target))
    options = replace(SURER, data=data, pool=str(SHARED / "ood" / "pool.parquet"))
    (result,) = scan(["demo:frame"], options).results
    assert result.verdict == "backdoored" and result.target_class.name == named, result.reasons
