"""Findings that somebody has accepted: they stay in every report, with the reason, and do not fail a run.

An ignore names a finding, gives a reason and ends on a day; a baseline is an earlier report whose findings are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from hf_ci.certain import certain
from hf_ci.config import Ignore
from hf_ci.report import RULES, Report, ScanResult, Suppression, fingerprint_of, read_report


def read_baseline(path: Path) -> frozenset[str]:
    """Fingerprints of the backdoors in a JSON report of ours. Raises UsageError for anything else.

    What could not be judged then is no knowledge, and has to be looked at again.
    """
    report = read_report(path, f"--baseline {path}", "make one: hf-ci run --output json=FILE")
    return frozenset(certain(result.fingerprint) for result in report.results if result.verdict == "backdoored")


def suppress(
    report: Report,
    ignores: Sequence[Ignore] = (),
    baseline: frozenset[str] = frozenset(),
    whole: bool = False,
    today: date | None = None,
) -> Report:
    """The report with its accepted findings marked.

    A finding is accepted for certain weights: never without any, and never a failure of something around them. An ignore
    that has expired counts no more, and a note says so where its finding is still there. whole: everything that is
    configured was asked for; an ignore that can belong to nothing in it is a note, too.
    """
    today = today or date.today()
    valid = {ignore.fingerprint: ignore for ignore in ignores if ignore.until >= today}
    found = {result.fingerprint for result in report.results if acceptable(result)}
    belonging = possible_findings(report.results) if whole else None
    notes = list(report.notes)
    for ignore in ignores:
        what = f"ignore {ignore.fingerprint[:12]} ({ignore.reason})"
        if ignore.until < today and ignore.fingerprint in found - valid.keys() - baseline:
            notes.append(f"{what} expired on {ignore.until}: its finding counts again")
        elif belonging is not None and ignore.fingerprint not in belonging:
            notes.append(f"{what} matches no finding: remove it")

    def marked(result: ScanResult) -> ScanResult:
        if not acceptable(result):
            return result
        ignore = valid.get(certain(result.fingerprint))
        if ignore:
            why = Suppression(kind="ignore", reason=ignore.reason, until=ignore.until.isoformat())
        elif result.fingerprint in baseline:
            why = Suppression(kind="baseline", reason="known from the baseline")
        else:
            return result
        return result.model_copy(update={"suppressed": why})

    return report.model_copy(update={"results": tuple(map(marked, report.results)), "notes": tuple(notes)})


def acceptable(result: ScanResult) -> bool:
    return result.fingerprint is not None and result.weights_sha256 is not None and result.about_weights


def possible_findings(results: Sequence[ScanResult]) -> set[str | None] | None:
    """Every fingerprint that these weights have, or may have once they are judged for certain; None where something
    failed that says nothing of the weights."""
    if any(not (result.about_weights or result.is_other_kind) for result in results):
        return None
    unsure = [result for result in results if result.verdict == "inconclusive"]
    return {result.fingerprint for result in results} | {
        fingerprint_of(RULES["backdoored"], weights, scored.name)
        for result in unsure
        if (weights := result.weights_sha256)
        for scored in result.classes
    }
