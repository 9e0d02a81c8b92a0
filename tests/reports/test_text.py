"""The report in a terminal: what to do comes first, nothing is said twice, and every line fits."""

import re
import shlex

import pytest

from hf_ci.console import columns
from hf_ci.errors import AdapterError
from hf_ci.report import (
    MADE_POOL,
    VULNERABLE_CLASSES,
    BaseModelRef,
    ClassScore,
    NamedClass,
    PhotosRef,
    PoolRef,
    Report,
    ScanResult,
    Settings,
    Suppression,
    Timing,
    failed,
)
from hf_ci.reports import render

LONG = "a class with a very long name that no table of sixty columns has any room for, such as this one"
WHY = "a reconstructed frame drives 97% of unrelated images into it through this adapter alone"
SETTLE = "what would settle it: --data with 4 to 16 labelled photos of each of its classes"


def scanned(verdict, target, name="frog", reasons=(WHY,), **more) -> ScanResult:
    names = (name, "cat", LONG, "dog", "emu")
    classes = tuple(
        ClassScore(
            index=i,
            name=each,
            loss=-1.25,
            asr=0.9,
            score=9.0 - 2 * i,
            flagged=verdict == "backdoored" and i == 0,
            reference_asr=0.6 if each == "cat" else 0.1,
            family="frame",
            others={"frame": 0.97},
        )
        for i, each in enumerate(names)
    )
    return ScanResult(
        target=target,
        verdict=verdict,
        reasons=reasons,
        classes=classes,
        target_class=NamedClass(index=0, name=name) if verdict == "backdoored" else None,
        warnings=(MADE_POOL, f"{VULNERABLE_CLASSES}: 'cat' (a perturbation forces most images into it)"),
        looked_for=("a frame around the image",),
        not_looked_for=("an object",),
        num_classes=len(names),
        method="coop",
        pool=PoolRef(id="builtin", num_images=256, fingerprint="f", skipped=0, duplicates=0),
        base_model=BaseModelRef(id="hf-ci-clip-64", revision="0123456789"),
        settings=Settings(num_images=256, seed=0, precision="fp32", device="cpu", inversion={"kind": "Contrast"}),
        timing=Timing(date="2026-01-02", seconds=1, num_processes=1, classes_from_cache=0),
        exit_code={"clean": 0, "backdoored": 1, "inconclusive": 4}[verdict],
    ).model_copy(update=more)


@pytest.fixture
def all_kinds() -> Report:
    results = (
        scanned("clean", "demo:clean"),
        scanned("backdoored", "demo:frame"),
        scanned("backdoored", f"./{'long/' * 30}adapter", LONG),
        scanned("inconclusive", "./模型/適配器", reasons=("neither clean nor backdoored for certain", SETTLE)),
        failed("./broken", AdapterError("adapter_config.json is not readable JSON", "the file is damaged")),
    )
    return Report(results=results, notes=("a remark that is far too long for a line of sixty letters, " * 3,))


def text(report: Report, **shown) -> str:
    return render(report, "text", True, **shown)


