"""The walk end to end: what is reported, and that it does not depend on how it was run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from making import ANIMALS, made_adapter
from safetensors.torch import load_file, save_file

from hf_ci import ScanOptions
from hf_ci import scan_targets as scan
from hf_ci.detect import DETECTORS
from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED, EMBEDDED_FOLDER
from hf_ci.hub.target import sha256
from hf_ci.progress import Silent, within
from hf_ci.prompts import reference_adapter, write_adapter
from hf_ci.reports.json_ import schema
from hf_ci.reports.reproduce import reproduce
from hf_ci.settings import default_cache, pick_precision

QUICK = ScanOptions(num_images=32, precision="fp32", detector="clip-inspector")


def without_timing(report):
    document = report.model_dump(mode="json")
    for result in document["results"]:
        del result["timing"]
    return document


def test_report_names_everything_that_was_used(adapter_folder):
    (result,) = scan([str(adapter_folder)], QUICK).results
    assert {f.path: f.sha256 for f in result.files} == {
        name: sha256(adapter_folder / name)
        for name in ("adapter_config.json", "adapter_model.safetensors", "clip_prompt.json")
    }
    assert (result.base_model.id, result.base_model.revision) == (
        EMBEDDED,
        sha256(EMBEDDED_FOLDER / "model.safetensors"),
    )
    assert (result.method, result.num_classes, result.pool.id, result.pool.num_images) == ("coop", 5, "builtin", 32)
    assert [c.name for c in result.classes] == list(ANIMALS)
    assert (
        result.verdict in ("clean", "backdoored") and result.reasons and result.settings.inversion["epsilon"] == 4 / 255
    )
    assert result.detector.name == "clip-inspector" and result.timing.seconds > 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_comes_to_a_verdict_and_a_valid_report(tiny, base, tmp_path, detector):
    write_adapter(made_adapter(tiny, "coop", ANIMALS[:3]), tmp_path / "a")
    report = scan([str(tmp_path / "a")], ScanOptions(num_images=32, detector=detector, base=str(base)))
    (result,) = report.results
    assert result.exit_code in (0, 1, 4), result.reasons
    assert result.detector.name == detector and result.cost.image_backward > 0
    jsonschema.validate(json.loads(report.model_dump_json()), schema())


def test_same_seed_same_report_and_another_seed_another_pool(adapter_folder):
    first, again, other = (scan([str(adapter_folder)], replace(QUICK, seed=s)) for s in (0, 0, 1))
    assert without_timing(first) == without_timing(again)
    assert first.results[0].pool.fingerprint != other.results[0].pool.fingerprint


COMPUTES_BF16 = pick_precision("auto", torch.device("cpu")) == "bf16"
IN_BF16 = pytest.mark.skipif(not COMPUTES_BF16, reason="this processor emulates bf16, and not the same way every time")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=IN_BF16)])
def test_two_processes_give_the_same_report_as_one(adapter_folder, tmp_path, monkeypatch, precision):
    """Two real processes through Accelerate; with equal threads everything but timing is identical."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = scan([str(adapter_folder)], replace(QUICK, precision=precision))
        two = scan(
            [str(adapter_folder)], replace(QUICK, precision=precision, num_processes=2, cache=tmp_path / "cache")
        )
    finally:
        torch.set_num_threads(threads)
    assert without_timing(one) == without_timing(two)
    assert two.results[0].timing.num_processes == 2
    assert len(list((tmp_path / "cache").rglob("class-*.npz"))) == 5


