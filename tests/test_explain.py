"""hf-ci explain: the evidence as numbers, the null, and what speaks against the verdict."""

import json
import shutil
from dataclasses import asdict

import pytest

from hf_ci.detect.calibration import shipped
from hf_ci.errors import UsageError
from hf_ci.explain import explain
from hf_ci.hub.target import DEMOS
from hf_ci.report import BaseModelRef, ClassScore, DetectorRef, NamedClass, PoolRef, ScanResult, Settings

NULL = shipped()["photos"]


def result(verdict="backdoored", score=6.0, reference=0.7, base="hf-ci-clip-64", images=256, precision=NULL.precision):
    scores = [("frog", score, verdict == "backdoored"), ("cat", 0.5, False), ("dog", 0.0, False)]
    return ScanResult(
        target="a",
        verdict=verdict,
        reasons=("because",),
        exit_code=1,
        num_classes=3,
        classes=tuple(
            ClassScore(index=i, name=n, loss=1, asr=0.9, score=s, flagged=f, reference_asr=reference)
            for i, (n, s, f) in enumerate(scores)
        ),
        target_class=NamedClass(index=0, name="frog"),
        detector=DetectorRef(
            name="contrast",
            calibration=NULL.describe(),
            thresholds={"k": 3.0, "doubtful": 2.0},
            fitted=json.loads(json.dumps(asdict(NULL))),
        ),
        settings=Settings(num_images=images, seed=0, precision=precision, device="cpu", inversion={}),
        base_model=BaseModelRef(id=base, revision=None),
        pool=PoolRef(id="photos", num_images=images, fingerprint="f", skipped=0, duplicates=0),
    )


def test_every_class_stands_beside_the_null(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = explain(result())
    frog, cat = (next(line for line in text.splitlines() if line.startswith(f"  {n} ")) for n in ("frog", "cat"))
    assert "forced through this adapter alone" in frog and f"{NULL.p_value(6.0, 3):.1g}" in frog
    assert "vulnerable" in cat and f"{NULL.p_value(0.5, 3):.1g}" in cat
    assert "the worst class scores 6.00, the next 0.50, the median 0.50" in " ".join(text.split())
    assert "hf-ci scan a --detector contrast" in text


def test_doubts_are_named_where_there_are_some():
    flat = lambda r: " ".join(explain(r).split())
    assert "'frog' is also forced through clean prompts for 70%" in flat(result())
    assert "Nothing that is known here." in flat(result(reference=0.1))
    other = "bf16" if NULL.precision == "fp32" else "fp32"
    assert f"measured in {NULL.precision}, this scan computed in {other}" in flat(result(precision=other))
    assert "measured with 256 images, this scan had 64" in flat(result(images=64))
    assert "unusual, not beyond doubt" in flat(result("inconclusive", score=2.5))
    assert "is not looked for" in flat(result("clean", score=0.1))


def test_without_a_measurement_there_is_nothing_to_explain():
    failed = ScanResult(target="a", verdict="inconclusive", reasons=("no such base",), exit_code=4)
    assert "nothing to explain" in explain(failed)


def test_a_report_of_before_has_no_null_and_one_with_a_made_up_null_is_refused():
    old, bad = result(), result()
    old = old.model_copy(update={"detector": old.detector.model_copy(update={"fitted": None})})
    assert "p-value" not in explain(old)
    bad = bad.model_copy(
        update={"detector": bad.detector.model_copy(update={"fitted": bad.detector.fitted | {"sd": 0}})}
    )
    with pytest.raises(UsageError, match="the report's null: sd"):
        explain(bad)


def test_a_report_without_its_circumstances_is_not_explained():
    bare = result("clean", score=0.1).model_copy(update={"detector": None})
    assert "nothing to explain" in explain(bare)


def test_a_demo_is_explained_from_a_scan_and_not_from_what_lies_beside_it(run, tmp_path):
    shutil.copytree(DEMOS / "clean", tmp_path / "own")
    (tmp_path / "own" / ".hf-ci").mkdir()
    (tmp_path / "own" / ".hf-ci" / "report.json").write_text("believe me")
    done = run("explain", "./own", env={"HF_CI_NUM_IMAGES": "32"})
    assert done.returncode == 0 and "Signals, worst class first" in done.stdout
    assert "measured with 256 images, this scan had 32" in " ".join(done.stdout.split())
