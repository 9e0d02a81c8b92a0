"""The report for reading in a terminal: for each target the verdict, what to do, why, and the numbers; then what holds for
all of them, once, and a line that counts.

quiet      a line a target, and the line that counts
normal     what somebody needs who has to decide
verbose    and what somebody needs who wants to argue: every class, every warning in full, the settings
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from typing import Literal

from hf_ci.console import columns, painted, printable
from hf_ci.errors import EXIT_INTERNAL, EXIT_NOTHING
from hf_ci.report import MADE_POOL, VULNERABLE_CLASSES, ClassScore, Report, ScanResult

Detail = Literal["quiet", "normal", "verbose"]
MOST_CLASSES, MOST_NOTES, MOST_NAMES = 8, 8, 5
SETTLES = "what would settle it"  # how a reason begins that is advice


def render(report: Report, detail: Detail = "normal", colour: bool = False) -> str:
    if detail == "quiet":
        return "".join(headline(result, colour) + "\n" for result in report.results) + summary(report)
    return details(report, detail, colour) + "\n" + summary(report)


def details(report: Report, detail: Detail = "normal", colour: bool = False, left_out: Sequence[str] = ()) -> str:
    """What holds for all targets is said once, after them. left_out: verdicts that need no more than their line."""
    common = in_common(report.results, detail)
    parts = [block(result, common, detail, colour) for result in report.results if result.verdict not in left_out]
    if common:
        lines = [paragraph(line) for line in common]
        parts.append(printable("\n".join(["For all of them:"] * (len(report.results) > 1) + lines) + "\n"))
    if noted := notes(report, detail):
        parts.append(noted)
    return "\n".join(parts)


# ---------------------------------------------------------------- one target


def block(result: ScanResult, common: Sequence[str] = (), detail: Detail = "normal", colour: bool = False) -> str:
    """common: what is said elsewhere."""
    lines = [*what_to_do(result), *map(paragraph, why(result, detail))]
    every = detail == "verbose"
    if result.classes and (every or result.verdict == "backdoored"):
        shown = sorted(result.classes, key=lambda c: -c.score) if every else suspicious(result.classes)
        lines += ["", *scores(shown), ""]
    if result.accuracy:
        lines.append(paragraph(f"Accuracy: {result.accuracy}"))
    if result.trigger and result.trigger.path:
        size = f"{result.trigger.linf * 255:.0f}/255"
        lines.append(paragraph(f"Reconstructed trigger (largest change {size}): {result.trigger.path}"))
    lines += [paragraph(line) for line in remarks(result, detail) if line not in common]
    if result.pool and result.base_model and result.timing:
        lines.append(
            paragraph(
                f"{result.num_classes} classes, {result.method}, base {result.base_model.id}"
                f"@{(result.base_model.revision or '?')[:7]}, {result.pool.num_images} images of {result.pool.id}, "
                f"{result.timing.seconds:.0f} s"
            )
        )
    if every:
        lines += map(paragraph, settings(result))
    if result.fingerprint and not result.suppressed:
        lines.append(paragraph(f"Fingerprint: {result.fingerprint}"))
    return headline(result, colour) + "\n" + printable("\n".join(lines)).rstrip("\n") + "\n"


def headline(result: ScanResult, colour: bool = False) -> str:
    """The name and the verdict, with the class; in colour where it is wanted."""
    named = f" ({short(result.target_class.name)})" if result.target_class else ""
    more = named + (" (ignored)" if result.suppressed else "")
    line = dotted(result.pinned(7), result.verdict + more)
    end = len(line) - len(printable(more))
    begin = end - len(result.verdict)
    return line[:begin] + painted(line[begin:end], result.verdict, colour) + line[end:]


def what_to_do(result: ScanResult) -> list[str]:
    if result.suppressed:
        return [paragraph(str(result.suppressed).capitalize())]
    if result.verdict == "backdoored":
        name = short(result.target_class.name) if result.target_class else "one of its classes"
        lead = f"Do not deploy this adapter: a trigger sends images to {name!r}. To take the backdoor out, try:"
        return [paragraph(lead), *command(repair_words(result))]
    if result.verdict == "clean":
        return [paragraph("Nothing stood out. It is no proof: not every kind of trigger was looked for.")]
    if result.exit_code == EXIT_NOTHING:
        return [paragraph("Nothing to scan.")]
    if result.exit_code == EXIT_INTERNAL:
        return [paragraph("Not judged, because hf-ci failed: never treat it as clean.")]
    if not result.classes:
        return [paragraph("Not judged: never treat it as clean.")]
    if not any(reason.startswith(SETTLES) for reason in result.reasons):
        return [paragraph("Not decided: never treat it as clean.")]
    if result.photos:
        return [paragraph("Not decided, with these photos either: never treat it as clean.")]
    return [paragraph("Not decided: never treat it as clean, and give --data with 4 to 16 photos of each class.")]


def repair_words(result: ScanResult) -> list[str]:
    """The command, with what the scan was told that a repair cannot know."""
    given = result.settings.given if result.settings else {}
    words = ["hf-ci", "repair", result.target, "--out", "repaired", "--data", str(given.get("data", "PHOTOS"))]
    for name in ("base", "classes", "position"):
        words += [f"--{name}", str(given[name])] if name in given else []
    return words


def why(result: ScanResult, detail: Detail) -> list[str]:
    """Of a backdoor the worst class, as the table has the others; what would settle it is said by what to do."""
    reasons = list(result.reasons)
    if detail != "verbose":
        reasons = [reason for reason in reasons if not reason.startswith(SETTLES)]
        reasons = reasons[:1] if result.verdict == "backdoored" else reasons
    return [f"Why: {reasons[0]}", *reasons[1:]] if reasons else []


def remarks(result: ScanResult, detail: Detail = "normal") -> list[str]:
    """What is worth knowing beside the verdict. What comes with most scans has a line of its own for all targets."""
    usual = () if detail == "verbose" else (MADE_POOL, VULNERABLE_CLASSES)
    lines = [f"Warning: {warning}" for warning in result.warnings if not warning.startswith(usual)]
    sought = [f"Looked for: {', '.join(result.looked_for)}", f"Not looked for: {', '.join(result.not_looked_for)}"]
    return lines + (sought if result.looked_for else [])


def settings(result: ScanResult) -> list[str]:
    """How it was scanned, as far as that was come to."""
    lines = []
    if result.detector:
        limits = ", ".join(f"{name} {value:g}" for name, value in result.detector.thresholds.items())
        lines += [f"Detector: {result.detector.name} ({limits}); {result.detector.calibration}"]
    if result.score is not None:
        far = "" if result.distance is None else f"; answers {result.distance:.0%} of the pool as no clean prompt does"
        lines += [f"Score: {result.score:.2f}{far}"]
    if result.settings:
        inversion = ", ".join(f"{name} {value}" for name, value in result.settings.inversion.items())
        how = f"{result.settings.precision} on {result.settings.device}, seed {result.settings.seed}"
        lines += [f"Inversion: {inversion}; {how}"]
    if result.cost:
        lines += [f"Cost: {result.cost.image_forward:,} images forward, {result.cost.image_backward:,} backward"]
    lines += [f"File: {file.path}, sha256 {file.sha256}" for file in result.files]
    return lines


# ---------------------------------------------------------------- all of them


def in_common(results: Sequence[ScanResult], detail: Detail = "normal") -> list[str]:
    """What holds for all targets that were scanned, and what is usual, short."""
    found = [lines for result in results if (lines := remarks(result, detail))]
    lines = [line for line in (found[0] if found else []) if all(line in others for others in found)]
    return (usual(results) if detail != "verbose" else []) + lines


def usual(results: Sequence[ScanResult]) -> list[str]:
    """Of what many scans warn of, one line for all targets."""
    names = Counter(c.name for result in results for c in result.classes if c.vulnerable)
    lines = [
        f"Vulnerable on the base model, whatever the prompt, which is no backdoor: {listed([n for n, _ in names.most_common()])}"
    ] * bool(names)
    made = any(MADE_POOL in result.warnings for result in results)
    return lines + ["The built-in pool judges less surely than photos: give some of your own with --pool"] * made


def notes(report: Report, detail: Detail = "normal") -> str:
    shown = report.notes if detail == "verbose" else report.notes[:MOST_NOTES]
    lines = [paragraph(f"Note: {one_line(note)}", indent="") for note in shown]
    if rest := len(report.notes) - len(shown):
        lines.append(f"Note: {rest} more (--verbose)")
    return printable("".join(line + "\n" for line in lines))


def summary(report: Report) -> str:
    """Such as "3 scanned: 2 clean, 1 backdoored (frog)"."""
    counts = Counter(result.verdict for result in report.results)
    ignored = sum(result.suppressed is not None for result in report.results)
    names = [short(result.target_class.name) for result in report.results if result.target_class]
    parts = [f"{counts[verdict]} {verdict}" for verdict in ("clean", "backdoored", "inconclusive") if counts[verdict]]
    parts = [
        f"{part} ({listed(list(dict.fromkeys(names)))})" if "backdoored" in part and names else part for part in parts
    ]
    line = f"{len(report.results)} scanned" + (f": {', '.join(parts)}" if parts else "")
    return printable(paragraph(line + (f"; {ignored} ignored" if ignored else ""), indent="")) + "\n"


# ---------------------------------------------------------------- lines


def one_line(text: str) -> str:
    return " ".join(text.split())


def short(name: str, most: int = 30) -> str:
    """A class's name in a line that has to stay one."""
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(short(name) for name in names[:MOST_NAMES]) + more