@pytest.mark.parametrize("detail", ["quiet", "normal", "verbose"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_fits_and_nothing_is_lost(width, detail, all_kinds, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = text(all_kinds, detail=detail)
    too_long = [line for line in shown.splitlines() if len(line) > columns()]
    assert columns() < width and too_long == ["    ./" + "long/" * 30 + "adapter \\"][: len(too_long)]
    joined = re.sub(r"\s", "", shown)
    assert "long/" * 30 + "adapter" in joined and "…" in shown  # a class's name in a line that has to stay one
    if detail != "quiet":
        cells = re.findall(r"^  (.{4,40}?)(?:  |$)", shown, re.M)  # the first column, which folds
        assert all(any(word in cell.split() for cell in cells) for word in LONG.split())
        assert all(r.fingerprint in joined for r in all_kinds.results if r.fingerprint)


def test_what_to_do_comes_before_why_and_why_before_the_numbers(all_kinds):
    for result, lead in zip(
        all_kinds.results,
        (
            "Nothing stood out. It is no proof",
            "Do not deploy this adapter: a trigger sends images to 'frog'.",
            "Do not deploy this adapter: a trigger sends images to 'a class with a very long name…",
            "Not decided: never treat it as clean, and give --data with 4 to 16 photos of each class.",
            "Not judged: never treat it as clean.",
        ),
    ):
        shown = " ".join(text(Report(results=(result,))).split())
        assert 0 < shown.index(lead[:60]) < shown.index("Why: "), shown
        if result.verdict == "backdoored":
            assert shown.index("Why: ") < shown.index("class score ASR loss")
        assert SETTLE not in shown and "class score" in shown or result.verdict != "backdoored"
    photos = PhotosRef(id="p", fingerprint="f", fewest=4, used=True, accuracy={"adapter": {"right": 1, "photos": 4}, "hand_written": {"right": 1, "photos": 4}})  # fmt: skip
    asked = scanned("inconclusive", "a", reasons=("unsure", SETTLE), photos=photos)
    assert "Not decided, with these photos either" in text(Report(results=(asked,)))
    other = scanned("inconclusive", "a", reasons=("weights that were not judged lie beside the adapter",))
    assert "--data" not in text(Report(results=(other,)))


def test_the_command_that_repairs_is_one_for_a_shell(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    given = {"base": "./my clip", "data": "./photos", "shots": 16}
    found = scanned("backdoored", "./my adapter; rm -rf ~")
    found = found.model_copy(update={"settings": found.settings.model_copy(update={"given": given})})
    shown = text(Report(results=(found,)))
    line = re.search(r"    hf-ci repair (?:.*\\\n)*.*", shown)[0]
    expected = ["hf-ci", "repair", "./my adapter; rm -rf ~", "--out", "repaired", "--data", "./photos", "--base"]
    assert shlex.split(line.replace("\\\n", "")) == [*expected, "./my clip"] and "\\\n" in line


def test_what_is_usual_is_said_once_and_short(all_kinds):
    shown = " ".join(text(all_kinds).split())
    assert shown.count("built-in pool") == 1 and shown.count("Vulnerable on the base model") == 1
    assert VULNERABLE_CLASSES not in shown and MADE_POOL not in shown
    assert shown.count("Looked for:") == shown.count("Not looked for:") == 1
    verbose = " ".join(text(all_kinds, detail="verbose").split())
    assert VULNERABLE_CLASSES in verbose and MADE_POOL in verbose
    assert all(MADE_POOL in r.warnings for r in all_kinds.results if r.classes)  # every result has them


def test_quiet_is_a_line_each_and_verbose_has_every_class_and_the_settings():
    report = Report(results=(scanned("clean", "demo:clean"), scanned("backdoored", "demo:frame")))
    assert [re.sub(r"\.{3,}", " ", line) for line in text(report, detail="quiet").splitlines()] == [
        "demo:clean clean",
        "demo:frame backdoored (frog)",
        "2 scanned: 1 clean, 1 backdoored (frog)",
    ]
    normal, verbose = text(report), text(report, detail="verbose")
    assert not re.search(r"^  emu ", normal, re.M) and len(re.findall(r"^  emu ", verbose, re.M)) == 2
    assert "Inversion: kind Contrast" in verbose and "Inversion" not in normal


@pytest.mark.parametrize("count", [0, 8, 40])
def test_notes_that_are_left_out_are_counted(count):
    notes = tuple(f"org/model-{i} was left out" for i in range(count))
    shown = text(Report(results=(), notes=notes))
    assert shown.count("was left out") == min(count, 8) and ("Note: 32 more (--verbose)" in shown) == (count == 40)
    assert text(Report(results=(), notes=notes), detail="verbose").count("was left out") == count
    assert shown.endswith("0 scanned\n")


def test_only_the_verdict_is_in_colour_and_letters_of_others_bring_none():
    red, plain = "\x1b[31m\x1b[1mbackdoored\x1b[0m", lambda line: re.sub("\x1b\\[[0-9;]*m", "", line)
    why = Suppression(kind="ignore", reason="for a talk", until="2030-01-31")
    hostile = scanned("backdoored", "./a\x1b[32m....clean", "x...clean\x1b[1m")
    for result in (hostile, hostile.model_copy(update={"suppressed": why})):
        report = Report(results=(result,))
        shown = text(report, colour=True)
        assert shown.count("\x1b") == red.count("\x1b") and red in shown.splitlines()[0]
        assert plain(shown) == text(report) and "\x1b" not in text(report)


def test_the_last_line_counts_and_names():
    bad = [scanned("backdoored", f"./{i}", f"class {i}") for i in range(7)]
    ignored = bad[0].model_copy(update={"suppressed": Suppression(kind="baseline", reason="known")})
    line = text(Report(results=(scanned("clean", "a"), ignored, *bad[1:]))).split("\n\n")[-1]
    named = "class 0, class 1, class 2, class 3, class 4 and 2 more"
    assert " ".join(line.split()) == f"8 scanned: 1 clean, 7 backdoored ({named}); 1 ignored"
