"""What of the docs comes from records, and whether it is as they have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hf_ci.lab.cards.pages import pages, rendered
from hf_ci.lab.cards.pictures import BROWSER, RECORD, TERMINAL, page, read_record, screenshot, shows, terminal


def stale(root: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """Files whose figures or pictures are not those of the records, each with what it should hold.

    Raises UsageError for a block that cannot be rendered, and for records that are missing.
    """
    for path in pages(root):
        anew = rendered(path, root).encode()
        if path.read_bytes() != anew:
            yield path, partial(bytes, anew)
    if not any((root / name).exists() for name in (RECORD, TERMINAL, BROWSER)):
        return
    report = read_record(root)
    anew, html = terminal(report).encode(), page(report, root)
    if not (root / TERMINAL).is_file() or (root / TERMINAL).read_bytes() != anew:
        yield root / TERMINAL, lambda: anew
    if not shows(root / BROWSER, html):
        yield root / BROWSER, partial(screenshot, html)
