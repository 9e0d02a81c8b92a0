"""hf-ci card and hf-ci badge: a verdict where people choose a model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from hf_ci.certain import certain
from hf_ci.console import complain, printable, show, write_file, write_stdout
from hf_ci.errors import HfCiError, NothingToScan, UsageError

if TYPE_CHECKING:
    from hf_ci.hub import Fetched
    from hf_ci.report import Report

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="As for scan.", show_default=False)]
ReportOption = Annotated[
    Optional[Path], typer.Option(metavar="FILE", help="A JSON report of the targets. Default: a scan.")
]


def card(
    ctx: typer.Context,
    targets: Annotated[list[str], typer.Argument(metavar="TARGET", help="As for scan.", show_default=False)],
    report: ReportOption = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check that card, badge and report agree with the weights, and with a scan."),
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write into each TARGET, a folder.")] = False,
    push: Annotated[
        Optional[str], typer.Option(metavar="pr|main|BRANCH", help="Commit to TARGET's repo on the Hub.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --write or --push: print the change only.")] = False,
    skip_others: Annotated[
        bool, typer.Option("--skip-others", help="With --check: leave out what holds no prompt of CLIP.")
    ] = False,
) -> None:
    """Put a safety section and a badge on an adapter's model card.

    Without --check, --write or --push the section goes to stdout. --check believes no report that lies beside an adapter:
    its verdict has to be that of a scan with the settings here, which takes no time where the same scan was made before.
    Exit codes, of several targets the worst: 0 done, 2 usage, 3 nothing there, 4 stale, false or not verified (--check),
    or not done.
    """
    from hf_ci.hub import folders_of, parse_target, without_lone_models
    from hf_ci.listing import expand

    targets, alone = without_lone_models(targets) if skip_others else (targets, [])
    targets = expand(folders_of(targets))
    if check + write + (push is not None) > 1:
        raise UsageError("--check, --write and --push exclude each other")
    if dry_run and not (write or push):
        raise UsageError("--dry-run says nothing without --write or --push")
    if skip_others and not check:
        raise UsageError("--skip-others says nothing without --check")
    if check:
        write_stdout("".join(printable(note + "\n") for note in alone))
        check_all(ctx, targets, skip_others)
        return
    for target in targets:
        kind = parse_target(target).kind
        if write and kind != "folder":
            raise UsageError(f"--write: {target} is no folder", "use --push for a repo on the Hub")
        if push and kind != "hub":
            raise UsageError(f"--push: {target} is no repo on the Hub", "use --write for a folder")
    failed = 0
    for target in targets:
        try:
            write_stdout(one_card(ctx, target, report, write or push is not None, push, dry_run))
        except HfCiError as error:
            if len(targets) == 1:
                raise
            complain(f"{target}: {error}")
            failed = max(failed, error.exit_code)
    if failed:
        raise typer.Exit(failed)


def one_card(ctx: typer.Context, target: str, report: Path | None, write: bool, push: str | None, dry_run: bool) -> str:
    """What was done, or the section where nothing is written."""
    from hf_ci.cards.safety import render_section
    from hf_ci.cards.section import find
    from hf_ci.hub import fetch_target, parse_target

    fetched = fetch_target(parse_target(target))
    with tempfile.TemporaryDirectory(prefix="hf-ci-") as kept:
        found = report_on(ctx, fetched, report, Path(kept))
        if write:
            return printable(write_back(found, fetched, push, dry_run))
        heading = find(fetched.read("README.md") or b"").heading
        return render_section(found, heading, picture=False) + "\n"


def check_all(ctx: typer.Context, targets: list[str], skip_others: bool) -> None:
    """One line for each target; exits with the worst code of those that are stale, false or cannot be read."""
    from hf_ci.hub import fetch_target, parse_target
    from hf_ci.kind import check_kind

    failed = 0
    standing: dict[str, Report] = {}

    def fails(text: str, error: HfCiError) -> None:
        nonlocal failed
        complain(f"{text}: {error}")
        failed = max(failed, error.exit_code)

    for text in targets:
        try:
            target = parse_target(text)  # what is nowhere is an error, whatever is left out
            try:
                fetched = fetch_target(target)
                if skip_others:
                    check_kind(fetched.folder)
            except NothingToScan as error:
                if not skip_others:
                    raise
                write_stdout(printable(f"{text} was left out: {error}\n"))
                continue
            standing[text] = standing_report(fetched)
        except HfCiError as error:
            fails(text, error)
    for text, fault in confirmed(ctx, standing):
        if fault is not None:
            fails(text, fault)
            continue
        (result,) = standing[text].results
        day = certain(result.timing).date
        write_stdout(printable(f"{text}: the card is up to date ({result.verdict}, {day})\n"))
    if failed:
        raise typer.Exit(failed)


def standing_report(fetched: Fetched) -> Report:
    """The report beside the adapter. Raises CardError where card, badge and weights do not agree with it."""
    from hf_ci.cards.safety import check

    return check(fetched.read, fetched.files)


def confirmed(ctx: typer.Context, standing: dict[str, Report]) -> Iterator[tuple[str, HfCiError | None]]:
    """Each target with why its report (target -> report) is not to be believed, None where it is: it came along with the
    adapter, so that it is held against a scan of ours, with our settings; one that was made before is recalled."""
    from hf_ci.cards.safety import confirm
    from hf_ci.progress import on_stderr
    from hf_ci.recall import scan_each
    from hf_ci.run import scan_context, scan_options

    if not standing:
        return
    results = scan_each(list(standing), scan_options(scan_context(ctx).params), on_stderr())
    for (text, report), found in zip(standing.items(), results):
        try:
            confirm(report, found)
            yield text, None
        except HfCiError as error:
            yield text, error


def badge(
    ctx: typer.Context,
    target: TargetArgument,
    report: ReportOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the badge matches the weights, and a scan.")
    ] = False,
    format: Annotated[Literal["svg", "endpoint"], typer.Option(help="endpoint: JSON for shields.io.")] = "svg",
) -> None:
    """Print an adapter's badge, bound to its weights.

    Exit codes: 0 done, 2 usage, 3 nothing there, 4 the badge does not match the weights or a scan (--check), or not
    done.
    """
    from hf_ci.cards.badge import endpoint, render_badge
    from hf_ci.hub import fetch_target, parse_target

    fetched = fetch_target(parse_target(target))
    if check:
        for _, error in confirmed(ctx, {target: standing_report(fetched)}):
            if error is not None:
                raise error
        write_stdout(f"{target}: the badge matches the weights\n")
        return
    with tempfile.TemporaryDirectory(prefix="hf-ci-") as kept:
        (result,) = report_on(ctx, fetched, report, Path(kept)).results
    write_stdout(render_badge(result) if format == "svg" else json.dumps(endpoint(result)) + "\n")


def explain(
    ctx: typer.Context,
    target: TargetArgument,
    report: ReportOption = None,
) -> None:
    """Show why a verdict is what it is: every class's signals, the null they are compared with, and the doubts.

    Exit codes: 0 shown, 2 usage, 3 nothing there, 4 no report could be had.
    """
    from hf_ci.hub import fetch_target, parse_target

    fetched = fetch_target(parse_target(target))
    with tempfile.TemporaryDirectory(prefix="hf-ci-") as kept:
        found = report_on(ctx, fetched, report, Path(kept))
        from hf_ci.explain import render  # loads torch

        write_stdout(render(found))


def report_on(ctx: typer.Context, fetched: Fetched, report: Path | None, kept: Path) -> Report:
    """The report of this target and these weights: from a file that the user names, or from a scan.

    What lies beside the adapter is not believed: whoever delivered it may have written it. A scan takes its settings
    from environment and configuration, and keeps the trigger in `kept`.
    """
    from hf_ci.cards.safety import one_result, parse_report
    from hf_ci.errors import CardError
    from hf_ci.recall import scan_each
    from hf_ci.report import Report
    from hf_ci.run import scan_context, scan_options

    text = fetched.target.text
    if report is not None:
        try:
            found = one_result(parse_report(report.read_bytes(), str(report)), text)
        except OSError as error:
            raise UsageError(f"--report {report}: {error.strerror or error}") from error
    else:
        options = replace(scan_options(scan_context(ctx).params), save_trigger=kept)
        found = Report(results=tuple(scan_each([text], options)))
    if {(file.path, file.sha256) for file in found.results[0].files} != set(fetched.files):
        raise CardError(f"the report is not about the adapter that {text} holds now", "scan it again")
    return found


def write_back(report: Report, fetched: Fetched, to: str | None, dry_run: bool = False) -> str:
    """Write section, report, badge and picture into the folder (`to` is None), or push them in one commit.

    Returns what was done, or with `dry_run` what would be.
    """
    from hf_ci.cards.badge import alternative
    from hf_ci.cards.safety import CARD, HEADLINES, PICTURE, picture_of, render_files, render_section
    from hf_ci.hub.target import check_no_link

    (result,) = report.results
    picture = picture_of(result) or (fetched.read(PICTURE) if result.trigger else None)
    build: Callable[[bytes | None], dict[str, bytes]] = lambda card: render_files(report, card, picture)
    if dry_run:
        return difference(fetched, build(fetched.read(CARD)))
    if to is None:
        for path, content in build(fetched.read(CARD)).items():
            file = check_no_link(fetched.folder, path)
            file.parent.mkdir(exist_ok=True)
            write_file(file, content)
        return f"{fetched.target.text}: {alternative(result)}\n"
    from hf_ci.hub.write import Proposal, push

    evidence = render_section(report, "## " + HEADLINES[result.verdict], picture=False)
    evidence = "\n".join(line for line in evidence.split("\n") if not line.startswith(("<!--", "![")))
    title = f"Backdoor scan: {alternative(result).partition(': ')[2]}"
    folder = fetched.target.prefix  # each adapter of a repo has a pull request of its own
    marker = f"card {hashlib.sha256(folder.encode()).hexdigest()[:12]}" if folder else "card"
    done = push(fetched, Proposal(title, evidence, marker, build), to)
    what = f"{done.url} ({done.revision})" if done.changed else f"nothing to change on {done.revision}"
    return f"{fetched.target.text}: {what}\n"


def check_pushable(targets: list[str]) -> None:
    """Raises UsageError before any work is done when one of the targets is no repo on the Hub."""
    from hf_ci.hub import parse_target

    for text in targets:
        if parse_target(text).kind != "hub":
            raise UsageError(f"--push: {text} is no repo on the Hub", "use hf-ci card --write for a folder")


def push_results(report: Report, to: str, dry_run: bool = False) -> int:
    """Push each result that says something of some weights; returns the worst exit code of a failure, 0 without any.

    A Hub that was down, or a defect of ours, is no news for whoever publishes an adapter; nor is another kind of it.

    Goes to stderr: stdout is the report's alone.
    """
    from hf_ci.cards.safety import one_result
    from hf_ci.hub import fetch_target, parse_target

    failed = 0
    for result in report.results:
        if not (result.files and result.about_weights):
            complain(f"{result.target}: nothing to push, nothing was learnt of an adapter of ours")
            continue
        try:
            at = parse_target(result.target)
            fetched = fetch_target(replace(at, revision=result.revision))
            done = write_back(one_result(report, result.target), replace(fetched, target=at), to, dry_run)
            show(done)
        except HfCiError as error:
            complain(f"{result.target}: not pushed: {error}")
            failed = max(failed, error.exit_code)
    return failed


def difference(fetched: Fetched, files: dict[str, bytes]) -> str:
    """What would change, as a unified diff; binary files and pictures in one line."""
    import difflib

    lines = []
    for path, content in sorted(files.items()):
        old = fetched.read(path)
        if old == content:
            continue
        if path.endswith((".png", ".safetensors")):
            lines.append(f"{path}: {len(content)} bytes\n")
            continue
        a, b = ((text or b"").decode("utf-8", "replace").splitlines(keepends=True) for text in (old, content))
        lines += [line if line.endswith("\n") else line + "\n" for line in difflib.unified_diff(a, b, path, path)]
    return "".join(lines) or "nothing to change\n"