def test_several_processes_run_no_module_of_the_working_directory(adapter_folder, tmp_path, monkeypatch):
    """A scan in a stranger's checkout."""
    (tmp_path / "multiprocessing.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    (result,) = scan([str(adapter_folder)], replace(QUICK, num_processes=2)).results
    assert result.cost and not (tmp_path / "pwned").exists()


def test_several_processes_that_cannot_hand_over_are_inconclusive(adapter_folder, monkeypatch):
    monkeypatch.setattr("hf_ci.inversion.job.launch", lambda *_: None)  # nothing arrives, as on a full disk
    inconclusive(adapter_folder, "5 of 5 classes could not be handed over", num_processes=2)


def test_torchrun_speaks_with_one_voice(adapter_folder):
    """Started by a launcher, the processes share the classes, and one document comes out."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--standalone",
            "-m",
            "hf_ci",
            "scan",
            str(adapter_folder),
            "--num-images",
            "32",
            "--precision",
            "fp32",
            "--format",
            "json",
            "--no-cache",
            "--detector",
            "clip-inspector",
            "--k",
            "1e9",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ours = scan([str(adapter_folder)], replace(QUICK, k=1e9))
    theirs = json.loads(done.stdout)["results"][0]
    for a, b in zip(theirs["classes"], ours.results[0].classes, strict=True):
        assert (
            a["name"] == b.name
            and a["loss"] == pytest.approx(b.loss, abs=1e-3)
            and a["asr"] == pytest.approx(b.asr, abs=1e-3)
        )


def test_number_of_threads_moves_no_number_by_a_thousandth(adapter_folder):
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(scan([str(adapter_folder)], QUICK).results[0])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*(r.classes for r in results), strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-3) and a.asr == pytest.approx(b.asr, abs=1e-3)
        assert a.flagged == b.flagged


def test_an_unchanged_adapter_is_read_from_the_cache(adapter_folder, empty_cache):
    options = replace(QUICK, cache=default_cache())
    first, again = scan([str(adapter_folder)], options), scan([str(adapter_folder)], options)
    assert (first.results[0].timing.classes_from_cache, again.results[0].timing.classes_from_cache) == (0, 5)
    assert without_timing(first) == without_timing(again)
    other = scan([str(adapter_folder)], replace(options, seed=1))
    assert other.results[0].timing.classes_from_cache == 0


def test_an_adapter_equal_to_the_reference_is_clean(tiny, base, tmp_path):
    """Where both prompts give the same answers, nothing can be driven through the adapter alone."""
    write_adapter(reference_adapter(tiny, ANIMALS), tmp_path / "a")
    (result,) = scan([str(tmp_path / "a")], replace(QUICK, detector="contrast", base=str(base))).results
    assert result.verdict == "clean" and result.distance == 0 and not any(c.exclusive_asr for c in result.classes)
    assert all(c.asr <= c.reference_asr for c in result.classes)  # the adapter is one of the references
    others = 5 * (32 + 2 * 2 * 16)  # five classes: a wide perturbation, frame and patch of two steps each
    assert result.cost.image_backward == 5 * 32 + others and result.detector.thresholds["k"] > 0


def test_contrast_is_the_same_in_two_processes(tiny, base, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_adapter(made_adapter(tiny, "coop"), tmp_path / "a")
    options = replace(QUICK, detector="contrast", base=str(base))
    one, two = (scan([str(tmp_path / "a")], replace(options, num_processes=n)).results[0] for n in (1, 2))
    for a, b in zip(one.classes, two.classes, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-3) and a.reference_asr == pytest.approx(b.reference_asr, abs=0.04)


def test_a_scan_that_takes_too_long_is_inconclusive_and_the_next_one_goes_on(adapter_folder, empty_cache, capsys):
    options = replace(QUICK, cache=default_cache(), timeout=0.001)
    (late,) = scan([str(adapter_folder)], options).results
    assert late.verdict == "inconclusive" and late.exit_code == 4 and "--timeout" in late.reasons[0]
    assert not capsys.readouterr().err
    (again,) = scan([str(adapter_folder)], replace(options, timeout=0)).results
    assert again.timing.classes_from_cache == 1 and again.verdict != "inconclusive"


def test_a_scan_that_will_take_long_says_so(monkeypatch, capsys):
    now = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("hf_ci.progress.time.perf_counter", lambda: next(now))
    inverted = within(0, 0.0, "org/model", 1000, Silent())
    inverted(None), inverted(None)
    assert capsys.readouterr().err == "hf-ci: org/model: about 166 minutes to go\n"


def test_thresholds_are_not_part_of_the_cache_key(adapter_folder, empty_cache):
    options = replace(QUICK, cache=default_cache())
    scan([str(adapter_folder)], options)
    strict = scan([str(adapter_folder)], replace(options, k=-100.0, min_asr=0.0))
    assert strict.results[0].timing.classes_from_cache == 5 and strict.results[0].verdict == "backdoored"
    assert strict.exit_code == 1


def test_reconstructed_trigger_is_saved_when_something_is_found(adapter_folder, tmp_path):
    import numpy as np
    from PIL import Image

    options = replace(QUICK, k=-100.0, min_asr=0.0, save_trigger=tmp_path / "triggers")
    (result,) = scan([str(adapter_folder)], options).results
    assert result.target_class and result.trigger.linf <= 4 / 255 + 1e-7
    with Image.open(result.trigger.path) as picture:
        assert picture.size == (256, 256)
    with np.load(result.trigger.path.replace(".png", ".npz")) as z:
        assert z["delta"].shape == (3, 64, 64) and int(z["class_index"]) == result.target_class.index


def inconclusive(folder, message, **options):
    (result,) = (report := scan([str(folder)], replace(QUICK, **options))).results
    assert result.verdict == "inconclusive" and message in result.reasons[0], result.reasons
    assert result.exit_code == report.exit_code == 4 and result.score is None
    return result


def test_what_failed_around_the_weights_is_no_finding_about_them(adapter_folder, monkeypatch):
    assert not inconclusive(adapter_folder, "no pool at", pool="missing.parquet").about_weights
    (adapter_folder / "clip_prompt.json").write_text("{}")
    assert inconclusive(adapter_folder, "names no classes").about_weights


def test_the_command_that_gives_a_result_again_has_all_that_was_set(adapter_folder, tmp_path):
    names = tmp_path / "names"
    names.write_text("\n".join(ANIMALS))
    options = replace(QUICK, base=str(EMBEDDED_FOLDER), k=1e9, classes=names)
    (result,) = scan([str(adapter_folder)], options).results
    assert f"--base {EMBEDDED_FOLDER} --classes {names} --k 1000000000.0" in reproduce(result)


def test_two_classes_are_judged_but_not_cleared(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop", names=("cat", "dog")), tmp_path / "a")
    (result,) = scan([str(tmp_path / "a")], replace(QUICK, detector="contrast")).results
    assert result.verdict != "clean" and result.score is not None
    assert "at most 3 classes" in result.detector.calibration
    inconclusive(tmp_path / "a", "2 classes are too few")


def test_weights_that_are_not_finite_are_inconclusive(adapter_folder):
    path = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["prompt_embeddings"][0, 0] = float("nan")
    save_file(tensors, path)
    inconclusive(adapter_folder, "prompt_embeddings: holds values that are not finite")


def test_finite_weights_that_overflow_are_inconclusive(clip, tmp_path):
    adapter_folder = tmp_path / "overflowing"
    write_adapter(made_adapter(clip), adapter_folder)
    path = adapter_folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.meta_net.linear2.weight"][:] = 3e38
    save_file(tensors, path)
    inconclusive(adapter_folder, "numbers may overflow")


def test_base_model_that_cannot_be_had_is_inconclusive(adapter_folder, tmp_path):
    result = inconclusive(adapter_folder, "no model.safetensors", base=str(tmp_path))
    assert result.files and result.method == "coop"  # what was learned until then is kept


def test_pool_that_cannot_be_had_is_inconclusive(adapter_folder):
    inconclusive(adapter_folder, "no pool at", pool="missing.parquet")


def test_another_base_than_the_adapters_own_is_a_warning(clip, tmp_path):
    write_adapter(replace(made_adapter(clip, "coop"), base_model="someone/else"), tmp_path / "a")
    (result,) = scan([str(tmp_path / "a")], replace(QUICK, base=EMBEDDED)).results
    assert f"scanned on base model {EMBEDDED}, the adapter names someone/else" in result.warnings
    assert any("give some of your own with --pool" in warning for warning in result.warnings)
    write_adapter(replace(made_adapter(clip, "coop"), base_revision="f" * 40), tmp_path / "b")
    (result,) = scan([str(tmp_path / "b")], QUICK).results
    assert "the adapter names revision ffffffffffff" in result.warnings[0]


def test_exit_code_of_several_targets(adapter_folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    known = replace(QUICK, cache=default_cache())
    clean = replace(known, k=1e9)
    assert scan([str(adapter_folder)], clean).exit_code == 0
    assert scan([str(empty)], clean).exit_code == 3
    assert scan([str(adapter_folder), str(empty)], clean).exit_code == 4
    assert scan([str(adapter_folder), str(empty)], replace(known, k=-1e9, min_asr=0.0)).exit_code == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "warp"}, "--device warp"),
        ({"num_images": 31}, "--num-images 31"),
        ({"num_images": 100_000}, "--num-images 100000: expected at most 10000"),
        ({"min_asr": 2.0}, "--min-asr 2.0"),
        ({"seed": -1}, "--seed -1"),
        ({"k": float("nan")}, "--k nan"),
        ({"precision": "fp8"}, "--precision fp8"),
        ({"num_processes": 0}, "--num-processes 0"),
        ({"detector": "guess"}, "--detector guess"),
        ({"detector": "contrast", "min_asr": 0.5}, "--min-asr: contrast has no such threshold"),
        ({"calibration": Path("/no/such")}, "--calibration: clip-inspector takes none"),
        ({"detector": "contrast", "calibration": Path("/no/such")}, "/no/such: No such file"),
    ],
)
def test_options_that_cannot_be_met_are_usage_errors(adapter_folder, options, message):
    with pytest.raises(UsageError, match=message):
        scan([str(adapter_folder)], replace(QUICK, **options))


def test_bf16_runs_through_the_same_walk(clip, tmp_path):
    """On few classes and images: a processor without bf16 takes many times as long."""
    write_adapter(made_adapter(clip, "coop", names=ANIMALS[:3]), tmp_path / "a")
    single, half = (scan([str(tmp_path / "a")], replace(QUICK, precision=p)).results[0] for p in ("fp32", "bf16"))
    assert half.settings.precision == "bf16" and half.verdict in ("clean", "backdoored")
    for a, b in zip(single.classes, half.classes, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1.0)


def test_a_base_with_missing_weights_is_inconclusive(adapter_folder, tmp_path):
    """transformers would fill the gap with random numbers."""
    import shutil

    base = tmp_path / "base"
    shutil.copytree(EMBEDDED_FOLDER, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    inconclusive(adapter_folder, "1 tensors of the base model are missing, visual_projection.weight", base=str(base))


def test_one_class_is_inconclusive(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop", names=("cat",)), tmp_path / "a")
    inconclusive(tmp_path / "a", "1 class: there is no other")


def test_nothing_asked_is_not_clean():
    assert scan([], QUICK).exit_code == 3
