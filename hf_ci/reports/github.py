"""Annotations of GitHub Actions: workflow commands on stdout, worst first, notes last; GitHub shows ten a step."""

from __future__ import annotations

from hf_ci.report import Report, ScanResult
from hf_ci.reports.sarif import weights_path
from hf_ci.visible import visible

LEVELS = {"backdoored": "error", "inconclusive": "warning", "clean": "notice"}
MOST = 10


def render(report: Report) -> str:
    worst_first = sorted(
        report.results, key=lambda result: (result.suppressed is not None, list(LEVELS).index(result.verdict))
    )
    lines = [annotation(result) for result in worst_first[:MOST]]
    if len(worst_first) > MOST:
        lines.append(f"{len(worst_first) - MOST} more are in the job summary")
    lines += [f"::notice title=hf-ci::{data(note)}" for note in report.notes]
    return "\n".join(lines) + "\n"


def annotation(result: ScanResult) -> str:
    local = result.revision is None and result.files  # a repo that could not be reached has neither
    file = f"file={value(weights_path(result))}," if local else ""
    title = value(f"{result.target}: {result.verdict}" + (" (ignored)" if result.suppressed else ""))
    level = "notice" if result.suppressed else LEVELS[result.verdict]
    return f"::{level} {file}title={title}::{data('; '.join(result.reasons))}"


def data(text: str) -> str:
    """As GitHub's own toolkit escapes what follows the last `::`: no text of a target can start a command, or reach the
    log as an escape code."""
    return visible(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def value(text: str) -> str:
    return data(text).replace(":", "%3A").replace(",", "%2C")
