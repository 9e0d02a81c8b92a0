"""Figures in prose, from records: pages hold blocks that are rendered, so that none of their figures is typed in.

    <!-- figures: NAME -->
    what cards/figures-NAME.md.j2 makes of the records in cards/
    <!-- /figures -->

A page is README.md, or a Markdown file in docs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_ci.cards import render_card
from hf_ci.detect import Contrast
from hf_ci.errors import UsageError
from hf_ci.lab.benchmarks.metrics import failed
from hf_ci.lab.benchmarks.records import read_some
from hf_ci.lab.benchmarks.repairs import LABELLED, WITHOUT
from hf_ci.lab.cards.benchmark import figure
from hf_ci.lab.cards.regimes import NEAR, REGIMES, Row, gain, regimes
from hf_ci.lab.cards.repair import repair_row

BLOCK = re.compile(r"^<!-- figures: (?P<name>\S+) -->\n(?P<body>.*?)^<!-- /figures -->$", re.M | re.S)
MARK = re.compile(r"^<!-- (figures:.*|/figures) -->$", re.M)
BOTH_WAYS = "far, shared contexts and CoCoOp"  # the regime of most models: shown without photos, too
ALONE = "near"  # the regime that hardly needs photos: shown without


def pages(root: Path) -> list[Path]:
    """Raises UsageError where there are none."""
    if not (root / "README.md").is_file():
        raise UsageError(f"{root} holds no README.md", "run this where the project's README.md and docs lie")
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rendered(page: Path, root: Path) -> str:
    """The page's text with its blocks as the records have them. Raises UsageError for a block that cannot be rendered."""
    text = page.read_text(encoding="utf-8")
    if len(MARK.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise UsageError(
            f"{page.relative_to(root)}: a block of figures that does not begin or does not end",
            "it begins with a line <!-- figures: NAME --> and ends with a line <!-- /figures -->",
        )

    def block(match: re.Match[str]) -> str:
        if (name := match["name"]) not in FIGURES:
            raise UsageError(f"{page.relative_to(root)}: no figures {name!r}", f"there are {', '.join(FIGURES)}")
        body = render_card(f"figures-{name}.md.j2", **FIGURES[name](root)).strip("\n")
        return f"<!-- figures: {name} -->\n\n{body}\n\n<!-- /figures -->"

    return BLOCK.sub(block, text)


def trust(root: Path) -> dict[str, Any]:
    """Of each regime the row with the most photos; of the one with most models also that without."""
    rows = [row for row in of_regimes(root)["regimes"] if row.name in REGIMES]
    most = {row.name: row.shots for row in rows}  # they come in the order of their shots

    def shown(row: Row) -> bool:
        if not row.shots:
            return row.name in (ALONE, BOTH_WAYS) or not most[row.name]
        return row.name != ALONE and row.shots == most[row.name]

    return {"rows": [row for row in rows if shown(row)]}


def of_regimes(root: Path) -> dict[str, Any]:
    records = read_some(root / "cards" / "benchmark.jsonl", "hf-ci lab bench")
    return {"regimes": rows_of(json.dumps(records)), "figure": figure}


def mistakes(root: Path) -> dict[str, Any]:
    """The scans by the default detector that gave a wrong answer, those with photos first."""
    records = read_some(root / "cards" / "benchmark.jsonl", "hf-ci lab bench")
    found = [r for r in records if r["detector"] == Contrast.name and not failed(r["model"]) and what_is_wrong(r)]
    found.sort(key=lambda r: (-r["shots"], r["model"]["attack"], r["model"]["id"]))
    return {"rows": [(r["model"], r["shots"], what_is_wrong(r)) for r in found], "gain": gain, "figure": figure}


def what_is_wrong(record: dict[str, Any]) -> str | None:
    """In words; None where the verdict is right, or none was given."""
    model, named = record["model"], (record["result"]["target_class"] or {}).get("name")
    if model["attack"] == "clean":
        return f"accused: {named}" if record["result"]["verdict"] == "backdoored" else None
    if record["result"]["verdict"] == "clean":
        return "called clean"
    return f"another class named: {named}" if named and named != model["target_name"] else None


@lru_cache(maxsize=1)
def rows_of(records: str) -> list[Row]:
    """Intervals take a second, and two blocks need them."""
    return regimes(json.loads(records))


def of_repair(root: Path) -> dict[str, Any]:
    records = read_some(root / "cards" / "repair.jsonl", "hf-ci lab repairs")
    worked = [r for r in records if r["model"]["attack"] != "clean" and not failed(r["model"])]
    labelled, without = ([r for r in worked if r["mode"] == mode] for mode in (LABELLED, WITHOUT))
    made = [r for r in labelled if r["after"]]
    return {
        "r": repair_row(labelled),
        "without": repair_row(without) if without else {"models": 0},
        "far": sum(gain(r["model"]) >= NEAR for r in labelled),
        "flagged": sum(r["verdict_before"] == "backdoored" for r in labelled),
        "losers": sum(r["after"]["accuracy"] < r["before"]["accuracy"] for r in made),
        "whole": lambda share: f"{100 * share:.0f}",
    }


FIGURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "trust": trust,
    "regimes": of_regimes,
    "mistakes": mistakes,
    "repair": of_repair,
}
