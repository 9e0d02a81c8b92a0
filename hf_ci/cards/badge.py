"""The badge: verdict and short sha of the weights, so that a green one does not survive other weights."""

from __future__ import annotations

from typing import Any

from hf_ci.report import ScanResult

LABEL = "backdoor scan"
# White on each of these has a contrast of at least 4.5 (WCAG AA), on a light page as on a dark one.
COLOURS = {"clean": "#1a7f37", "backdoored": "#b3261e", "inconclusive": "#6e5600", "repaired": "#0b5cad"}


def state(result: ScanResult) -> str:
    """What the badge says: the verdict, or "repaired" for a repaired adapter that scans as clean."""
    return "repaired" if result.verdict == "clean" and result.repaired_from else result.verdict


def message(result: ScanResult) -> str:
    weights = result.weights_sha256
    return f"{state(result)} {weights[:7] if weights else '(no weights)'}"


def alternative(result: ScanResult) -> str:
    """What the badge says, for those who do not see it."""
    return f"{LABEL}: {message(result)}"


def render_badge(result: ScanResult) -> str:
    """SVG, 20 pixels high."""
    from badgepy import badge

    return badge(
        left_text=LABEL,
        right_text=message(result),
        right_color=COLOURS[state(result)],
        left_color="#3b4048",
        whole_title=alternative(result),
    )


def endpoint(result: ScanResult) -> dict[str, Any]:
    """The JSON that a badge service reads instead (shields.io, endpoint badges, schema version 1)."""
    return {"schemaVersion": 1, "label": LABEL, "message": message(result), "color": COLOURS[state(result)][1:]}
