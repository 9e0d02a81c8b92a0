"""hf-ci run, init and config: everything that is configured, in one go."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer
from typer.core import TyperGroup

from hf_ci.certain import certain
from hf_ci.console import (
    BaselineOption,
    FormatOption,
    OutputOption,
    QuietOption,
    VerboseOption,
    complain,
    detail_of,
    parse_output,
    printable,
    speaks,
    wants_colour,
    write_file,
    write_stdout,
)
from hf_ci.errors import EXIT_CLEAN, NothingToScan, UsageError

if TYPE_CHECKING:
    from hf_ci.config import Found
    from hf_ci.report import Report
    from hf_ci.reports.text import Detail
    from hf_ci.settings import ScanOptions


def run(
    ctx: typer.Context,
    targets: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="Instead of the configuration's adapters: as for hf-ci scan, or org:NAME for an organisation's.",
        ),
    ] = None,
    changed_since: Annotated[
        Optional[str],
        typer.Option(metavar="REF", help="Only local adapters, listed or not, whose files differ from this commit."),
    ] = None,
    shard: Annotated[
        Optional[str],
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N shares of the list; hf-ci merge makes one report of their JSON reports.",
        ),
    ] = None,
    jobs: Annotated[
        Optional[int],
        typer.Option(min=1, metavar="N", help="Scan N shares as Jobs on the Hub, for money, and make one report."),
    ] = None,
    flavor: Annotated[str, typer.Option(help="With --jobs: hardware of each, such as a10g-small.")] = "cpu-basic",
    job_timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="With --jobs: the longest that each may run, as 30m or 6h.")
    ] = "6h",
    image: Annotated[
        Optional[str], typer.Option(help="With --jobs: their Docker image.", show_default="python:3.12")
    ] = None,
    requirement: Annotated[
        Optional[str],
        typer.Option(
            metavar="REQ",
            help="With --jobs: where pip installs hf-ci from in each, such as git+https://…@SHA.",
            show_default="the commit that this one was installed from; none with --image",
        ),
    ] = None,
    namespace: Annotated[
        Optional[str], typer.Option(help="With --jobs: who pays, if not you: an organisation.")
    ] = None,
    reports: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="With --jobs: keep each share's report, for hf-ci merge.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --jobs: show what would be started and its price, start nothing.")
    ] = False,
    max_workers: Annotated[int, typer.Option(min=1, help="Adapters that are downloaded at a time.")] = 8,
    format: FormatOption = "text",
    output: OutputOption = None,
    baseline: BaselineOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Scan all adapters of the configuration.

    A line for each as it is done, then what was found. A failure of one does not stop the others, and the exit code is
    that of the worst. hf-ci init writes a sample of a configuration.

    With --jobs the list is scanned on the Hub's machines. What that costs at most is said first; Ctrl-C cancels the Jobs.
    """
    from hf_ci import listing
    from hf_ci.jobs import asked_jobs, on_jobs
    from hf_ci.merge import parse_shard, shard_of
    from hf_ci.progress import on_stderr
    from hf_ci.recall import scan_each
    from hf_ci.report import Report, failed
    from hf_ci.reports import FORMATS, text
    from hf_ci.suppress import read_baseline, suppress

    config, detail = ctx.obj.config, detail_of(quiet, verbose)
    share = None if shard is None else parse_shard(shard)
    check_together(ctx, jobs, shard, changed_since)
    asked = asked_jobs(jobs, flavor, job_timeout, image, requirement, namespace, reports, dry_run) if jobs else None
    entries = listing.entries_of(targets or ()) or config.adapters
    if not entries and not changed_since:  # what has changed is found without being listed
        where = ctx.obj.origin or ctx.obj.note or "no configuration"
        raise UsageError(f"{where}: no adapters to scan", "hf-ci init writes a sample; list them under adapters")
    outputs = [parse_output(text, FORMATS) for text in output or []]
    known = read_baseline(baseline) if baseline else frozenset()
    if not targets:
        check_entries(ctx.obj)
    params = scan_context(ctx).params
    lasting = params["save_trigger"] is not None
    if not asked and "html" in (format, *(name for name, _ in outputs)):
        keep_trigger(ctx, params)
    options, part = scan_options(params), None
    listed, notes = listing.list_targets(entries), [ctx.obj.note] * bool(ctx.obj.note)
    if changed_since:
        kept = listing.changed_since(listed, changed_since)
        notes += listing.left_out(listed, kept, changed_since)
        notes += [f"{found.target} has changed and is in no entry of adapters" for found in kept if found not in listed]
        listed = kept
    if share:
        by_name = {found.target: found for found in listed}
        part = shard_of(by_name, *share, options, config.ignore, known, changed_since, targets or ())
        listed = [by_name[target] for target in part.own]
        notes.append(part.note)
    if asked:
        report = on_jobs(asked, listed, config, options, targets or ())
        if report is None:  # a dry run
            return
        report = report.model_copy(update={"notes": (*notes, *report.notes)})
    else:
        results = []
        scanned = scan_each([f.target for f in listed if not f.failure], options, on_stderr(), max_workers)
        for found in listed:
            result = failed(found.target, found.failure) if found.failure else next(scanned)
            if found.optional and result.is_other_kind:
                notes.append(result.left_out)
                continue
            (result,) = suppress(Report(results=(result,)), config.ignore, known).results
            results.append(result)
            if format == "text" and speaks():
                write_stdout(text.headline(result, wants_colour()) + "\n")
        if part:
            reported = {result.target for result in results}
            part = part.model_copy(update={"left_out": tuple(target for target in part.own if target not in reported)})
        report = Report(results=tuple(results), notes=tuple(notes), shard=part)
    report = suppress(report, config.ignore, known, whole=changed_since is None and part is None and not targets)
    if not speaks():
        return
    if asked and format == "text":
        write_stdout("".join(text.headline(result, wants_colour()) + "\n" for result in report.results))
    finish(report, format, outputs, lasting, detail)
    may_be_empty = changed_since or (part and not part.own)  # more shares than targets
    raise typer.Exit(EXIT_CLEAN if may_be_empty and not report.results else report.exit_code)


