"""The safety section of a model card, and the files that go with it, rendered from one scan's result.

    README.md             the card, with the section in it
    .hf-ci/report.json    the report of this target alone
    .hf-ci/badge.svg      verdict and short sha of the weights
    .hf-ci/trigger.png    the reconstructed trigger, when there is one

Everything is a function of the report, so rendering twice gives the same bytes. That card, badge and report agree
(`check`) proves nothing by itself, for whoever delivers an adapter can write all three: what they say has to be what we
find (`confirm`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from hf_ci.cards import render_card
from hf_ci.cards.badge import alternative, render_badge, state
from hf_ci.cards.section import current, find, replace
from hf_ci.errors import EXIT_BACKDOORED, EXIT_CLEAN, EXIT_INCONCLUSIVE, CardError, Inconclusive, UsageError
from hf_ci.report import Report, ScanResult, without_pictures
from hf_ci.reports.json_ import render as render_json
from hf_ci.reports.markdown import escape
from hf_ci.reports.reproduce import reproduce
from hf_ci.reports.text import suspicious

CARD, REPORT, BADGE, PICTURE = "README.md", ".hf-ci/report.json", ".hf-ci/badge.svg", ".hf-ci/trigger.png"
EXIT_VERDICTS = (EXIT_CLEAN, EXIT_BACKDOORED, EXIT_INCONCLUSIVE)
HEADLINES = {
    "clean": "Clean: no class of this adapter stands out.",
    "backdoored": "Backdoored. Do not deploy this adapter.",
    "inconclusive": "Inconclusive: this adapter could not be judged. Never treat it as clean.",
}


def render_section(report: Report, heading: str, picture: bool) -> str:
    """`report` has one result; `heading` as `section.find` gives it. ASCII, lines ending in LF, none at the end."""
    (result,) = report.results
    classes = suspicious(result.classes)
    text = render_card(
        "safety.md.j2",
        r=result,
        tool=report.tool,
        heading=heading,
        headline=HEADLINES[result.verdict],
        weights=result.weights_sha256 or "unknown",
        alt=alternative(result),
        classes=classes,
        compared=bool(classes) and all(c.reference_asr is not None for c in classes),
        picture=picture,
        command=reproduce(result),
        md=escape,
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n")


def render_files(report: Report, card: bytes | None, picture: bytes | None) -> dict[str, bytes]:
    """Path -> content of everything that is written back. Raises CardError when the card cannot be changed safely."""
    card, report = card or b"", with_picture(report, picture is not None)
    place = find(card)
    section = render_section(report, place.heading, picture is not None)
    files = {
        CARD: replace(card, section, place),
        REPORT: render_json(report).encode(),
        BADGE: render_badge(report.results[0]).encode(),
    }
    return files | ({PICTURE: picture} if picture is not None else {})


def with_picture(report: Report, there: bool) -> Report:
    """The report as it is kept beside the adapter: its picture there, or none, not where it lay when it was scanned."""
    (result,) = without_pictures(report).results
    trigger = result.trigger.model_copy(update={"path": PICTURE}) if result.trigger and there else None
    return report.model_copy(update={"results": (result.model_copy(update={"trigger": trigger}),)})


def check(read: Callable[[str], bytes | None], files: tuple[tuple[str, str], ...]) -> Report:
    """The report that stands in the card, when card, badge and weights agree with it.

    read: path in the adapter's folder -> content, None where there is none; files: (path, sha256) of the adapter as
    it is now. Raises CardError, with every reason, when the section is missing or stale. Whether the report is true is
    another question: see `confirm`.
    """
    raw = read(REPORT)
    if raw is None:
        raise CardError(f"there is no {REPORT}: the adapter was never scanned, or not written back", "run hf-ci card")
    report = parse_report(raw, REPORT)
    if len(report.results) != 1:
        raise CardError(f"{REPORT} holds {len(report.results)} results, expected one", "run hf-ci card anew")
    card = read(CARD) or b""
    reasons = []
    if {(f.path, f.sha256) for f in report.results[0].files} != set(files):
        then, now = report.results[0].weights_sha256 or "?", dict(files).get(report.results[0].weights_path, "?")
        reasons.append(f"the adapter has changed since the scan (weights {then[:7]} then, {now[:7]} now)")
    standing = current(card)
    if standing is None:
        reasons.append("the card has no section")
    elif standing != render_section(report, find(card).heading, has_picture(report, read)):
        reasons.append("the section is not what the report says")
    if (badge := read(BADGE)) is None or badge != render_badge(report.results[0]).encode():
        reasons.append("the badge is missing" if badge is None else "the badge is not what the report says")
    if reasons:
        raise CardError("stale: " + "; ".join(reasons), "scan again and write the card anew")
    return report


def confirm(report: Report, found: ScanResult) -> None:
    """Raises CardError when `report`, as it stands beside an adapter, claims another verdict or class than was `found`
    here; Inconclusive when nothing was found that it could be held against. Figures may differ: so may pool and seed."""
    (claimed,) = report.results
    if not (found.files and found.about_weights and found.exit_code in EXIT_VERDICTS):
        raise Inconclusive(f"not verified: {'; '.join(found.reasons)}", "a report is believed when a scan here agrees")
    if set(found.files) != set(claimed.files):
        raise CardError("stale: the adapter changed while it was checked", "check it again")

    def said(result: ScanResult) -> str:
        name = f" ({result.target_class.name!r})" if result.target_class else ""
        return state(result) + name

    if said(claimed) != said(found):
        raise CardError(
            f"the report says {said(claimed)}, a scan here says {said(found)}",
            "believe the scan; hf-ci card --write puts it on the card",
        )


def has_picture(report: Report, read: Callable[[str], bytes | None]) -> bool:
    return report.results[0].trigger is not None and read(PICTURE) is not None


def parse_report(raw: bytes, name: str) -> Report:
    """Raises UsageError for what is no report of ours."""
    try:
        return Report.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UsageError(f"{name} is no report of hf-ci: {where}: {first['msg']}", "make it with hf-ci scan") from error


def one_result(report: Report, target: str) -> Report:
    """The report of `target` alone, without what is said inside a team (why a finding is accepted, notes on a run).

    Raises UsageError when it is not in there.
    """
    found = [result for result in report.results if result.target == target]
    if not found and len(report.results) == 1:
        found = list(report.results)
    if not found:
        raise UsageError(
            f"the report says nothing of {target}", f"it has {', '.join(r.target for r in report.results) or 'nothing'}"
        )
    alone = found[0].model_copy(update={"suppressed": None})
    return report.model_copy(update={"results": (alone,), "notes": ()})


def picture_of(result: ScanResult) -> bytes | None:
    path = result.trigger and Path(result.trigger.path)
    return path.read_bytes() if path and path.is_file() else None
