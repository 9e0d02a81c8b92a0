"""One HTML page for people: self-contained, no scripts, printable. Its look: ``report.html.j2``, ``report.css``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ci.report import FoundTrigger, Report, ScanResult
from hf_ci.reports.reproduce import reproduce
from hf_ci.visible import in_one_line

if TYPE_CHECKING:
    import numpy as np

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
        triggers=triggers,
        untold=untold,
        reproduce=reproduce,
    )


def visible(value: object) -> object:
    """Foreign text without what moves or hides letters: control characters and bidi overrides."""
    return in_one_line(value) if type(value) is str else value


def chart(result: ScanResult) -> dict[str, Any]:
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


def triggers(result: ScanResult) -> list[dict[str, Any]]:
    """What was found for each flagged class: its pictures, None where the file that holds them is missing or damaged; and
    of each image the pictures and the answers without and with it, each None where there are none. A report of an earlier
    release tells of the target's alone, and not what is answered."""
    found = list(result.triggers)
    if not found and result.trigger and result.target_class:
        path = result.trigger.path and str(Path(result.trigger.path).with_suffix(".npz"))
        one = FoundTrigger(
            target=result.target_class, kind="trigger", reconstructed=True, linf=result.trigger.linf, path=path
        )
        found = [one]
    shown = []
    for one in found:
        drawn = pictures(one.path)
        images = list(zip_longest(drawn["pairs"] if drawn else (), one.examples))
        shown += [{"found": one, "described": described(one), "pictures": drawn, "images": images}]
    return shown


def untold(result: ScanResult) -> int:
    """Flagged classes that the report keeps no trigger of, as it has enough of others."""
    return sum(c.flagged for c in result.classes) - len(result.triggers) if result.triggers else 0


def described(found: FoundTrigger) -> str:
    """What kind of trigger it is, and what the images below are."""
    if not found.reconstructed:
        kind = f"A fixed change, applied as it is: {found.kind}."
    elif found.kind == "patch":
        kind = "A reconstructed patch, at another place in every image."
    else:
        kind = f"A reconstructed {found.kind}."
    if found.linf is not None:
        hardly = ", which can hardly be seen on an image" if found.linf < 0.05 else ""
        kind += f" A pixel changes by at most {found.linf * 255:.1f}/255{hardly}."
    c, images = found.target.index, len(found.examples)
    hits = sum(e.before.adapter.index != c == e.after.adapter.index for e in found.examples)
    if hits == images > 1:
        kind += f" Shown on the first {images} images of the pool that it moves there."
    elif images:
        kind += f" Of {images} images of the pool, it moves {hits} there."
    return kind


def pictures(path: str) -> dict[str, list[Any]] | None:
    """trigger: (caption, data URI) of each picture of it; pairs: data URIs of each image, without and with it."""
    import numpy as np

    from hf_ci.reports.trigger import amplified

    try:
        with open(path, "rb") as file:
            kept = dict(np.load(file, allow_pickle=False))
        alone = kept["on_grey"] - 0.5 if "on_grey" in kept else kept.get("delta")
        largest = 0.0 if alone is None else float(np.abs(alone).max())
        trigger: list[tuple[str, np.ndarray]] = []
        pairs: Iterable[tuple[np.ndarray, np.ndarray]] = ()
        if alone is not None and largest > 0:  # a turn or a blur of grey is grey
            if largest < 1 / 3:
                trigger += [("Trigger as it is, on grey", as_pixels(0.5 + alone))]
            strong = f"Trigger, {0.5 / largest:.0f} times as strong" if largest < 1 / 3 else "Trigger, on grey"
            trigger += [(strong, amplified(alone))]
        if "examples" in kept and "changed" in kept:
            pairs = zip(kept["examples"] / 255, kept["changed"] / 255, strict=True)
        return {
            "trigger": [(caption, data_uri(pixels)) for caption, pixels in trigger],
            "pairs": [tuple(data_uri(as_pixels(image)) for image in pair) for pair in pairs],
        }
    except Exception:  # a damaged archive raises whatever numpy, zipfile and zlib think of
        return None


def as_pixels(values: np.ndarray) -> np.ndarray:
    """(3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    shown: np.ndarray = (values.clip(0, 1) * 255).round().astype("uint8")
    return shown.transpose(1, 2, 0)


def data_uri(pixels: np.ndarray) -> str:
    """PNG, enlarged to at least 160 pixels without smoothing."""
    import base64
    import io

    from PIL import Image

    times = -(-160 // max(pixels.shape[:2]))
    content = io.BytesIO()
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
