"""The report as one JSON document; its schema is published as ``hf_ci/schema/report.schema.json``."""

from __future__ import annotations

import json

from hf_ci.report import Report


def render(report: Report) -> str:
    return json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def schema() -> dict:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Report.model_json_schema(mode="serialization")
