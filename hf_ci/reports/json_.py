"""The report as one JSON document; its schema is published as ``hf_ci/schema/report.schema.json``."""

from __future__ import annotations

import json
import re
from typing import Any

from hf_ci.report import Report
from hf_ci.visible import is_invisible


def render(report: Report) -> str:
    """Letters that cannot be seen, escape codes of terminals among them, are escaped as JSON does."""
    text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    return (
        re.sub("[^\n -~]", lambda found: json.dumps(found[0])[1:-1] if is_invisible(found[0]) else found[0], text)
        + "\n"
    )


def schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Report.model_json_schema(mode="serialization")
