"""hf-ci merge: one report of the shards that `hf-ci run --shard I/N` scanned on many machines.

A shard's report names the whole list, so that what belongs to a missing shard is in the merged report, too: as
inconclusive, with the command that scans it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_ci.certain import certain
from hf_ci.console import (
    BaselineOption,
    FormatOption,
    OutputOption,
    QuietOption,
    VerboseOption,
    detail_of,
    parse_output,
    wants_colour,
    write_stdout,
)
from hf_ci.errors import EXIT_CLEAN, Inconclusive, UsageError

if TYPE_CHECKING:
    from hf_ci.config import Ignore
    from hf_ci.report import Report, Shard
    from hf_ci.settings import ScanOptions


def merge(
    ctx: typer.Context,
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT...", show_default=False, help="JSON reports of hf-ci run --shard I/N."),
    ],
    format: FormatOption = "text",
    output: OutputOption = None,
    baseline: BaselineOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make one report of those of all shards, with the exit code of one run over the whole list.

    Adapters of a shard whose report is missing are inconclusive. Findings are accepted as in hf-ci run, and those that
    were when a shard was scanned stay so.
    """
    from hf_ci.report import read_report
    from hf_ci.reports import FORMATS, text
    from hf_ci.run import finish
    from hf_ci.suppress import read_baseline, suppress

    outputs = [parse_output(text, FORMATS) for text in output or []]
    known = read_baseline(baseline) if baseline else frozenset()
    advice = "make one: hf-ci run --shard I/N --output json=FILE"
    read = [(path.as_posix(), read_report(path, path.as_posix(), advice)) for path in reports]
    report, changed_since = merged(read), certain(read[0][1].shard).settings.get("changed_since")
    report = report.model_copy(update={"notes": (*report.notes, *[ctx.obj.note] * bool(ctx.obj.note))})
    report = suppress(report, ctx.obj.config.ignore, known, whole=changed_since is None)
    report = report.model_copy(update={"notes": tuple(dict.fromkeys(report.notes))})
    if format == "text":
        write_stdout("".join(text.headline(result, wants_colour()) + "\n" for result in report.results))
    lasting = True  # of the triggers' folders, shards name those that stayed
    finish(report, format, outputs, lasting, detail_of(quiet, verbose))
    raise typer.Exit(EXIT_CLEAN if changed_since and not report.results else report.exit_code)


def merged(reports: Sequence[tuple[str, Report]], whole: Shard | None = None) -> Report:
    """One report of `reports`, each with the name of its file, in the order of the list.

    whole: any shard of the run, where it is known without its reports, of which there may then be none. Raises UsageError
    where they are not whole reports of different shards of one run.
    """
    from hf_ci.report import Report, failed

    named, first = ("what was asked for", Report(results=(), shard=whole)) if whole else reports[0]
    given: dict[int, str] = {}
    for name, report in reports:
        check_covers(name, report)
        check_same_run(name, report, named, first)
        shard = certain(report.shard)
        if shard.index in given:
            there = given[shard.index]
            raise UsageError(f"{name}: {numbered(shard)} was given already, as {there}", "leave one out")
        given[shard.index] = name

    whole = whole or certain(first.shard)
    results = {result.target: result for _, report in reports for result in report.results}
    notes = [note for _, report in reports for note in report.notes if note != certain(report.shard).note]
    for index in range(1, whole.count + 1):
        lost = whole.model_copy(update={"index": index})
        if index in given or not lost.own:
            continue
        command = command_of(lost)
        notes.append(f"no report of {numbered(lost)}: {len(lost.own)} targets were not scanned; {command} scans them")
        error = Inconclusive(f"not scanned: no report of {numbered(lost)} was given", command)
        results |= {target: failed(target, error) for target in lost.own}
    in_order = tuple(results[target] for target in whole.targets if target in results)
    return Report(tool=first.tool, results=in_order, notes=tuple(dict.fromkeys(notes)))


