"""The pictures of docs, from one record: what a terminal prints of a scan (SVG), and the HTML report in a browser (PNG).

The record is docs/run.json, with the trigger's numbers in docs/run:

    hf-ci scan demo:coop demo:far demo:frame --save-trigger docs/run --output json=docs/run.json
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_ci.errors import UsageError
from hf_ci.report import Report
from hf_ci.reports import render

RECORD, TERMINAL, BROWSER = "docs/run.json", "docs/run.svg", "docs/report.png"
MAKE = "hf-ci scan demo:coop demo:far demo:frame --save-trigger docs/run --output json=docs/run.json"
COLUMNS = 80  # or as many as the longest line has
WINDOW = (1280, 1600)  # pixels; what is further down is not shown
HELD = "html-sha256"  # the PNG's text chunk
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def read_record(root: Path) -> Report:
    """Raises UsageError where it is missing or of another version."""
    try:
        return Report.model_validate_json((root / RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{RECORD} cannot be read: {error}", f"make it with {MAKE}") from error


def terminal(report: Report) -> str:
    """SVG of the command and what it prints; no fonts or anything else from elsewhere."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.text import Text

    printed = Text.from_ansi(render(report, "text", lasting=False, colour=True))
    command = f"$ hf-ci scan {' '.join(result.target for result in report.results)}"
    width = max(COLUMNS, *map(len, [command, *printed.plain.splitlines()]))
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(command, style="bold", highlight=False)
    console.print(printed)
    plain = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)
    return console.export_svg(title="hf-ci", code_format=plain, unique_id="run")


def page(report: Report, root: Path) -> str:
    """The HTML report, with the trigger's pictures, whose places in the record are below `root`."""
    with chdir(root):
        return render(report, "html", lasting=True)


def digest(html: str) -> str:
    """Of the HTML, its pictures by their pixels: the same pixels are other bytes as other libraries write them."""

    def pixels(match: re.Match[str]) -> str:
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as picture:
            return hashlib.sha256(picture.tobytes()).hexdigest()

    return hashlib.sha256(re.sub(r"data:image/png;base64,([\w+/=]+)", pixels, html).encode()).hexdigest()


def shows(picture: Path, html: str) -> bool:
    """Whether the PNG is of this HTML."""
    if not picture.is_file():
        return False
    with Image.open(picture) as image:
        return image.info.get(HELD) == digest(html)


def screenshot(html: str) -> bytes:
    """PNG of the page's top. Raises UsageError without Chromium."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise UsageError(f"{BROWSER} is stale, and there is no Chromium to draw it", "install chromium-headless-shell")
    with TemporaryDirectory(prefix="hf-ci-") as folder:
        written, drawn = Path(folder, "page.html"), Path(folder, "page.png")
        written.write_text(html, encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --hide-scrollbars"
        where = (f"--user-data-dir={folder}/profile", f"--screenshot={drawn}", f"--window-size={WINDOW[0]},{WINDOW[1]}")
        light = "--blink-settings=preferredColorScheme=1"
        command = [browser, *flags.split(), *where, light, written.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        held, content = PngInfo(), io.BytesIO()
        held.add_text(HELD, digest(html))
        with Image.open(drawn) as image:
            image.convert("RGB").quantize(256).save(content, "PNG", pnginfo=held, optimize=True)
    return content.getvalue()
