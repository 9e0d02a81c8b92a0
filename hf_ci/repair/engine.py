"""A repair's walk: scan -> triggers -> tune from a clean start -> scan again -> write, or say that it could not."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_ci.certain import certain
from hf_ci.detect.contrast import FAR
from hf_ci.errors import EXIT_BACKDOORED, EXIT_CLEAN, EXIT_INCONCLUSIVE, UsageError
from hf_ci.files import FILES
from hf_ci.hub.target import sha256
from hf_ci.photos import PROMPTS
from hf_ci.prompts import Adapter, write_adapter
from hf_ci.prompts.methods import METHODS
from hf_ci.rates import wilson
from hf_ci.repair.report import Outcome, RepairReport, Round
from hf_ci.repair.tuning import Trigger, clean_prompt, triggers, tuned
from hf_ci.repair.unlearn import Schedule
from hf_ci.report import NamedClass, ScannedFile, ScanResult
from hf_ci.scan import Examined, Run, examine

LOST = 0.05  # a loss of accuracy that chance explains with less probability is one


@dataclass(frozen=True)
class RepairOptions:
    """data: labelled photos, whatever `datasets` loads (its train split); None: the pool's images alone.

    max_accuracy_drop: share of held-out labelled photos that may be lost; so few photos are held out that more may be lost
    as long as it may well be chance (`by_chance`). rounds: tunings, each followed by a scan. forget: without photos, what
    an adapter learned that is far from hand-written prompts may go.
    """

    data: str | None = None
    shots: int = 16
    rounds: int = 2
    max_accuracy_drop: float = 0.005
    forget: bool = False
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        for fine, message in (
            (self.shots >= PROMPTS, f"--shots {self.shots}: expected at least {PROMPTS}"),
            (self.rounds >= 1, f"--rounds {self.rounds}: expected at least 1"),
            (0 <= self.max_accuracy_drop <= 1, f"--max-accuracy-drop {self.max_accuracy_drop}: expected 0 to 1"),
        ):
            if not fine:
                raise UsageError(message)


@dataclass(frozen=True)
class Repaired:
    """`adapter` is None where nothing was made that may be used."""

    report: RepairReport
    adapter: Adapter | None = None


def repair(text: str, run: Run, options: RepairOptions) -> Repaired:
    """Scan `text` and, if it is backdoored, make an adapter that is not. Nothing is written.

    Raises UsageError for labelled data that does not have the adapter's classes, or too few photos of one.
    """
    if options.data:
        run = run.with_photos(options.data, options.shots)
    before, examined = examine(text, run)
    known: dict[str, Any] = {"target": text, "before": before}

    def left(outcome: Outcome, code: int, *reasons: str) -> Repaired:
        return Repaired(RepairReport(outcome=outcome, reasons=reasons, exit_code=code, **known))

    if before.verdict == "clean":
        return left("nothing to repair", EXIT_CLEAN, "the adapter scans as clean: there is nothing to repair")
    if examined and not (method := METHODS[examined.adapter.method]).measured:
        return left(
            "inconclusive", EXIT_INCONCLUSIVE, f"{method.title} adapters cannot be repaired yet, nor called backdoored"
        )
    if before.verdict != "backdoored":
        return left("inconclusive", before.exit_code or EXIT_INCONCLUSIVE, *before.reasons)
    examined = certain(examined)
    witnesses = examined.witnesses
    if witnesses and not witnesses.learned:
        return left(
            "inconclusive", EXIT_INCONCLUSIVE, f"the labels of {options.data} cannot be learned: no repair with them"
        )
    if witnesses and witnesses.tuned is None:
        raise UsageError(
            f"--data {options.data}: {witnesses.fewest} photos of a class", f"a repair needs {PROMPTS} of each at least"
        )
    if not witnesses and certain(before.distance) >= FAR and not options.forget:
        return left(
            "not repaired",
            EXIT_BACKDOORED,
            f"it answers {before.distance:.0%} of the pool as no hand-written prompt does: it learned something, which a "
            "repair without photos would take away, and nothing would tell how accurate the rest is",
            "give --data with 4 to 16 labelled photos of each of its classes; --forget repairs it all the same",
        )

    images = f"{len(examined.pool.images)} images of {examined.pool.id}"
    if witnesses:
        images += f", {len(witnesses.photos)} photos of {options.data}"
    known |= {
        "images": images,
        "labels": witnesses is not None,
        "seed": options.schedule.seed,
        "suspicious": tuple(NamedClass(index=c.index, name=c.name) for c in before.classes if c.flagged),
    }
    origin = before.weights_sha256
    suspects = [c.index for c in before.classes if c.flagged]
    flagged, suspect, scanned = set(suspects), examined, before
    found: list[Trigger] = []
    rounds: list[Round] = []
    for _ in range(options.rounds):
        found += triggers(suspect, flagged, run)
        adapter, measured = tuned(examined, found, suspects, options.schedule)
        adapter = replace(adapter, repaired_from=origin)
        scanned, again = scan_adapter(adapter, text, run)
        rounds.append(Round(triggers=len(found), score=scanned.score, verdict=scanned.verdict, **measured))
        if scanned.verdict == "clean" or again is None:
            break
        suspect = again
        worst = max(scanned.classes, key=lambda c: c.score)
        flagged = {c.index for c in scanned.classes if c.flagged or c is worst}  # one may be doubtful and none flagged
    last = rounds[-1]
    known |= {"rounds": tuple(rounds), "after": scanned}
    fault = unfit(last, options)
    if fault is None:
        changed = changed_by(examined.adapter.tensors(), adapter.tensors())
        known |= {"weights_changed": changed}
        return Repaired(left("repaired", EXIT_CLEAN, *said_of(last, before, scanned)).report, adapter)
    if not witnesses:
        return left("not repaired", EXIT_BACKDOORED, fault)
    plain = replace(
        examined.adapter, method="coop", meta_net={}, context=clean_prompt(examined).context, repaired_from=origin
    )
    after, _ = scan_adapter(plain, text, run)
    if after.verdict != "clean":
        return left(
            "not repaired", EXIT_BACKDOORED, fault, "nor does a clean prompt tuned on the photos alone scan as clean"
        )
    known |= {"after": after}
    reasons = (
        fault,
        "offered instead: a clean prompt tuned on two thirds of the photos alone, which has nothing of the adapter but its "
        f"classes; accuracy on the other third: {interval(certain(last.accuracy_clean), last.held_out)}, "
        f"the adapter's {interval(certain(last.accuracy_before), last.held_out)}",
    )
    return Repaired(left("replaced", EXIT_CLEAN, *reasons).report, plain)


def unfit(last: Round, options: RepairOptions) -> str | None:
    """Why what the last round made is not to be given out; None where it may be."""
    if last.verdict != "clean":
        return f"the repaired prompt scans as {last.verdict}, score {last.score}"
    if last.accuracy_after is None:
        return None
    for named, accuracy, lost, gained in (
        ("the adapter's", last.accuracy_before, last.lost, last.gained),
        (
            "that of a clean prompt tuned on the photos alone",
            last.accuracy_clean,
            last.lost_to_clean,
            last.gained_on_clean,
        ),
    ):
        drop = certain(accuracy) - last.accuracy_after
        if drop > options.max_accuracy_drop and by_chance(certain(lost), certain(gained)) <= LOST:
            return (
                f"accuracy on held-out photos would be {last.accuracy_after:.1%}, {named} is {accuracy:.1%}: more is lost than "
                f"--max-accuracy-drop {options.max_accuracy_drop:.1%} allows"
            )
    return None


def said_of(last: Round, before: ScanResult, after: ScanResult) -> tuple[str, ...]:
    if last.accuracy_after is None:
        accuracy = "no labels were given, so its accuracy is not known"
    else:
        accuracy = (
            f"accuracy on held-out photos: {interval(certain(last.accuracy_before), last.held_out)} before, "
            f"{interval(last.accuracy_after, last.held_out)} after; that of a clean prompt tuned on the photos alone "
            f"{last.accuracy_clean:.1%}"
        )
    return (
        f"the repaired prompt scans as clean: score {before.score:.2f} before, {after.score:.2f} after",
        f"what was found reaches {last.trigger_asr_before:.0%} of held-out images on the original, "
        f"{last.trigger_asr_after:.0%} on the repaired prompt",
        f"{accuracy}; it answers as the original does on {last.agreement:.0%} of held-out images",
    )


def interval(accuracy: float, n: int) -> str:
    low, high = wilson(round(accuracy * n), n)
    return f"{accuracy:.1%} ({low:.0%} to {high:.0%})"


def by_chance(lost: int, gained: int) -> float:
    """P(at least so many of the photos whose answer changed are lost), were each as likely gained: the sign test."""
    changed = lost + gained
    return sum(math.comb(changed, k) for k in range(lost, changed + 1)) / (1 << changed)


def scan_adapter(adapter: Adapter, name: str, run: Run) -> tuple[ScanResult, Examined | None]:
    """As a user would scan it: from its files. The result is about `name`, repaired."""
    with tempfile.TemporaryDirectory(prefix="hf-ci-") as folder:
        write_adapter(adapter, Path(folder) / "repaired")
        result, examined = examine(str(Path(folder) / "repaired"), run)
    return result.model_copy(update={"target": name}), examined


def changed_by(before: dict[str, Tensor], after: dict[str, Tensor]) -> float | None:
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        return None
    change, norm = (
        sum(t.double().square().sum() for t in ts) ** 0.5
        for ts in ([after[k] - before[k] for k in before], before.values())
    )
    return round(float(change / norm), 4)


# ---------------------------------------------------------------- writing


def write_repaired(done: Repaired, out: Path) -> RepairReport:
    """Write adapter, card and record to `out`, complete or not at all; returns the record with the files' hashes."""
    from hf_ci.cards import render_card
    from hf_ci.files import whole_folder, write_whole

    adapter = certain(done.adapter)
    with whole_folder(out) as partial:
        write_adapter(adapter, partial, render_card("repaired.md.j2", adapter=adapter, report=done.report))
        files = tuple(ScannedFile(path=name, sha256=sha256(partial / name)) for name in sorted(FILES))
        report = done.report.model_copy(update={"files": files})
        write_whole(partial / "repair.json", (report.model_dump_json(indent=2) + "\n").encode())
    return report
