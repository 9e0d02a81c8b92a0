"""hf-ci repair: give back an adapter that is clean, and the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from hf_ci.certain import certain
from hf_ci.console import printable, show, write_stdout
from hf_ci.errors import UsageError

if TYPE_CHECKING:
    from hf_ci.hub import Fetched
    from hf_ci.repair.engine import Repaired
    from hf_ci.repair.report import RepairReport

TITLES = {
    "repaired": "Repaired weights: no backdoor found any more",
    "replaced": "A clean prompt, tuned on photos, in place of the backdoored one",
}


def repair(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="As for scan.", show_default=False)],
    out: Annotated[Optional[Path], typer.Option(metavar="DIR", help="A folder that does not exist yet.")] = None,
    data: Annotated[
        Optional[str],
        typer.Option(
            help="Labelled photos of the adapter's classes, as for scan: what it learned is kept by them. An adapter that "
            "learned something is not repaired without."
        ),
    ] = None,
    shots: Annotated[int, typer.Option(help="Labelled photos of each class.")] = 16,
    rounds: Annotated[int, typer.Option(help="Tunings at most, each followed by a scan.")] = 2,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Share of held-out labelled photos that may be lost, or more if that may be chance.")
    ] = 0.005,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Without --data, give up what an adapter learned beyond a hand-written prompt."),
    ] = False,
    base: Annotated[Optional[str], typer.Option(help="Base model, instead of the one the adapter names.")] = None,
    pool: Annotated[str, typer.Option(help="As for scan.")] = "builtin",
    num_images: Annotated[int, typer.Option(help="Images to draw from the pool.")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
    calibration: Annotated[Optional[Path], typer.Option(metavar="FILE", help="As for scan.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option()] = "auto",
    num_processes: Annotated[int, typer.Option(help="For the scans.")] = 1,
    classes: Annotated[Optional[Path], typer.Option(metavar="FILE", help="As for scan.")] = None,
    position: Annotated[Optional[Literal["end", "middle", "front"]], typer.Option(help="As for scan.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep finished classes.")] = False,
    format: Annotated[Literal["text", "json"], typer.Option(help="What goes to stdout.")] = "text",
    push: Annotated[
        Optional[str],
        typer.Option(
            metavar="pr|BRANCH|repo", help="Offer the weights to TARGET's repo, or put them in a new one beside it."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: show the change, make none.")] = False,
) -> None:
    """Scan an adapter and, if it is backdoored, make one that is not. The original is never touched.

    Exit codes: 0 repaired, replaced or nothing to repair; 1 not repaired, nothing is written; 2 usage; 3 nothing there;
    4 inconclusive.
    """
    from hf_ci.hub import fetch_target, parse_target
    from hf_ci.places import check_data, check_places
    from hf_ci.progress import on_stderr
    from hf_ci.settings import ScanOptions, default_cache

    if out is None and push is None:
        raise UsageError("nowhere to put a repaired adapter", "name a folder with --out, or use --push pr")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", "name another folder with --out")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.absolute().parent}", "make it first")
    if dry_run and not push:
        raise UsageError("--dry-run says nothing without --push")
    if push == "main":
        raise UsageError("--push main: a repair is offered, not forced on", "use --push pr, or a branch")
    if parse_target(target).kind != "hub" and push:
        raise UsageError(f"--push: {target} is no repo on the Hub", "use --out")
    scan_options = ScanOptions(
        base=base,
        pool=pool,
        num_images=num_images,
        seed=seed,
        calibration=calibration,
        device=device,
        precision=precision,
        num_processes=num_processes,
        classes=classes,
        position=position,
        cache=None if no_cache else default_cache(),
    )
    check_places(scan_options)
    if data is not None:
        check_data(data)
    from hf_ci.repair.engine import RepairOptions, write_repaired
    from hf_ci.repair.engine import repair as repair_target
    from hf_ci.repair.unlearn import Schedule
    from hf_ci.scan import Run

    options = RepairOptions(data, shots, rounds, max_accuracy_drop, forget, Schedule(seed=seed))
    done = repair_target(target, Run(scan_options, on_stderr()), options)
    report = done.report
    if done.adapter is not None and out is not None:
        try:
            report = write_repaired(done, out)
        except OSError as error:
            raise UsageError(f"{out} cannot be written: {error.strerror or error}", "nothing was written") from error
    write_stdout(report.model_dump_json(indent=2) + "\n" if format == "json" else render(report, out))
    if done.adapter is not None and push:
        show(offer(done, fetch_target(parse_target(target)), push, dry_run))
    raise typer.Exit(report.exit_code)


def render(report: RepairReport, out: Path | None) -> str:
    from hf_ci.reports.text import dotted, paragraph

    lines = [dotted(report.target, report.outcome)]
    lines += [paragraph(reason) for reason in report.reasons]
    if report.outcome in ("repaired", "replaced") and out is not None:
        lines.append(paragraph(f"written to {out}; repair.json there has the record"))
    return printable("\n".join(lines) + "\n")


def offer(done: Repaired, fetched: Fetched, to: str, dry_run: bool = False) -> str:
    """Push weights, card, badge and record in one commit; returns a line that says where, or what would change.

    To the repo that was scanned, on what was scanned; or ("repo") to a new one, ORG/MODEL-repaired, which a pull request
    then names on the old card as its new version.
    """
    import tempfile

    from hf_ci.cards.cli import difference
    from hf_ci.cards.metadata import set_field
    from hf_ci.cards.safety import CARD, render_files
    from hf_ci.files import FILES
    from hf_ci.hub.write import Proposal, push, push_new_repo
    from hf_ci.repair.engine import write_repaired
    from hf_ci.report import Report

    with tempfile.TemporaryDirectory(prefix="hf-ci-") as name:
        folder = Path(name) / "repaired"
        report = write_repaired(done, folder)
        files = {name: (folder / name).read_bytes() for name in (*FILES, "repair.json")}
        own_card = (folder / CARD).read_bytes()
    after = Report(results=(certain(report.after),))
    if dry_run:
        card = own_card if to == "repo" else fetched.read(CARD)
        return difference(fetched, files | render_files(after, card, None))
    text = "\n".join(f"- {reason}" for reason in report.reasons) + f"\n\nOriginal: `{fetched.revision}`."
    title, repo = TITLES[report.outcome], fetched.target.location
    if to != "repo":
        proposal = Proposal(title, text, "repair", lambda card: files | render_files(after, card, None))
        pushed = push(fetched, proposal, to)
        return f"{fetched.target.text}: repaired weights at {pushed.url} ({pushed.revision})"
    new = f"{repo}-repaired"
    pushed = push_new_repo(fetched, new, files | render_files(after, own_card, None), title)
    named = Proposal(
        f"New version: {new}", text, "new-version", lambda card: {CARD: set_field(card or b"", "new_version", new)}
    )
    asked = push(fetched, named, "pr")
    return f"{fetched.target.text}: repaired weights at {pushed.url}, named as the new version in {asked.url}"
