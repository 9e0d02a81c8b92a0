"""The command line: one thin function a command, and the only place that prints and exits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Optional

import typer
from typer.core import TyperCommand, TyperGroup

from hf_ci import __version__
from hf_ci.cards.cli import badge, card, explain
from hf_ci.checkpoints.cli import convert
from hf_ci.console import (
    BaselineOption,
    FormatOption,
    OutputOption,
    QuietOption,
    VerboseOption,
    complain,
    detail_of,
    parse_output,
    speaks,
    wants_colour,
    write_file,
    write_stdout,
)
from hf_ci.dev.cli import app as dev
from hf_ci.errors import (
    EXIT_CLEAN,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    HfCiError,
    UsageError,
    is_defect,
    write_log,
)
from hf_ci.lab.benchmarks.cli import calibrate_base
from hf_ci.lab.cli import app as lab
from hf_ci.merge import merge
from hf_ci.repair.cli import repair
from hf_ci.run import config, init, keep_trigger, run, scan_options
from hf_ci.webhook import webhook

CommandLineError: type[typer.BadParameter] = typer.BadParameter.__mro__[2]  # the root of the parser's own exceptions
DEFAULT_DETECTOR: Final = "contrast"
DetectorName = Literal["contrast", "clip-inspector", "neural-cleanse", "pixel-backdoor", "mm-bd"]


class Program(TyperGroup):
    """Keeps the words that a command is given: what they name is judged, and does not say how."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        ctx.meta["words"] = args[1:]
        return super().resolve_command(ctx, args)


