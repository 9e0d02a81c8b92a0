"""Markdown, for a job summary or a comment: a line a target, then what was found."""

from __future__ import annotations

import re

from hf_ci.report import Report, ScanResult
from hf_ci.reports.text import suspicious
from hf_ci.visible import in_one_line

SIGNS = {"clean": "\u2705", "backdoored": "\u274c", "inconclusive": "\u2754"}
PLAIN = set(" ,.;=%'()+-/")  # harmless inside a line, once ':' and '@' are gone


def escape(text: str) -> str:
    """Foreign text as ASCII that neither Markdown nor HTML reads as anything but letters."""
    line = in_one_line(text)
    safe = "".join(c if c.isascii() and (c.isalnum() or c in PLAIN) else f"&#{ord(c)};" for c in line)
    return re.sub(
        "www", lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", safe, flags=re.I
    )  # else a link on GitHub


def render(report: Report) -> str:
    lines = ["## Backdoor scan", "", "| | adapter | score | class |", "|---|---|---|---|"]
    for result in report.results:
        score = "" if result.score is None else f"{result.score:.2f}"
        named = escape(result.target_class.name) if result.target_class else ""
        shelved = " (ignored)" if result.suppressed else ""
        lines.append(
            f"| {SIGNS[result.verdict]} {result.verdict}{shelved} | {escape(result.target)} | {score} | {named} |"
        )
    lines += [""] * bool(report.notes) + [f"- Note: {escape(note)}" for note in report.notes]
    for result in report.results:
        if result.verdict != "clean":
            lines += ["", *details(result)]
    return "\n".join(lines) + "\n"


def details(result: ScanResult) -> list[str]:
    lines = [f"### {escape(result.target)}: {result.verdict}", ""]
    lines += [f"- {escape(reason)}" for reason in result.reasons]
    if result.suppressed:
        lines.append(f"- {escape(str(result.suppressed))}")
    lines += [f"- Warning: {escape(warning)}" for warning in result.warnings]
    if result.trigger:
        how = f"largest change of a pixel {result.trigger.linf * 255:.0f}/255"
        lines.append(f"- Reconstructed trigger: {how}; the HTML report shows it")
    if result.fingerprint:
        lines.append(f"- Fingerprint: {result.fingerprint}")
    if result.classes:
        lines += ["", "| class | score | ASR | |", "|---|---|---|---|"]
        lines += [f"| {escape(c.name)} | {c.score:.2f} | {c.asr:.0%} | {c.mark} |" for c in suspicious(result.classes)]
    return lines
