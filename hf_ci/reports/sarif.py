"""SARIF 2.1.0: one run, one result for each target that is not clean, bound to the weights and not to the commit."""

from __future__ import annotations

import hashlib
import json

from hf_ci.report import WEIGHTS, Report, ScanResult

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
RULES = {
    "backdoored": ("backdoored-adapter", "The adapter carries a backdoor", "error", "9.0"),
    "inconclusive": (
        "inconclusive-scan",
        "The adapter could not be judged, so it is not known to be clean",
        "warning",
        "5.0",
    ),
}


def render(report: Report) -> str:
    rules = [
        {
            "id": id,
            "name": "".join(word.capitalize() for word in id.split("-")),
            "shortDescription": {"text": text},
            "defaultConfiguration": {"level": level},
            "properties": {"security-severity": severity, "tags": ["security", "machine-learning"]},
        }
        for id, text, level, severity in RULES.values()
    ]
    driver = {"name": report.tool.name, "semanticVersion": report.tool.version, "rules": rules}
    findings = [finding(result) for result in report.results if result.verdict in RULES]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": findings}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def finding(result: ScanResult) -> dict:
    id, _, level, _ = RULES[result.verdict]
    return {
        "ruleId": id,
        "ruleIndex": list(RULES).index(result.verdict),
        "level": level,
        "message": {"text": f"{result.target}: {'; '.join(result.reasons)}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": location(result)}}}],
        "partialFingerprints": {"hfCi/v1": fingerprint(result)},
    }


def location(result: ScanResult) -> str:
    """The weights: a path for a folder, hf://org/model@commit/... for a repo."""
    from urllib.parse import quote

    if result.revision is None:
        return quote(f"{result.target.rstrip('/').removeprefix('./')}/{WEIGHTS}".replace(":", "/"), safe="/")
    repo, _, subfolder = result.target.partition(":")
    parts = [f"{repo.partition('@')[0]}@{result.revision}", subfolder.strip("/"), WEIGHTS]
    return "hf://" + quote("/".join(part for part in parts if part), safe="/@")


def fingerprint(result: ScanResult) -> str:
    """sha256 of rule, weights and class: the same finding keeps it from commit to commit."""
    weights = result.weights_sha256 or result.target
    name = result.target_class.name if result.target_class else ""
    return hashlib.sha256("\n".join([RULES[result.verdict][0], weights, name]).encode("utf-8", "replace")).hexdigest()
