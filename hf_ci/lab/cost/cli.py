"""The lab's command that measures time."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from hf_ci.lab.options import Base, Device, ResumedWithCard


def speed(
    out: ResumedWithCard,
    parts: Annotated[Optional[list[str]], typer.Option("--part", help="Only scan, encoders, ... Repeatable.")] = None,
    classes: Annotated[Optional[list[int]], typer.Option(min=3, help="Numbers of classes. Repeatable.")] = None,
    base: Base = "hf-ci-clip-64",
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind whose median is taken.")] = 3,
    images: Annotated[int, typer.Option(min=32, max=1000, help="Of a scan's pool.")] = 256,
) -> None:
    """Time the scan against the paper's recipe, the rivals and the bare encoders, as ratios within one run."""
    from hf_ci.lab.benchmarks.records import read_records
    from hf_ci.lab.cards.performance import performance
    from hf_ci.lab.cost.speed import measure_speed

    for record in measure_speed(out, classes or [10, 50, 200], parts, base, device, repeats, images):
        typer.echo(", ".join(f"{name} {value}" for name, value in record.items()))
    out.with_suffix(".md").write_text(performance(read_records(out)), encoding="utf-8")