def check_covers(name: str, report: Report) -> None:
    """Raises UsageError unless the report says something of each target of its shard, once, and of no other."""
    if report.shard is None:
        raise UsageError(f"{name}: a report of no shard", "give those of hf-ci run --shard I/N")
    own, told = report.shard.own, Counter([*(result.target for result in report.results), *report.shard.left_out])
    faults = [f"it says nothing of {target}, which is of its shard" for target in own if target not in told]
    faults += [f"{target} is not of {numbered(report.shard)}" for target in told.keys() - set(own)]
    faults += [f"it holds {target} twice" for target, times in told.items() if times > 1]
    if faults:
        raise UsageError(f"{name}: {faults[0]}", f"scan it again: {command_of(report.shard)}")


def check_same_run(name: str, report: Report, named: str, first: Report) -> None:
    """Raises UsageError where the two are of different lists, settings or versions."""
    shard, other = certain(report.shard), certain(first.shard)
    if report.tool != first.tool:
        ours, theirs = (f"{tool.name} {tool.version}" for tool in (report.tool, first.tool))
        raise UsageError(f"{name}: made by {ours}, {named} by {theirs}", "scan both with one version")
    if shard.count != other.count:
        raise UsageError(f"{name}: one of {shard.count} shards, {named} one of {other.count}", "give those of one run")
    if shard.targets != other.targets:
        odd = sorted(set(shard.targets) ^ set(other.targets))
        where = name if odd[0] in shard.targets else named
        raise UsageError(
            f"{name}: of another list than {named}: {odd[0]} is in {where} alone"
            + f", and so are {len(odd) - 1} more in one of them" * (len(odd) > 1),
            "scan it again, or leave it out: its adapters are inconclusive then",
        )
    for key in sorted(shard.settings.keys() | other.settings.keys()):
        ours, theirs = (json.dumps(settings.get(key)) for settings in (shard.settings, other.settings))
        if ours != theirs:
            flag = key.replace("_", "-")
            raise UsageError(
                f"{name}: scanned with other settings than {named}: {flag} is {ours}, there {theirs}",
                "scan both with one configuration",
            )


def numbered(shard: Shard) -> str:
    return f"shard {shard.index}/{shard.count}"


def command_of(shard: Shard) -> str:
    """What scans this shard, where its configuration is."""
    words = ["hf-ci", "run", *shard.asked, "--shard", f"{shard.index}/{shard.count}"]
    if shard.settings.get("changed_since"):
        words += ["--changed-since", str(shard.settings["changed_since"])]
    if shard.settings.get("baseline"):
        words += ["--baseline", "FILE"]
    return shlex.join([*words, "--output", f"json=shard-{shard.index}.json"])


# ---------------------------------------------------------------- which share, of which run


def parse_shard(text: str) -> tuple[int, int]:
    """I and N of "I/N", 1 <= I <= N. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N", "such as --shard 3/64")
    return int(found[1]), int(found[2])


def shard_of(
    targets: Collection[str],
    index: int,
    count: int,
    options: ScanOptions,
    ignores: Sequence[Ignore],
    baseline: frozenset[str],
    changed_since: str | None,
    asked: Sequence[str] = (),
) -> Shard:
    """The index-th of `count` shares of `targets`, in whichever order these were found."""
    from hf_ci.recall import IRRELEVANT, READ
    from hf_ci.report import Shard

    settings = {name: value for name, value in asdict(options).items() if name not in (*IRRELEVANT, "device")}
    for name in READ:  # what a file holds counts, not where it lies
        settings[name] = settings[name] and file_digest(f"--{name}", settings[name])
    ignored = sorted(json.dumps(ignore.model_dump(mode="json")) for ignore in ignores)
    accepted = {"ignore": digest(ignored), "baseline": digest(sorted(baseline)), "changed_since": changed_since}
    ordered = tuple(sorted(targets))
    return Shard(index=index, count=count, targets=ordered, settings=settings | accepted, asked=tuple(asked))


def digest(lines: Sequence[str]) -> str | None:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def file_digest(flag: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}", "name a file") from error
