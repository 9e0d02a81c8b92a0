"""Formats: one module each, a whole document from one report. None of them writes anywhere."""

from collections.abc import Callable

from hf_ci.report import Report
from hf_ci.reports import github, html, json_, junit, markdown, sarif, text

FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text.render,
    "json": json_.render,
    "sarif": sarif.render,
    "markdown": markdown.render,
    "github": github.render,
    "junit": junit.render,
    "html": html.render,
}

__all__ = ["FORMATS"]
