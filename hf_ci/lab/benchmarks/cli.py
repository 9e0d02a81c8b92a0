"""The lab's commands that measure verdicts and repairs, and fit thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hf_ci.console import check_writable, write_file
from hf_ci.lab.options import AttackName, DataRoot, Device, KeptZoo, Resumed, ResumedWithCard, Shots, Spec


def bench(
    spec: Annotated[
        Path, typer.Argument(help="TOML file: data sets, models and detectors; 'paper' is the shipped one.")
    ],
    data: DataRoot,
    out: Resumed,
    zoo: KeptZoo,
    groups: Annotated[Optional[list[str]], typer.Option("--group", help="Only these groups. Repeatable.")] = None,
    num_processes: Annotated[int, typer.Option(min=1)] = 2,
    device: Device = "cpu",
) -> None:
    """Build the models of a specification, scan each with every detector, and append a JSON line for each scan."""
    from hf_ci.lab.benchmarks.bench import read_spec, run_bench

    for record in run_bench(read_spec(spec), data, out, zoo, groups, num_processes, device):
        model, result = record["model"], record["result"]
        named = (result["target_class"] or {}).get("name", "-")
        typer.echo(f"{model['id']} {record['detector']}: {result['verdict']} {named} {result['score']}")


def rejudge(records: Annotated[Path, typer.Argument(help="JSON lines of a benchmark; they are written anew.")]) -> None:
    """Judge a benchmark's scans by the thresholds of today, from what they found."""
    import json

    from hf_ci.files import write_whole
    from hf_ci.lab.benchmarks.records import read_some
    from hf_ci.lab.benchmarks.rejudge import rejudge as judge

    found = read_some(records, "hf-ci lab bench")
    anew = list(judge(found))
    write_whole(records, "".join(json.dumps(record) + "\n" for record in anew).encode())
    changed = sum(a["result"]["verdict"] != b["result"]["verdict"] for a, b in zip(found, anew))
    typer.echo(f"{records}: {changed} of {len(anew)} verdicts changed")


def repairs(
    spec: Spec,
    data: DataRoot,
    out: Resumed,
    zoo: KeptZoo,
    groups: Annotated[list[str], typer.Option("--group", help="These groups' models. Repeatable.")],
    controls: Annotated[bool, typer.Option(help="Also tune against something else than the trigger.")] = True,
    device: Device = "cpu",
) -> None:
    """Repair the models of a specification, and measure the true trigger before and after, with controls."""
    from hf_ci.lab.benchmarks.bench import read_spec
    from hf_ci.lab.benchmarks.repairs import run_repairs

    for record in run_repairs(read_spec(spec), data, out, zoo, groups, controls, device=device):
        after = record["after"] or {}
        said = ", ".join(f"{name} {record['before'][name]:.1%} -> {value:.1%}" for name, value in after.items())
        typer.echo(f"{record['model']['id']}, {record['mode']}: {record.get('outcome', 'control')} {said}")


def ablate(
    spec: Spec,
    data: DataRoot,
    out: ResumedWithCard,
    zoo: KeptZoo,
    group: Annotated[str, typer.Option(help="This group's models.")] = "table",
    attack: Annotated[AttackName, typer.Option(help="Of this attack.")] = "badclip",
    device: Device = "cpu",
) -> None:
    """Invert the target's class of poisoned models and of their clean twins under other losses, pools and batches."""
    from hf_ci.lab.benchmarks.ablations import run_ablations
    from hf_ci.lab.benchmarks.bench import read_spec
    from hf_ci.lab.benchmarks.records import read_records
    from hf_ci.lab.cards.ablations import ablation_card

    for record in run_ablations(read_spec(spec), data, out, zoo, group, attack, device):
        found = ", ".join(f"{which} {record[which]['asr']:.1%}" for which in ("poisoned", "clean"))
        typer.echo(f"{record['model']['id']}, {record['setting']}: ASR {found}")
    out.with_suffix(".md").write_text(ablation_card(read_records(out)), encoding="utf-8")


def calibrate(
    records: Annotated[
        Path, typer.Argument(help="JSON lines of a benchmark with clean models, such as 'calibration'.")
    ],
    out: Annotated[Path, typer.Option(help="The calibration, JSON.")],
) -> None:
    """Fit what is normal for a clean adapter, and with it the thresholds of the contrast detector."""
    _write_nulls(records, out)


def calibrate_base(
    base: Annotated[str, typer.Option(help="Your base model: a folder or a Hub id[@revision].", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option(
            help="Labelled photos, as a folder with train and test files or a data set's Hub id. Repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The calibration, JSON.", show_default=False)],
    pool: Annotated[
        Optional[list[str]],
        typer.Option(help="As for scan. Twice for both kinds: photos, and 'builtin'.", show_default="builtin"),
    ] = None,
    models: Annotated[int, typer.Option(min=8, help="Clean prompts to tune.")] = 24,
    classes: Annotated[int, typer.Option(min=3, help="Of each prompt, drawn anew for each seed.")] = 10,
    shots: Shots = 16,
    num_images: Annotated[int, typer.Option(min=32, help="Images to draw from the pool.")] = 256,
    zoo: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="Prompts and scans are kept here.", show_default="FILE with .zoo at its end"),
    ] = None,
    device: Device = "cpu",
    num_processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Measure the thresholds of the default detector on your base model.

    Clean CoCoOp prompts are tuned and scanned; hf-ci scan --calibration FILE then judges by what they score. The same
    command goes on where it was stopped.
    """
    from hf_ci.places import check_base, check_data, check_pool

    check_writable(out, f"--out {out}")
    check_base(base)
    for source in data:
        check_data(source)
    for name in pool or []:
        check_pool(name)
    from hf_ci.lab.benchmarks.bench import run_bench
    from hf_ci.lab.benchmarks.calibrate import check_complete, clean_models, records_of

    spec = clean_models(base, data, pool or ["builtin"], models, classes, shots, num_images)
    zoo = (zoo or out.with_name(out.name + ".zoo")).resolve()
    records = records_of(spec, zoo)
    for record in run_bench(spec, Path(), records, zoo, None, num_processes, device):
        model, result = record["model"], record["result"]
        typer.echo(f"{model['id']}, {record['group']}: accuracy {model['accuracy']:.1%}, score {result['score']}")
    check_complete(spec, records)
    _write_nulls(records, out)


def _write_nulls(records: Path, out: Path) -> None:
    from hf_ci.detect import Contrast
    from hf_ci.detect.calibration import render
    from hf_ci.lab.benchmarks.calibrate import calibrate

    nulls = calibrate(records)
    write_file(out, render(nulls))
    for kind, null in nulls.items():
        near, far = null.threshold(Contrast.false_alarm), null.threshold(Contrast.false_alarm_far)
        typer.echo(f"{out}, {kind}: flagged from a score of {near:.2f}, far ones from {far:.2f}; {null.describe()}")
