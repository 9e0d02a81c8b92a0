"""An unchanged adapter is answered from what was found before, and from nothing else."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from making import made_adapter

from hf_ci.files import WEIGHTS
from hf_ci.hub import fetch_base, fetch_text
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import sha256
from hf_ci.prompts import read_adapter, write_adapter
from hf_ci.recall import place_of, scan_each, setting_of
from hf_ci.settings import ScanOptions, default_cache

QUICK = {"num_images": 32, "precision": "fp32", "detector": "clip-inspector"}


@pytest.fixture
def options(tmp_path):
    return ScanOptions(cache=tmp_path / "cache", **QUICK)


def place(folder, options):
    return place_of(lambda: fetch_text(str(folder)), fetch_base, options, setting_of(options))


def test_the_second_time_needs_no_torch_and_says_the_same(adapter_folder, tmp_path, run):
    command = ("scan", adapter_folder, "--num-images", "32", "--cache", tmp_path / "cache", "--format", "json")
    first, second = (json.loads(run(*command).stdout) for _ in range(2))
    (one,), (two,) = first["results"], second["results"]
    assert two["timing"]["classes_from_cache"] == 5 and one["timing"]["classes_from_cache"] == 0
    assert two["timing"]["date"] == one["timing"]["date"] and two["timing"]["seconds"] < one["timing"]["seconds"]
    assert {k: v for k, v in one.items() if k != "timing"} == {k: v for k, v in two.items() if k != "timing"}
    code = (
        "import sys; sys.argv = ['hf-ci', *sys.argv[1:]]\nfrom hf_ci.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "sys.stderr.write(str([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
    assert done.stderr == "[]" and json.loads(done.stdout)["results"][0]["verdict"] == one["verdict"]


def test_whatever_a_result_depends_on_changes_its_place(adapter_folder, clip, options, tmp_path, monkeypatch):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.png").write_bytes(b"a")
    (tmp_path / "names").write_text("a\nb\n")
    (tmp_path / "null").write_text("one")
    known = {place(adapter_folder, options)}
    for change in (
        {"seed": 1},
        {"num_images": 33},
        {"detector": "contrast"},
        {"k": 3.0},
        {"precision": "auto"},
        {"device": "cpu"},
        {"pool": str(tmp_path / "pool")},
        {"classes": tmp_path / "names"},
        {"calibration": tmp_path / "null"},
    ):
        found = place(adapter_folder, replace(options, **change))
        assert found is not None and found not in known, change
        known.add(found)
    for same in ({"num_processes": 2}, {"save_trigger": tmp_path}):
        assert place(adapter_folder, replace(options, **same)) in known
    (tmp_path / "null").write_text("two")
    assert place(adapter_folder, replace(options, calibration=tmp_path / "null")) not in known
    pooled = replace(options, pool=str(tmp_path / "pool"))
    (tmp_path / "pool" / "b.png").write_bytes(b"b")
    assert place(adapter_folder, pooled) not in known
    write_adapter(made_adapter(clip, "coop", seed=1), tmp_path / "other")
    assert place(tmp_path / "other", options) not in known
    monkeypatch.setattr("hf_ci.recall.code", lambda: ["another release"])
    assert place(adapter_folder, options) not in known


def test_what_auto_is_decided_by_changes_the_place(adapter_folder, options, monkeypatch):
    """A cache may be shared by machines with and without a GPU, or bf16."""
    auto, fixed = replace(options, precision="auto"), replace(options, device="cpu")
    here = [place(adapter_folder, o) for o in (auto, options, fixed)]
    monkeypatch.setattr("hf_ci.recall.machine", lambda: ["another"])
    there = [place(adapter_folder, o) for o in (auto, options, fixed)]
    assert here[0] != there[0] and here[1] != there[1] and here[2] == there[2]


def test_what_cannot_be_compared_is_scanned(adapter_folder, options, monkeypatch):
    assert place(adapter_folder, replace(options, cache=None)) is None
    assert place(adapter_folder, replace(options, pool="org/data")) is None
    assert place(adapter_folder, replace(options, base="/no/such")) is None
    assert place(adapter_folder, replace(options, calibration=Path("/no/such"))) is None
    (adapter_folder / "adapter_config.json").write_text("[]")
    assert place(adapter_folder, options) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert place(adapter_folder, options) is None


def test_no_base_model_is_fetched_for_another_kind_of_adapter(tmp_path, options):
    """It may be a language model of 140 GB."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "org/llama-70b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    asked = []
    fetched = fetch_text(str(tmp_path))
    assert place_of(lambda: fetched, lambda *base: asked.append(base), options, setting_of(options)) is None
    assert not asked


