"""One HTML page for people: self-contained, no scripts, printable. Its look: ``report.html.j2``, ``report.css``."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from hf_ci.report import Report, ScanResult
from hf_ci.reports.reproduce import reproduce
from hf_ci.visible import in_one_line

MOST_CLASSES = 40
SIGNS = {"backdoored": "\u2715", "inconclusive": "?", "clean": "\u2713"}  # worst first
HEADLINES = {
    "backdoored": "Do not deploy this adapter.",
    "inconclusive": "This adapter could not be judged for certain. Never treat it as clean.",
    "clean": "No class of this adapter stands out.",
}


def render(report: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    order = list(SIGNS)
    return environment.get_template("report.html.j2").render(
        report=report,
        results=sorted(report.results, key=lambda r: (r.suppressed is not None, order.index(r.verdict))),
        counts=Counter(r.verdict for r in report.results),
        ignored=sum(r.suppressed is not None for r in report.results),
        dates=sorted({r.timing.date for r in report.results if r.timing}),
        signs=SIGNS,
        headlines=HEADLINES,
        chart=chart,
        pictures=pictures,
        reproduce=reproduce,
    )


def visible(value):
    """Foreign text without what moves or hides letters: control characters and bidi overrides."""
    return in_one_line(value) if type(value) is str else value


def chart(result: ScanResult) -> dict:
    """The worst classes, and where bars, marks and limits lie in percent of the axis."""
    limits = result.detector.thresholds if result.detector else {}
    flag = limits.get("k")
    if limits.get("alpha", 0) > 0:  # of a p-value, the score being its -log10
        flag = -math.log10(limits["alpha"])
    rows = sorted(result.classes, key=lambda c: (-c.flagged, -c.score, -c.asr))[:MOST_CLASSES]
    top = 4 * math.ceil(max([1.0, flag or 0.0, *(c.score for c in rows)]) / 4)
    doubt = limits.get("doubtful")

    def at(value: float) -> str:
        return f"{100 * min(max(value / top, 0.0), 1.0):.2f}"

    return {
        "rows": rows,
        "left_out": len(result.classes) - len(rows),
        "compared": all(c.reference_asr is not None for c in rows),
        "sized": any(c.size is not None for c in rows),
        "flag": flag,
        "doubt": doubt,
        "ticks": [(25 * i, f"{top * i / 4:g}") for i in range(5)],
        "number": "{:.2f}".format,
        "at": at,
        "tone": lambda c: "flagged" if c.flagged else "doubtful" if doubt is not None and c.score >= doubt else "usual",
    }


def pictures(result: ScanResult) -> list[tuple[str, str]] | None:
    """(caption, data URI) of each; None where the numbers beside the trigger's picture are missing or damaged."""
    import numpy as np

    from hf_ci.reports.trigger import amplified

    try:
        with open(Path(result.trigger.path).with_suffix(".npz"), "rb") as file:
            kept = np.load(file, allow_pickle=False)
            delta, pairs = kept["delta"], ()
            if "examples" in kept and "changed" in kept:
                pairs = zip(kept["examples"] / 255, kept["changed"] / 255)
        raw = as_pixels(0.5 + delta)
        times = 0.5 / max(float(np.abs(delta).max()), 1e-8)
        shown = [("Trigger as it is, on grey", raw), (f"Trigger, {times:.0f} times as strong", amplified(delta))]
        for i, (image, changed) in enumerate(pairs, 1):
            shown += [(f"Image {i}", as_pixels(image)), (f"Image {i} with the trigger", as_pixels(changed))]
        return [(caption, data_uri(pixels)) for caption, pixels in shown]
    except Exception:  # a damaged archive raises whatever numpy, zipfile and zlib think of
        return None


def as_pixels(values):
    """(3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    return (values.clip(0, 1) * 255).round().astype("uint8").transpose(1, 2, 0)


def data_uri(pixels) -> str:
    """PNG, enlarged to at least 160 pixels without smoothing."""
    import base64
    import io

    from PIL import Image

    times = -(-160 // max(pixels.shape[:2]))
    content = io.BytesIO()
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
