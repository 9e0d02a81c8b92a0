"""The lab's commands that render records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hf_ci.lab.options import DataRoot, Spec


def table(
    records: Annotated[Path, typer.Argument(help="JSON lines of a benchmark.")],
    out: Annotated[Path, typer.Option(help="The card, Markdown; detector.md and roc.svg go beside it.")],
    methods: Annotated[
        Optional[Path],
        typer.Option(
            help="JSON lines of specification 'methods', for a table of their own.",
            show_default="methods.jsonl beside RECORDS",
        ),
    ] = None,
) -> None:
    """Render a benchmark's card, the detector's own and the ROC curves from its JSON lines."""
    from hf_ci.lab.benchmarks.records import read_records, read_some
    from hf_ci.lab.cards.benchmark import benchmark, roc
    from hf_ci.lab.cards.detector import detector_card

    found = read_some(records, "hf-ci lab bench")
    deep = (
        read_some(methods, "hf-ci lab bench methods") if methods else read_records(records.with_name("methods.jsonl"))
    )
    out.write_text(benchmark(found, deep), encoding="utf-8")
    out.with_name("detector.md").write_text(detector_card(found), encoding="utf-8")
    out.with_name("roc.svg").write_text(roc(found), encoding="utf-8")
    typer.echo(f"{out}: {len(found)} scans")


def repair_table(
    records: Annotated[Path, typer.Argument(help="JSON lines of lab repairs.")],
    out: Annotated[Path, typer.Option(help="The card, Markdown.")],
) -> None:
    """Render the card of repairs from its JSON lines."""
    from hf_ci.lab.cards.repair import repairs

    write_card(records, "hf-ci lab repairs", repairs, out, "repairs and controls")


def adaptive_table(
    records: Annotated[Path, typer.Argument(help="JSON lines of lab bench adaptive.")],
    out: Annotated[Path, typer.Option(help="The card, Markdown.")],
) -> None:
    """Render the card of attackers who know the scan from its JSON lines."""
    from hf_ci.lab.cards.adaptive import adaptive

    write_card(records, "hf-ci lab bench adaptive", adaptive, out, "scans")


def write_card(
    records: Path, made_by: str, render: Callable[[list[dict[str, Any]]], str], out: Path, counted: str
) -> None:
    """From the records that `made_by` wrote to their card."""
    from hf_ci.lab.benchmarks.records import read_some

    found = read_some(records, made_by)
    out.write_text(render(found), encoding="utf-8")
    typer.echo(f"{out}: {len(found)} {counted}")


def triggers(
    spec: Spec,
    data: DataRoot,
    out: Annotated[Path, typer.Option(help="The picture, PNG.")],
    zoo: Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here, and what their scans found.")],
    group: Annotated[str, typer.Option(help="This group's models.")] = "table",
) -> None:
    """Draw true triggers beside those that the default detector recovered, a row a model."""
    from hf_ci.lab.benchmarks.bench import read_spec
    from hf_ci.lab.cards.grid import draw

    typer.echo(f"{out}: {draw(read_spec(spec), data, out, zoo, group)} models")


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1, and their names, if files are stale.")
    ] = False,
) -> None:
    """Render the figures in README.md and docs from the records in cards, and docs' pictures from docs/run.json."""
    from hf_ci.console import write_file
    from hf_ci.lab.cards.docs import stale

    root, found = Path.cwd(), False
    for path, anew in stale(root):
        found = True
        if not check:
            write_file(path, anew())
        typer.echo(f"{path.relative_to(root)}: {'stale' if check else 'rendered'}")
    raise typer.Exit(int(check and found))
