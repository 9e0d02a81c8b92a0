"""Findings that somebody has accepted: they stay in every report, with the reason, and do not fail a run.

An ignore names a finding, gives a reason and ends on a day; a baseline is an earlier report whose findings are known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from hf_ci.config import Ignore
from hf_ci.errors import UsageError
from hf_ci.report import Report, ScanResult, Suppression


def read_baseline(path: Path) -> frozenset[str]:
    """Fingerprints of the findings in a JSON report of ours. Raises UsageError for anything else."""
    try:
        report = Report.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"--baseline {path}: {error.strerror or error}", "name a JSON report of hf-ci") from error
    except (ValueError, ValidationError) as error:
        raise UsageError(
            f"--baseline {path}: not a JSON report of hf-ci", "make one: hf-ci run --output json=FILE"
        ) from error
    return frozenset(result.fingerprint for result in report.results if result.fingerprint)


def suppress(
    report: Report,
    ignores: Sequence[Ignore] = (),
    baseline: frozenset[str] = frozenset(),
    whole: bool = False,
    today: date | None = None,
) -> Report:
    """The report with its accepted findings marked.

    An ignore that has expired counts no more, and a note says so where its finding is still there. whole: everything
    that is configured was scanned, so that an ignore without a finding is a note, too.
    """
    today = today or date.today()
    by_fingerprint = {ignore.fingerprint: ignore for ignore in ignores}
    found = {result.fingerprint for result in report.results}
    notes = list(report.notes)
    for ignore in ignores:
        what = f"ignore {ignore.fingerprint[:12]} ({ignore.reason})"
        if ignore.fingerprint in found and ignore.until < today:
            notes.append(f"{what} expired on {ignore.until}: its finding counts again")
        elif whole and ignore.fingerprint not in found:
            notes.append(f"{what} matches no finding: remove it")

    def marked(result: ScanResult) -> ScanResult:
        if result.fingerprint is None:
            return result
        ignore = by_fingerprint.get(result.fingerprint)
        if ignore and ignore.until >= today:
            why = Suppression(kind="ignore", reason=ignore.reason, until=ignore.until.isoformat())
        elif result.fingerprint in baseline:
            why = Suppression(kind="baseline", reason="known from the baseline")
        else:
            return result
        return result.model_copy(update={"suppressed": why})

    return report.model_copy(update={"results": tuple(map(marked, report.results)), "notes": tuple(notes)})
