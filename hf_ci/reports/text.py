"""The report for reading in a terminal: one line a target, then what to know about it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from hf_ci.console import printable
from hf_ci.report import ClassScore, Report, ScanResult

WIDTH = 79
MOST_CLASSES = 8


def render(report: Report) -> str:
    """Of several targets the last line counts the verdicts."""
    return details(report) + ("\n" + summary(report) if len(report.results) > 1 else "")


def details(report: Report) -> str:
    """What holds for all of several targets is said once, after them."""
    results, several = report.results, len(report.results) > 1
    common = (
        [line for line in circumstances(results[0]) if all(line in circumstances(r) for r in results)]
        if several
        else []
    )
    text = "\n".join(block(result, common) for result in results)
    if common:
        text += "\nFor all of them:\n" + "".join(paragraph(line) + "\n" for line in common)
    return printable(text + notes(report))


def circumstances(result: ScanResult) -> list[str]:
    """What is worth knowing beside the verdict."""
    sought = [f"Looked for: {', '.join(result.looked_for)}", f"Not looked for: {', '.join(result.not_looked_for)}"]
    return (sought if result.looked_for else []) + [f"Warning: {warning}" for warning in result.warnings]


def block(result: ScanResult, common: Sequence[str] = ()) -> str:
    """common: what is said elsewhere."""
    lines = [headline(result)]
    lines += [paragraph(reason) for reason in result.reasons]
    if result.verdict == "backdoored":
        lines += [
            "",
            *table(suspicious(result.classes)),
            "",
            paragraph(
                "What to do: do not deploy this adapter. Ask its provider how it was tuned, or tune the prompt anew from "
                "a source that you trust. hf-ci explain shows the evidence, hf-ci repair tries to take the backdoor out."
            ),
        ]
    if result.suppressed:
        lines.append(paragraph(str(result.suppressed).capitalize()))
    elif result.fingerprint:
        lines.append(paragraph(f"Fingerprint: {result.fingerprint}"))
    if result.trigger and result.trigger.path:
        lines.append(
            paragraph(
                f"Reconstructed trigger (largest change {result.trigger.linf * 255:.0f}/255): {result.trigger.path}"
            )
        )
    if result.accuracy:
        lines.append(paragraph(f"Accuracy: {result.accuracy}"))
    lines += [paragraph(line) for line in circumstances(result) if line not in common]
    if result.pool and result.base_model and result.timing:
        facts = (
            f"{result.num_classes} classes, {result.method}, base {result.base_model.id}"
            f"@{(result.base_model.revision or '?')[:7]}, {result.pool.num_images} images of {result.pool.id}, "
            f"{result.timing.seconds:.0f} s"
        )
        lines.append(paragraph(facts))
    return "\n".join(lines) + "\n"


def notes(report: Report) -> str:
    return "".join(f"Note: {one_line(note)}\n" for note in report.notes)


def one_line(text: str) -> str:
    return " ".join(text.split())


def summary(report: Report) -> str:
    counts = Counter(result.verdict for result in report.results)
    ignored = sum(result.suppressed is not None for result in report.results)
    parts = [f"{counts[verdict]} {verdict}" for verdict in ("clean", "backdoored", "inconclusive") if counts[verdict]]
    adapters = f"{len(report.results)} adapter" + "s" * (len(report.results) != 1)
    return f"{adapters}: {', '.join(parts) or 'none'}" + (f"; {ignored} ignored" if ignored else "") + "\n"


def headline(result: ScanResult) -> str:
    return dotted(result.pinned(7), result.verdict + (" (ignored)" if result.suppressed else ""))


def dotted(name: str, outcome: str) -> str:
    name = printable(one_line(name))
    return name + "." * max(3, WIDTH - len(name) - len(outcome)) + outcome


def paragraph(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def suspicious(classes: tuple[ClassScore, ...]) -> list[ClassScore]:
    """Flagged classes, then the next worst for comparison."""
    worst = sorted(classes, key=lambda c: (-c.flagged, -c.score))
    return worst[: max(MOST_CLASSES // 2, min(MOST_CLASSES, sum(c.flagged for c in worst) + 2))]


def table(classes: list[ClassScore]) -> list[str]:
    width = max(5, *(len(one_line(c.name)) for c in classes))
    compared = all(c.reference_asr is not None for c in classes)
    heading = f"  {'class':<{width}}  {'score':>6}  {'ASR':>5}  {'loss':>7}"
    rows = [heading + ("  ASR, clean prompt" if compared else "")]
    rows += [
        f"  {one_line(c.name):<{width}}  {c.score:6.2f}  {c.asr:5.0%}  {c.loss:7.2f}"
        + (f"  {c.reference_asr:17.0%}" if compared else "")
        + (f"  <- {c.mark}" if c.mark else "")
        for c in classes
    ]
    return rows
