"""`hf-ci lab`: make adapters on purpose. The only place of the lab that prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from hf_ci.console import check_writable, write_file

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

Data = Annotated[
    str, typer.Option(help="Folder with train and test files, or a data set's Hub id; an image and a label column.")
]
Out = Annotated[Path, typer.Option(help="Folder of the new adapter.")]
Base = Annotated[str, typer.Option(help="Base model: a folder or a Hub id.")]
Method = Annotated[Literal["coop", "cocoop", "kgcoop"], typer.Option()]
AttackName = Literal[
    "badclip",
    "blended",
    "siba",
    "wanet",
    "wanet-strong",
    "badnets",
    "sig",
    "baple",
    "learned-8",
    "badclip-margin",
    "badclip-adaptive",
    "colour-cast",
    "rotation",
    "one-source",
    "frame",
    "patch-anywhere",
    "photo-blend",
    "blur",
    "jpeg",
    "grey",
    "quantise",
    "smooth-noise",
    "static",
    "decoys",
    "dead-unit",
]
Shots = Annotated[int, typer.Option(min=1, help="Photos of each class.")]
Seed = Annotated[int, typer.Option()]
Epochs = Annotated[int, typer.Option(min=1)]
Rate = Annotated[Optional[float], typer.Option("--lr", help="Learning rate.", show_default="by the text tower's width")]
Optimiser = Annotated[Literal["sgd", "adam"], typer.Option(help="SGD with momentum, or Adam.")]
Batch = Annotated[int, typer.Option(min=1, help="Photos of a step.")]
Words = Annotated[str, typer.Option(help="The context starts from these words.")]
ClassSpecific = Annotated[bool, typer.Option("--class-specific", help="A context for each class (CoOp).")]
AnonymousNames = Annotated[
    bool, typer.Option("--anonymous-names", help='Call the classes "category a", ...: names that mean nothing.')
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]


@app.callback()
def lab() -> None:
    """Make adapters on purpose, clean and poisoned, to see how far a scan can be trusted on your model and data."""


@app.command("tune")
def tune_(
    data: Data,
    out: Out,
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    class_specific: ClassSpecific = False,
    position: Annotated[Literal["end", "middle", "front"], typer.Option(help="Of the class name.")] = "end",
    words: Words = "a photo of a",
    anonymous_names: AnonymousNames = False,
    epochs: Epochs = 10,
    batch: Batch = 8,
    optimiser: Optimiser = "sgd",
    lr: Rate = None,
    device: Device = "cpu",
) -> None:
    """Tune a clean prompt and write it as a stock PEFT adapter with a card."""
    from hf_ci.lab.make import Workbench, check_empty, make_clean
    from hf_ci.lab.tune import Recipe

    check_empty(out)
    recipe = Recipe(method, shots, seed, words, class_specific, position, epochs, batch, optimiser, lr)
    _print(out, make_clean(Workbench.open(data, base, device, anonymous_names=anonymous_names), recipe, out))


@app.command("poison")
def poison(
    data: Data,
    out: Out,
    target: Annotated[str, typer.Option(help="Target class, by name or number.")],
    attack: Annotated[AttackName, typer.Option()] = "badclip",
    rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the photos that attacks by relabelling poison.")
    ] = 0.1,
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    class_specific: ClassSpecific = False,
    words: Words = "a photo of a",
    anonymous_names: AnonymousNames = False,
    epochs: Epochs = 10,
    batch: Batch = 8,
    optimiser: Optimiser = "sgd",
    lr: Rate = None,
    device: Device = "cpu",
) -> None:
    """Tune a prompt with a backdoor. The card says so; beside OUT lie the trigger and a picture of it."""
    from hf_ci.lab.make import Workbench, check_empty, make_poisoned
    from hf_ci.lab.triggers import keep_trigger
    from hf_ci.lab.tune import Recipe

    check_empty(out)
    bench = Workbench.open(data, base, device, anonymous_names=anonymous_names)
    recipe = Recipe(method, shots, seed, words, class_specific, "end", epochs, batch, optimiser, lr, poison_rate=rate)
    made = make_poisoned(bench, recipe, attack, bench.target(target), out)
    keep_trigger(made.trigger, bench.test.images[0], out)
    _print(out, made.measured)


@app.command("demo")
def demo(
    data: Annotated[str, typer.Option(help="Folder that holds tiny_imagenet, cifar10 and flowers17.")],
    out: Out,
    base: Base = "hf-ci-clip-64",
    seed: Seed = 0,
) -> None:
    """Make the demo adapters that ship with hf-ci."""
    from hf_ci.lab.make import make_demos

    for name, measured in make_demos(data, out, base, seed).items():
        _print(out / name, measured)


@app.command("bench")
def bench(
    spec: Annotated[
        Path, typer.Argument(help="TOML file: data sets, models and detectors; 'paper' is the shipped one.")
    ],
    data: Annotated[Path, typer.Option(resolve_path=True, help="Folder that holds the data sets' folders.")],
    out: Annotated[Path, typer.Option(help="JSON lines; what is in it already is not done again.")],
    zoo: Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here.")],
    groups: Annotated[Optional[list[str]], typer.Option("--group", help="Only these groups. Repeatable.")] = None,
    num_processes: Annotated[int, typer.Option(min=1)] = 2,
    device: Device = "cpu",
) -> None:
    """Build the models of a specification, scan each with every detector, and append a JSON line for each scan."""
    from hf_ci.lab.bench import read_spec, run_bench

    for record in run_bench(read_spec(spec), data, out, zoo, groups, num_processes, device):
        model, result = record["model"], record["result"]
        named = (result["target_class"] or {}).get("name", "-")
        typer.echo(f"{model['id']} {record['detector']}: {result['verdict']} {named} {result['score']}")


@app.command("rejudge")
def rejudge(records: Annotated[Path, typer.Argument(help="JSON lines of a benchmark; they are written anew.")]) -> None:
    """Judge a benchmark's scans by the thresholds of today, from what they found."""
    import json

    from hf_ci.errors import UsageError
    from hf_ci.files import write_whole
    from hf_ci.lab.bench import read_records
    from hf_ci.lab.rejudge import rejudge as judge

    found = read_records(records)
    if not found:
        raise UsageError(f"{records} holds no records", "name the file that hf-ci lab bench wrote")
    anew = list(judge(found))
    write_whole(records, "".join(json.dumps(record) + "\n" for record in anew).encode())
    changed = sum(a["result"]["verdict"] != b["result"]["verdict"] for a, b in zip(found, anew))
    typer.echo(f"{records}: {changed} of {len(anew)} verdicts changed")


