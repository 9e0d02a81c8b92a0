"""The templates in ``cards/``: what hf-ci writes beside weights, filled in."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
FOLDERS = (HERE / "_cards", HERE.parent / "cards")  # in a wheel, in a checkout


def render_card(template: str, **values: object) -> str:
    """Raises jinja2.UndefinedError when the template names a value that is not given: no card has holes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDERS), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(**values)