class Configured(TyperCommand):
    """All of its options are read from the environment, which is said once and not with each."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        for param in self.params:
            param.show_envvar = False  # type: ignore[attr-defined] # options and arguments have it, their base has not


app = typer.Typer(
    name="hf-ci",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 clean, 1 backdoored, 2 usage, 3 nothing to scan, 4 inconclusive, 5 internal error, "
    "130 interrupted.",
)


def print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hf-ci {__version__}")
        raise typer.Exit


@app.callback()
def hf_ci(
    ctx: typer.Context,
    config: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE", envvar="HF_CI_CONFIG", help="Default: .hf-ci.yaml, or [tool.hf-ci] of pyproject.toml."
        ),
    ] = None,
    no_config: Annotated[
        bool, typer.Option("--no-config", help="Read no configuration, as in a checkout of somebody else's.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True)] = False,
) -> None:
    """Is this prompt-tuned CLIP adapter backdoored?

    Every option of scan is also read from the environment (HF_CI_POOL for --pool) and from the configuration (pool
    under scan); the order is flag, environment, file, default. hf-ci config shows each value and its origin.
    """
    if ctx.invoked_subcommand != "init":
        from hf_ci.config import Config, Found, find_config

        if config and no_config:
            raise UsageError("--config and --no-config exclude each other")
        ctx.obj = Found(Config()) if no_config else find_config(config, ctx.meta["words"])
        if ctx.obj.note:
            complain(ctx.obj.note)
        ctx.default_map = {"scan": ctx.obj.config.scan.model_dump(exclude_none=True)}


@app.command(cls=Configured, context_settings={"auto_envvar_prefix": "HF_CI"})
def scan(
    ctx: typer.Context,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="org/model[@revision][:subfolder], a local folder, or a demo that ships with hf-ci, such as demo:badclip. "
            "A folder may be a checkpoint, or a pattern such as org/model:* for all below it.",
        ),
    ],
    base: Annotated[Optional[str], typer.Option(help="Base model, instead of the one the adapter names.")] = None,
    pool: Annotated[
        str, typer.Option(help="Unlabelled images: 'builtin', a folder, parquet files, a data set's id.")
    ] = "builtin",
    num_images: Annotated[int, typer.Option(help="Images to draw from the pool, 32 to 10000.")] = 256,
    data: Annotated[
        Optional[str],
        typer.Option(
            help="A few labelled photos of the adapter's classes: a folder of class folders, parquet, a data set's id."
        ),
    ] = None,
    shots: Annotated[int, typer.Option(help="Photos of each class that are used, at most.")] = 16,
    seed: Annotated[int, typer.Option()] = 0,
    format: FormatOption = "text",
    output: OutputOption = None,
    detector: Annotated[DetectorName, typer.Option(help="How classes are inverted and judged.")] = DEFAULT_DETECTOR,
    calibration: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            help="contrast: thresholds from what hf-ci calibrate measured on your base model.",
            show_default="the shipped one",
        ),
    ] = None,
    k: Annotated[
        Optional[float],
        typer.Option(
            help="A class is flagged from this score (not mm-bd).", show_default="contrast: calibrated; others: 2"
        ),
    ] = None,
    min_asr: Annotated[
        Optional[float],
        typer.Option(help="clip-inspector: and at this attack success rate, 0 to 1.", show_default="0.5"),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="contrast: invert every class whole, not only the most promising ones.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 where the device computes in it.")
    ] = "auto",
    num_processes: Annotated[int, typer.Option(help="Classes are shared out among them.")] = 1,
    timeout: Annotated[
        float, typer.Option(help="Seconds for one target, then it is inconclusive; 0: as long as it takes.")
    ] = 6 * 3600,
    classes: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Class names, one a line, if the adapter brings none.")
    ] = None,
    position: Annotated[
        Optional[Literal["end", "middle", "front"]],
        typer.Option(help="Where the class name stands, if a checkpoint does not tell."),
    ] = None,
    cache: Annotated[
        Optional[Path],
        typer.Option(metavar="DIR", help="Finished classes are kept here.", show_default="the user's cache"),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep finished classes.")] = False,
    save_trigger: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Keep the reconstructed trigger as png and npz.")
    ] = None,
    push: Annotated[
        Optional[str],
        typer.Option(metavar="pr|main|BRANCH", help="Write section, badge and report back to the Hub, in one commit."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: show the change, make none.")] = False,
    baseline: BaselineOption = None,
    skip_others: Annotated[
        bool, typer.Option("--skip-others", help="Leave out, with a note, adapters that are no prompts of CLIP.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Scan adapters for a planted backdoor.

    Each class is inverted: a small perturbation that drives unrelated images into it is reconstructed, and a class that
    is far easier to reach through the adapter than through clean prompts is reported. Each option is read from the
    environment as well, --num-images from HF_CI_NUM_IMAGES, and from the configuration.
    """
    from hf_ci.reports import FORMATS, render

    detail = detail_of(quiet, verbose)
    outputs = [parse_output(text, FORMATS) for text in output or []]
    if not all(target.strip() for target in targets):
        raise UsageError("an empty TARGET was given", "name a repo or a folder")
    from hf_ci.cards.cli import check_pushable, push_results
    from hf_ci.hub import folders_of, parse_target, without_lone_models
    from hf_ci.listing import expand
    from hf_ci.progress import on_stderr
    from hf_ci.recall import scan_each
    from hf_ci.report import Report
    from hf_ci.suppress import read_baseline, suppress

    if dry_run and not push:
        raise UsageError("--dry-run says nothing without --push")
    targets, alone = without_lone_models(targets) if skip_others else (targets, [])
    targets = expand(folders_of(targets))
    for target in targets:
        parse_target(target)  # raises for what is no folder here and can be no repo: no adapter that could be judged
    known = read_baseline(baseline) if baseline else frozenset()
    if push:
        check_pushable(targets)
    if push or "html" in (format, *(name for name, _ in outputs)):  # both show the trigger
        keep_trigger(ctx, ctx.params)
    options = scan_options(ctx.params)
    results = tuple(scan_each(targets, options, on_stderr()))
    left_out = [ctx.obj.note] * bool(ctx.obj.note)
    others = [result for result in results if skip_others and result.is_other_kind]
    results = tuple(result for result in results if result not in others)
    report = Report(results=results, notes=(*left_out, *(other.left_out for other in others), *alone))
    report = suppress(report, ctx.obj.config.ignore, known)
    if not speaks():
        return
    lasting = save_trigger is not None
    write_stdout(render(report, format, lasting, detail=detail, colour=wants_colour()))
    for name, path in outputs:
        write_file(path, render(report, name, lasting, detail=detail))
    failed = push_results(report, push, dry_run) if push else 0
    raise typer.Exit(EXIT_CLEAN if skip_others and not results else report.exit_code or failed)


app.command("run")(run)
app.command("merge")(merge)
app.command("init")(init)
app.command("config")(config)
app.command("convert")(convert)
app.command("repair")(repair)
app.command("card")(card)
app.command("badge")(badge)
app.command("explain")(explain)
app.command("calibrate")(calibrate_base)
app.command("webhook")(webhook)
app.add_typer(lab, name="lab")
app.add_typer(dev, name="dev")


def main() -> None:
    """Run the program: expected errors become one line and a code, anything else a log to paste into a bug report."""
    try:
        code = app(standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this
            complain("interrupted; finished classes are kept in the cache, the same command goes on from there")
        sys.exit(code)
    except HfCiError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except CommandLineError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except BaseException as error:
        if not is_defect(error):
            raise
        complain(f"internal error: {type(error).__name__}: {error}; please report it with {write_log()}")
        sys.exit(EXIT_INTERNAL)