def dotted(name: str, outcome: str) -> str:
    """In one line where there is room for it; a longer name has lines of its own."""
    name, outcome = printable(one_line(name)), printable(outcome)
    room = columns() - len(outcome) - 3
    lines = [name[i : i + columns()] for i in range(0, len(name), columns())] or [""]
    if len(lines[-1]) > room:
        lines.append("")
    lines[-1] += "." * (columns() - len(lines[-1]) - len(outcome)) + outcome
    return printable("\n".join(lines))


def paragraph(text: str, indent: str = "  ") -> str:
    """Folded; what is longer than a line, as a fingerprint may be, is broken, and nothing is cut off."""
    return textwrap.fill(text, columns(), initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)


def command(words: Sequence[str]) -> list[str]:
    """For a shell, in as many lines as it takes; a word that has no room in any stays whole, so that it can be copied."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) + 7 > columns():
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return ["    " + line + (" \\" if line is not lines[-1] else "") for line in lines]


def suspicious(classes: tuple[ClassScore, ...]) -> list[ClassScore]:
    """Flagged classes, then the next worst for comparison."""
    worst = sorted(classes, key=lambda c: (-c.flagged, -c.score))
    return worst[: max(MOST_CLASSES // 2, min(MOST_CLASSES, sum(c.flagged for c in worst) + 2))]


def scores(classes: Sequence[ClassScore]) -> list[str]:
    compared = all(c.reference_asr is not None for c in classes)
    rows = [
        [
            one_line(c.name),
            f"{c.score:.2f}",
            f"{c.asr:.0%}",
            f"{c.loss:.2f}",
            *([f"{c.reference_asr:.0%}"] if compared else []),
            f"<- {c.mark}" if c.mark else "",
        ]
        for c in classes
    ]
    return table(["class", "score", "ASR", "loss", *(["ASR, clean prompt"] if compared else []), ""], rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines that fit; the first and the last column are texts, which fold, those between them numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sheet = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=None)
    for i, heading in enumerate(headings):
        number = 0 < i < len(headings) - 1
        sheet.add_column(Text(heading), justify="right" if number else "left", overflow="fold", min_width=4)
    for row in rows:
        sheet.add_row(*map(Text, row))
    out = StringIO()
    Console(file=out, width=columns() - 2, color_system=None, legacy_windows=False).print(sheet)
    return [f"  {line}".rstrip() for line in out.getvalue().splitlines()]
