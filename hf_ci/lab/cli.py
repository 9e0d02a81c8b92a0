"""`hf-ci lab`: make adapters on purpose. The rooms' commands, put together; they are the only places of the lab that print."""

from __future__ import annotations

import typer

from hf_ci.lab.benchmarks.cli import ablate, bench, calibrate, rejudge, repairs
from hf_ci.lab.cards.cli import adaptive_table, docs, repair_table, table, triggers
from hf_ci.lab.cost.cli import speed
from hf_ci.lab.making.cli import demo, poison, tune

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def lab() -> None:
    """Make adapters on purpose, clean and poisoned, to see how far a scan can be trusted on your model and data."""


for command in (
    tune,
    poison,
    demo,
    bench,
    rejudge,
    table,
    repairs,
    repair_table,
    adaptive_table,
    ablate,
    triggers,
    speed,
    calibrate,
    docs,
):
    app.command(command.__name__.replace("_", "-"))(command)
