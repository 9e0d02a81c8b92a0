"""hf-ci calibrate: thresholds measured on a base model of one's own, and what a scan makes of them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from deep import save_tiny_clip
from making import ANIMALS, made_adapter

from hf_ci import ScanOptions
from hf_ci import scan_targets as scan
from hf_ci.detect import Contrast
from hf_ci.detect.calibration import read
from hf_ci.errors import Inconclusive
from hf_ci.explain import explain
from hf_ci.hub.base import EMBEDDED
from hf_ci.hub.target import sha256
from hf_ci.lab.benchmarks.calibrate import check_complete, clean_models
from hf_ci.lab.benchmarks.records import read_records
from hf_ci.prompts import write_adapter

FEW = ("--models", "8", "--classes", "3", "--shots", "2", "--num-images", "32", "--num-processes", "1")
QUICK = ScanOptions(num_images=32)


@pytest.fixture
def small(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop", ANIMALS[:3]), tmp_path / "small")
    return str(tmp_path / "small")


@pytest.fixture
def smaller(tiny, tmp_path):
    """On the other base."""
    write_adapter(made_adapter(tiny, "coop", ANIMALS[:3]), tmp_path / "smaller")
    return str(tmp_path / "smaller")


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("bases") / "my-clip")


@pytest.fixture(scope="module")
def calibrated(data, other_base, tmp_path_factory):
    """The file, written once from the beginning and once more when all was done."""
    out = tmp_path_factory.mktemp("calibrated") / "mine.json"
    command = [sys.executable, "-m", "hf_ci", "calibrate", "--base", other_base, "--data", data, "--out", out, *FEW]
    first, again = (subprocess.run([*map(str, command)], capture_output=True, text=True) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout.count("accuracy") == 8 and again.stdout.count("accuracy") == 0
    return out


def test_the_file_says_what_it_was_fitted_on_and_the_records_lie_in_the_zoo(calibrated, other_base):
    null = read(calibrated)["builtin"]
    (records,) = calibrated.with_name("mine.json.zoo").glob("calibration-*.jsonl")
    assert (null.base_model, null.base_revision) == ("my-clip", sha256(other_base / "model.safetensors"))
    assert (null.data, null.clean_models, null.num_classes, null.num_images) == (("tinted",), 6, 3, 32)
    assert (null.pool, null.records_sha256) == ("builtin", sha256(records)) and null.precision in ("fp32", "bf16")
    found = read_records(records)
    assert len({tuple(c["name"] for c in r["result"]["classes"]) for r in found}) > 1  # classes are drawn anew
    assert "/" not in json.dumps([r["model"] for r in found])  # of no place on this machine


def test_on_the_base_that_it_was_fitted_on_the_thresholds_are_measured_and_elsewhere_transferred(
    calibrated, other_base, small, smaller, tmp_path
):
    plain = replace(QUICK, cache=tmp_path / "cache")
    own = replace(plain, calibration=calibrated)
    measured, transferred, plain = (
        scan([adapter], options).results[0]
        for adapter, options in ((smaller, replace(own, base=str(other_base))), (small, own), (small, plain))
    )
    null = read(calibrated)["builtin"]
    for result in (measured, transferred):  # three classes are judged as an adapter that is far
        assert result.detector.thresholds["k"] == round(null.threshold(Contrast.false_alarm_far, 3), 3)
        assert result.detector.calibration_sha256 == sha256(calibrated)
    warning = f"the thresholds were fitted on my-clip@{null.base_revision[:7]} and are transferred to {EMBEDDED}@"
    assert measured.detector.measured and not any("transferred" in w for w in measured.warnings)
    assert transferred.detector.measured is False and any(w.startswith(warning) for w in transferred.warnings)
    assert measured.detector.calibration.endswith("measured on this base model")
    assert f"transferred to {EMBEDDED}@" in transferred.detector.calibration
    assert plain.detector.measured and plain.detector.calibration_sha256 is None
    shown = " ".join(explain(transferred).split())
    assert sha256(calibrated) in shown and warning in shown and "--calibration FILE" in shown
    assert "the one that ships with hf-ci" in " ".join(explain(plain).split())


def test_by_hand_nothing_is_measured_or_transferred(other_base, smaller):
    (result,) = scan([smaller], replace(QUICK, base=str(other_base), k=0.9)).results
    assert result.detector.measured is None and "set by hand" in result.detector.calibration
    assert not any("transferred" in w for w in result.warnings)


def test_a_scan_takes_the_file_from_flag_environment_and_configuration(calibrated, run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    for_others = ("scan", "demo:clean", "--pool", tmp_path / "photos", "--num-images", "32")
    (tmp_path / ".hf-ci.yaml").write_text(f"scan: {{calibration: {calibrated}}}\nadapters: ['demo:clean']\n")
    assert f'calibration: "{calibrated}"  # .hf-ci.yaml' in run("config").stdout
    shown = run("config", env={"HF_CI_CALIBRATION": "/no/such"}).stdout
    assert 'calibration: "/no/such"  # environment' in shown
    refused = run(*for_others)
    assert refused.returncode == 2 and f"{calibrated} holds a null for builtin" in refused.stderr
    refused = run("run", env={"HF_CI_CALIBRATION": "/no/such"})
    assert refused.returncode == 2 and "--calibration /no/such: No such file" in refused.stderr


def test_what_cannot_be_calibrated_is_refused_before_any_work(run, data, tmp_path):
    command = ("calibrate", "--base", EMBEDDED, "--data", data, "--out", tmp_path / "c.json", "--classes", "3")
    for more, message in (
        (("--classes", "5"), "has 4 classes, --classes asks for 5"),
        (("--pool", "a", "--pool", "b"), "two pools of one kind"),
        (("--data", tmp_path / "none"), f"--data {tmp_path}/none: no such file or folder"),
        (("--out", tmp_path / "none" / "c.json"), "cannot write in"),
    ):
        done = run(*command, *more)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("c.json*"))


def test_data_sets_take_turns_and_two_kinds_of_pool_are_two_groups(data, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    spec = clean_models(EMBEDDED, [str(data), str(other)], ["builtin", "photos.parquet"], 5, 3, 2, 32)
    models = spec.groups[0].models
    assert [(m.data, m.recipe.seed, m.split_seed) for m in models[:3]] == [
        (str(data), 401, 401),
        (str(other), 401, 401),
        (str(data), 402, 402),
    ]
    assert len(set(models)) == 5 and [g.name for g in spec.groups] == ["builtin", "photos"]
    with pytest.raises(Inconclusive, match="10 clean models could not be scanned"):
        check_complete(spec, tmp_path / "none.jsonl")
