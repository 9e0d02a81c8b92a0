"""Figures and pictures of README and docs are those of the records."""

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hf_ci.errors import UsageError
from hf_ci.lab.benchmarks.metrics import rates
from hf_ci.lab.cards import pictures
from hf_ci.lab.cards.docs import stale
from hf_ci.lab.cards.pages import pages, rendered
from hf_ci.lab.cards.regimes import gain
from hf_ci.lab.cli import app
from hf_ci.report import Report, ScanResult
from hf_ci.reports import FORMATS

ROOT = Path(__file__).parents[2]
BLOCK = "<!-- figures: {} -->\nold\n<!-- /figures -->\n"
MENTIONED = "Before, `<!-- figures: none -->` in prose.\n\n"
CHROMIUM = any(map(shutil.which, pictures.CHROMIUM))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of its own: two pages with figures, one without, and this project's records."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "cards").mkdir()
    for name in ("benchmark.jsonl", "repair.jsonl"):
        shutil.copy(ROOT / "cards" / name, tmp_path / "cards")
    (tmp_path / "README.md").write_text(MENTIONED + BLOCK.format("trust") + "\nAfter.\n")
    (tmp_path / "docs" / "a.md").write_text(BLOCK.format("regimes") + "\n" + BLOCK.format("repair"))
    (tmp_path / "docs" / "b.md").write_text("No figures.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def docs(*words):
    done = CliRunner().invoke(app, ["docs", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def records_of(name):
    return [json.loads(line) for line in (ROOT / "cards" / name).read_text().splitlines()]


def test_pages_are_rendered_from_records_and_checked(root):
    before = {path: path.read_text() for path in root.rglob("*.md")}
    assert docs("--check") == (1, "README.md: stale\ndocs/a.md: stale\n")
    assert before == {path: path.read_text() for path in root.rglob("*.md")}
    assert docs() == (0, "README.md: rendered\ndocs/a.md: rendered\n")
    assert docs("--check") == docs() == (0, "")
    readme, page = (root / "README.md").read_text(), (root / "docs" / "a.md").read_text()
    assert readme.startswith(MENTIONED + "<!-- figures: trust -->\n\n| adapters |") and readme.endswith("\n\nAfter.\n")
    assert "old" not in readme + page and (root / "docs" / "b.md").read_text() == "No figures.\n"
    records = root / "cards" / "benchmark.jsonl"
    records.write_text(records.read_text().replace('"verdict": "backdoored"', '"verdict": "clean"'))
    assert docs("--check") == (1, "README.md: stale\ndocs/a.md: stale\n")


def test_figures_are_those_that_a_count_gives(root):
    docs()
    readme, page = (root / "README.md").read_text(), " ".join((root / "docs" / "a.md").read_text().split())
    scans = [r for r in records_of("benchmark.jsonl") if r["detector"] == "contrast" and r["shots"] == 16]
    far = [r for r in scans if gain(r["model"]) >= 0.05 and not r["model"]["class_specific"]]
    clean = [r["result"]["verdict"] for r in far if r["model"]["attack"] == "clean"]
    poisoned = [r["result"]["verdict"] for r in far if r["model"].get("asr", 0) >= 0.5]
    cells = [
        f"{some.count(verdict)} of {len(some)}" for some, verdict in ((clean, "backdoored"), (poisoned, "backdoored"))
    ]
    assert f"| learned much | 16 | {' | '.join(cells)} | {poisoned.count('clean')} of {len(poisoned)} |" in readme
    assert 3 <= readme.count("\n| ") - 1 <= 5
    labelled = [r for r in records_of("repair.jsonl") if r["mode"] == "with labels" and r["model"].get("asr", 0) >= 0.5]
    made = [r for r in labelled if r["after"]]
    mean = lambda when: f"{100 * sum(r[when]['asr'] for r in made) / len(made):.0f}"
    assert f"Of {len(labelled)} poisoned adapters, " in page and f" {len(made)} of these repaired" in page
    assert f"ASR went from {mean('before')} to {mean('after')} % on average" in page


@pytest.mark.parametrize(
    "text, said",
    [
        (BLOCK.format("nothing"), "no figures 'nothing'"),
        ("<!-- figures: trust -->\n\nno end\n", "does not end"),
        ("<!-- /figures -->\n", "does not begin"),
        (BLOCK.format("trust").replace("old", "<!-- figures: repair -->"), "does not end"),
    ],
)
def test_blocks_that_cannot_be_rendered_are_told(root, text, said):
    (root / "docs" / "a.md").write_text(text)
    with pytest.raises(UsageError, match="docs/a.md: .*" + said):
        list(stale(root))


def test_without_records_nothing_is_current(root):
    (root / "cards" / "repair.jsonl").unlink()
    with pytest.raises(UsageError, match=r"repair\.jsonl holds no records"):
        list(stale(root))
    (root / "docs" / "run.svg").write_text("<svg/>")
    (root / "docs" / "a.md").unlink()
    with pytest.raises(UsageError, match=r"docs/run\.json cannot be read"):
        list(stale(root))


def test_intervals_do_not_depend_on_the_order_of_the_records():
    from hf_ci.lab.benchmarks.metrics import outcome

    outcomes = [outcome(r) for r in records_of("benchmark.jsonl")[:40]]
    assert rates(outcomes) == rates(outcomes[::-1]) and rates(outcomes).auroc_interval


@pytest.fixture
def drawn(root):
    """With a record of two scans, and no pictures yet."""
    for path in root.rglob("*.md"):
        path.write_text("No figures.\n")
    scans = [r["result"] | {"files": (), "reasons": ("so it is",)} for r in records_of("benchmark.jsonl")]
    found = [next(r for r in scans if r["verdict"] == verdict) for verdict in ("clean", "backdoored")]
    results = tuple(map(ScanResult.model_validate, found))
    (root / pictures.RECORD).write_text(FORMATS["json"](Report(results=results)))
    return root


def held_by(html):
    held = pictures.PngInfo()
    held.add_text(pictures.HELD, pictures.digest(html))
    return held


def test_the_terminal_is_drawn_as_it_prints(drawn):
    from xml.etree import ElementTree

    report = pictures.read_record(drawn)
    svg = pictures.terminal(report)
    shown = "".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")
    printed = pictures.render(report, "text", lasting=False)
    assert printed.count("\n") > 10 and all(line.strip() in shown for line in printed.splitlines())
    assert f"$ hf-ci scan {report.results[0].target} {report.results[1].target}" in shown
    assert "@font-face" not in svg and "url(http" not in svg and svg == pictures.terminal(report)


def test_a_stale_picture_is_told_and_not_hidden_where_there_is_no_chromium(drawn, monkeypatch):
    monkeypatch.setenv("PATH", str(drawn))
    both = (1, "docs/run.svg: stale\ndocs/report.png: stale\n")
    assert docs("--check") == both
    html = pictures.page(pictures.read_record(drawn), drawn)
    picture = Image.new("RGB", (4, 4))
    picture.save(drawn / "docs" / "report.png", pnginfo=held_by(html + "another"))
    assert docs("--check") == both
    done = CliRunner().invoke(app, ["docs"])
    assert isinstance(done.exception, UsageError) and "no Chromium" in str(done.exception)
    assert docs("--check") == (1, "docs/report.png: stale\n")
    picture.save(drawn / "docs" / "report.png", pnginfo=held_by(html))
    assert docs("--check") == (0, "")


def test_a_page_is_known_by_the_pixels_of_its_pictures():
    """Not by their bytes, which depend on the library that writes them."""

    def html(colour, **how):
        Image.new("RGB", (9, 9), colour).save(content := io.BytesIO(), "PNG", **how)
        return f'<img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'

    assert html("red") != html("red", compress_level=0)
    assert pictures.digest(html("red")) == pictures.digest(html("red", compress_level=0))
    assert pictures.digest(html("red")) != pictures.digest(html("blue"))
    assert pictures.digest(html("red")) != pictures.digest(html("red") + " ")


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_the_report_is_drawn_in_a_browser(drawn):
    assert docs() == (0, "docs/run.svg: rendered\ndocs/report.png: rendered\n")
    assert docs("--check") == (0, "")
    with Image.open(drawn / "docs" / "report.png") as image:
        assert image.size == pictures.WINDOW and len(image.convert("RGB").getcolors(1 << 24)) > 50
    record = drawn / "docs" / "run.json"
    record.write_text(record.read_text().replace("so it is", "so it was"))
    assert docs("--check") == (1, "docs/run.svg: stale\ndocs/report.png: stale\n")


def test_the_projects_pages_are_current():
    assert [path.name for path in pages(ROOT) if rendered(path, ROOT) != path.read_text()] == [], "run hf-ci lab docs"


def test_the_projects_pictures_are_current():
    assert [path.name for path, _ in stale(ROOT)] == [], "run hf-ci lab docs"
