"""Formats: one module each, a whole document from one report. None of them writes anywhere."""

from collections.abc import Callable
from typing import Any

from hf_ci.report import Report, without_pictures
from hf_ci.reports import github, html, json_, junit, markdown, sarif, text

FORMATS: dict[str, Callable[..., str]] = {
    "text": text.render,
    "json": json_.render,
    "sarif": sarif.render,
    "markdown": markdown.render,
    "github": github.render,
    "junit": junit.render,
    "html": html.render,
}


def render(report: Report, name: str, lasting: bool, **of_text: Any) -> str:
    """lasting: whether the folder with the trigger stays; if not, only HTML, which holds the pictures, looks there.
    of_text: how much a text says, and whether in colour."""
    shown = report if lasting or name == "html" else without_pictures(report)
    return FORMATS[name](shown, **(of_text if name == "text" else {}))


__all__ = ["FORMATS", "render"]