JOBS_ALONE = ("flavor", "job_timeout", "image", "requirement", "namespace", "reports", "dry_run")


def check_together(ctx: typer.Context, jobs: int | None, shard: str | None, changed_since: str | None) -> None:
    """Raises UsageError for flags that say nothing without --jobs, or contradict it."""
    flags = {param.name: param.opts[0] for param in ctx.command.params}
    given = [flags[name] for name in JOBS_ALONE if certain(ctx.get_parameter_source(name)).name == "COMMANDLINE"]
    if given and not jobs:
        raise UsageError(f"{', '.join(given)} says nothing without --jobs")
    if jobs and (shard or changed_since):
        other = "--shard" if shard else "--changed-since"
        raise UsageError(f"--jobs and {other} exclude each other", "Jobs see neither this folder nor each other")


def finish(report: Report, format: str, outputs: list[tuple[str, Path]], lasting: bool, detail: Detail) -> None:
    """Print and write the report of many; of text what comes after a line for each. lasting: as for `render`; detail: how much a
    text says."""
    from hf_ci.report import without_pictures
    from hf_ci.reports import render, text

    if format == "text":
        shown = report if lasting else without_pictures(report)
        left_out = () if detail == "verbose" else ("clean",)
        details = text.details(shown, detail, wants_colour(), left_out)
        rest = "\n" * bool(details) + details + "\n" if detail != "quiet" else ""
        write_stdout(rest + text.summary(report))
    else:
        write_stdout(render(report, format, lasting))
    for name, path in outputs:
        write_file(path, render(report, name, lasting, detail=detail))


def check_entries(found: Found) -> None:
    """Raises UsageError, with the line of the configuration, for an entry that can be neither folder nor repo, or either.
    What a pattern fits is known, or its scan says that it fits nothing."""
    from hf_ci.config import line_of
    from hf_ci.hub import parse_target

    for entry in found.config.adapters:
        try:
            if isinstance(entry, str):
                parse_target(entry)
        except UsageError as error:
            raise UsageError(f"{line_of(found.origin, str(entry))}: {error.message}", error.advice) from error
        except NothingToScan:
            pass


def init(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the sample, write nothing.")] = False,
) -> None:
    """Write a commented .hf-ci.yaml into this folder."""
    from hf_ci.config import CONFIG_FILE, SAMPLE

    if dry_run:
        write_stdout(SAMPLE)
        return
    if Path(CONFIG_FILE).exists():
        raise UsageError(f"{CONFIG_FILE} exists", "edit it, or remove it first")
    write_file(Path(CONFIG_FILE), SAMPLE)
    complain(f"wrote {CONFIG_FILE}; list your adapters in it, then: hf-ci run")


def config(ctx: typer.Context) -> None:
    """Print each setting of a scan and its origin.

    And the adapters that hf-ci run would scan, and the findings that are ignored.
    """
    scan = scan_context(ctx)
    origins = {"ENVIRONMENT": "environment", "DEFAULT_MAP": ctx.obj.origin}
    lines = ["scan:"]
    for field in sorted(set(option_names()) & scan.params.keys()):
        origin = origins.get(certain(scan.get_parameter_source(field)).name, "default")
        value = scan.params[field]
        shown = value if isinstance(value, int | float) else "" if value is None else json.dumps(str(value))
        lines.append(f"  {field.replace('_', '-')}: {shown}  # {origin}")
    for name in ("adapters", "ignore"):
        lines.append(f"{name}:  # {ctx.obj.origin or 'default'}")
        entries = ctx.obj.config.model_dump(mode="json", by_alias=True)[name]
        lines += [f"  - {json.dumps(entry)}" for entry in entries]
    write_stdout(printable("\n".join(lines) + "\n"))


# ---------------------------------------------------------------- what a scan is asked for


def option_names() -> list[str]:
    from hf_ci.settings import ScanOptions

    return [field.name for field in fields(ScanOptions)]


def scan_context(ctx: typer.Context) -> typer.Context:
    """What `hf-ci scan` would be asked for here without any flag: environment, configuration, defaults."""
    root = cast(typer.Context, ctx.find_root())
    scan = cast(TyperGroup, root.command).commands["scan"]
    return cast(typer.Context, scan.make_context("scan", ["."], parent=root))


def keep_trigger(ctx: typer.Context, params: dict[str, Any]) -> None:
    """Where no folder was named for it, the trigger is kept for as long as the command runs."""
    params["save_trigger"] = params["save_trigger"] or Path(ctx.with_resource(TemporaryDirectory(prefix="hf-ci-")))


def scan_options(params: dict[str, Any]) -> ScanOptions:
    """From the parameters of `hf-ci scan`. Raises UsageError for those that cannot be met, as far as is known without torch."""
    from hf_ci.places import check_places
    from hf_ci.settings import ScanOptions, default_cache

    cache = None if params["no_cache"] else params["cache"] or default_cache()
    options = ScanOptions(**{name: params[name] for name in option_names()} | {"cache": cache})
    check_places(options)
    return options