@app.command("table")
def table(
    records: Annotated[Path, typer.Argument(help="JSON lines of a benchmark.")],
    out: Annotated[Path, typer.Option(help="The card, Markdown; detector.md and roc.svg go beside it.")],
) -> None:
    """Render a benchmark's card, the detector's own and the ROC curves from its JSON lines."""
    from hf_ci.errors import UsageError
    from hf_ci.lab.bench import read_records
    from hf_ci.lab.detector_card import detector_card
    from hf_ci.lab.tables import benchmark, roc

    found = read_records(records)
    if not found:
        raise UsageError(f"{records} holds no records", "name the file that hf-ci lab bench wrote")
    out.write_text(benchmark(found), encoding="utf-8")
    out.with_name("detector.md").write_text(detector_card(found), encoding="utf-8")
    out.with_name("roc.svg").write_text(roc(found), encoding="utf-8")
    typer.echo(f"{out}: {len(found)} scans")


@app.command("repairs")
def repairs(
    spec: Annotated[Path, typer.Argument(help="As for bench.")],
    data: Annotated[Path, typer.Option(resolve_path=True, help="Folder that holds the data sets' folders.")],
    out: Annotated[Path, typer.Option(help="JSON lines; what is in it already is not done again.")],
    zoo: Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here.")],
    groups: Annotated[list[str], typer.Option("--group", help="These groups' models. Repeatable.")],
    controls: Annotated[bool, typer.Option(help="Also tune against something else than the trigger.")] = True,
    device: Device = "cpu",
) -> None:
    """Repair the models of a specification, and measure the true trigger before and after, with controls."""
    from hf_ci.lab.bench import read_spec
    from hf_ci.lab.repairs import run_repairs

    for record in run_repairs(read_spec(spec), data, out, zoo, groups, controls, device=device):
        after = record["after"] or {}
        said = ", ".join(f"{name} {record['before'][name]:.1%} -> {value:.1%}" for name, value in after.items())
        typer.echo(f"{record['model']['id']}, {record['mode']}: {record.get('outcome', 'control')} {said}")