def test_a_failure_is_not_kept_and_a_damaged_file_is_scanned_anew(adapter_folder, options):
    weights = adapter_folder / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(b"damaged")
    (bad,) = scan_each([str(adapter_folder)], options)
    assert bad.exit_code == 4 and not list(options.cache.rglob("results/*.json"))
    weights.write_bytes(good)
    (first,) = scan_each([str(adapter_folder)], options)
    (kept,) = options.cache.rglob("results/*.json")
    kept.write_text("{")
    (again,) = scan_each([str(adapter_folder)], options)
    assert again.verdict == first.verdict and json.loads(kept.read_text())["verdict"] == first.verdict


FOUND = ScanOptions(num_images=64)  # of the poisoned demo, which other tests scan so, too


def test_a_picture_that_is_asked_for_is_made(tmp_path):
    settings = replace(FOUND, k=4.1, cache=default_cache())  # its own threshold, so that the result is its own
    (without,) = scan_each(["demo:frame"], settings)
    (with_one,) = scan_each(["demo:frame"], replace(settings, save_trigger=tmp_path))
    assert without.trigger is None and with_one.verdict == without.verdict == "backdoored"
    assert list(tmp_path.glob("*.png")) and with_one.timing.classes_from_cache == 10


def test_no_report_names_a_picture_that_is_gone(run, tmp_path):
    command = ("scan", "demo:frame", "--num-images", "64", "--k", "4.2", "--output", f"json={tmp_path / 'r.json'}")
    done = run(*command, "--output", f"html={tmp_path / 'r.html'}")
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert result["trigger"]["path"] == "" and "Reconstructed trigger" not in done.stdout
    assert (tmp_path / "r.html").read_text().count("data:image/png") == 8
    done = run(*command, "--save-trigger", tmp_path / "kept")
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert Path(result["trigger"]["path"]).is_file() and "Reconstructed trigger" in done.stdout


def test_another_base_is_another_place(adapter_folder, options, tmp_path):
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "base")
    there = replace(options, base=str(tmp_path / "base"))
    known = {place(adapter_folder, options), place(adapter_folder, there)}
    config = tmp_path / "base" / "preprocessor_config.json"
    config.write_text(config.read_text().replace("{", '{"made": "other", ', 1))
    assert len(known) == 2 and place(adapter_folder, there) not in known


def test_a_folder_that_changes_while_it_is_scanned_is_not_judged(adapter_folder, clip, options, tmp_path, monkeypatch):
    """The weights are swapped when those of the target before it are done."""
    write_adapter(made_adapter(clip, "coop", seed=1), tmp_path / "first")
    write_adapter(made_adapter(clip, "coop", seed=2), tmp_path / "other")
    scans = scan_each([str(tmp_path / "first"), str(adapter_folder)], options)
    next(scans)
    (adapter_folder / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    (second,) = scans
    assert second.weights_sha256 == sha256(tmp_path / "other" / WEIGHTS)

    def swapped(folder, names):
        """Others are read than were hashed, and than lie there afterwards."""
        shutil.copy(tmp_path / "first" / WEIGHTS, adapter_folder)
        found = read_adapter(folder, names)
        shutil.copy(tmp_path / "other" / WEIGHTS, adapter_folder)
        return found

    monkeypatch.setattr("hf_ci.checkpoints.read.read_adapter", swapped)
    (third,) = scan_each([str(adapter_folder)], replace(options, seed=1))
    assert third.exit_code == 4 and "changed while they were read" in third.reasons[0]


def test_without_room_for_the_result_nothing_is_lost(adapter_folder, options, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_ci.recall.write_whole", full)
    (result,) = scan_each([str(adapter_folder)], options)
    assert result.cost is not None and not list(options.cache.rglob("results/*.json"))


def test_an_internal_error_after_the_inversions_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ci.demonstration.save_trigger", lambda *_, **__: 1 / 0)
    settings = replace(FOUND, k=4.3, cache=default_cache(), save_trigger=tmp_path)
    (result,) = scan_each(["demo:frame"], settings)
    assert result.exit_code == 5 and result.cost is not None
    assert not place("demo:frame", settings).exists()