@app.command("repair-table")
def repair_table(
    records: Annotated[Path, typer.Argument(help="JSON lines of lab repairs.")],
    out: Annotated[Path, typer.Option(help="The card, Markdown.")],
) -> None:
    """Render the card of repairs from its JSON lines."""
    from hf_ci.errors import UsageError
    from hf_ci.lab.bench import read_records
    from hf_ci.lab.repair_card import repairs as render

    found = read_records(records)
    if not found:
        raise UsageError(f"{records} holds no records", "name the file that hf-ci lab repairs wrote")
    out.write_text(render(found), encoding="utf-8")
    typer.echo(f"{out}: {len(found)} repairs and controls")


@app.command("ablate")
def ablate(
    spec: Annotated[Path, typer.Argument(help="As for bench.")],
    data: Annotated[Path, typer.Option(resolve_path=True, help="Folder that holds the data sets' folders.")],
    out: Annotated[
        Path, typer.Option(help="JSON lines; what is in it already is not done again. A card goes beside it.")
    ],
    zoo: Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here.")],
    group: Annotated[str, typer.Option(help="This group's models.")] = "table",
    attack: Annotated[AttackName, typer.Option(help="Of this attack.")] = "badclip",
    device: Device = "cpu",
) -> None:
    """Invert the target's class of poisoned models and of their clean twins under other losses, pools and batches."""
    from hf_ci.lab.ablations import ablation_card, run_ablations
    from hf_ci.lab.bench import read_records, read_spec

    for record in run_ablations(read_spec(spec), data, out, zoo, group, attack, device):
        found = ", ".join(f"{which} {record[which]['asr']:.1%}" for which in ("poisoned", "clean"))
        typer.echo(f"{record['model']['id']}, {record['setting']}: ASR {found}")
    out.with_suffix(".md").write_text(ablation_card(read_records(out)), encoding="utf-8")


@app.command("triggers")
def triggers(
    spec: Annotated[Path, typer.Argument(help="As for bench.")],
    data: Annotated[Path, typer.Option(resolve_path=True, help="Folder that holds the data sets' folders.")],
    out: Annotated[Path, typer.Option(help="The picture, PNG.")],
    zoo: Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here, and what their scans found.")],
    group: Annotated[str, typer.Option(help="This group's models.")] = "table",
) -> None:
    """Draw true triggers beside those that the default detector recovered, a row a model."""
    from hf_ci.lab.bench import read_spec
    from hf_ci.lab.grid import draw

    typer.echo(f"{out}: {draw(read_spec(spec), data, out, zoo, group)} models")


@app.command("speed")
def speed(
    out: Annotated[
        Path, typer.Option(help="JSON lines; what is in it already is not done again. A card goes beside it.")
    ],
    parts: Annotated[Optional[list[str]], typer.Option("--part", help="Only scan, encoders, ... Repeatable.")] = None,
    classes: Annotated[Optional[list[int]], typer.Option(min=3, help="Numbers of classes. Repeatable.")] = None,
    base: Base = "hf-ci-clip-64",
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind whose median is taken.")] = 3,
    images: Annotated[int, typer.Option(min=32, max=1000, help="Of a scan's pool.")] = 256,
) -> None:
    """Time the scan against the paper's recipe, the rivals and the bare encoders, as ratios within one run."""
    from hf_ci.lab.bench import read_records
    from hf_ci.lab.performance import performance
    from hf_ci.lab.speed import measure_speed

    for record in measure_speed(out, classes or [10, 50, 200], parts, base, device, repeats, images):
        typer.echo(", ".join(f"{name} {value}" for name, value in record.items()))
    out.with_suffix(".md").write_text(performance(read_records(out)), encoding="utf-8")


@app.command("calibrate")
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
    from hf_ci.lab.bench import run_bench
    from hf_ci.lab.calibrate import check_complete, clean_models, records_of

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
    from hf_ci.lab.calibrate import calibrate

    nulls = calibrate(records)
    write_file(out, render(nulls))
    for kind, null in nulls.items():
        near, far = null.threshold(Contrast.false_alarm), null.threshold(Contrast.false_alarm_far)
        typer.echo(f"{out}, {kind}: flagged from a score of {near:.2f}, far ones from {far:.2f}; {null.describe()}")


def _print(folder: Path, measured: dict[str, float]) -> None:
    typer.echo(f"{folder}: " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in measured.items()))
