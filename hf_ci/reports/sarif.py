"""SARIF 2.1.0: one run, one result for each target that is not clean, bound to the weights and not to the commit."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from hf_ci.certain import certain
from hf_ci.hub.names import HUB
from hf_ci.report import MODIFIED, RULES, Report, ScanResult
from hf_ci.visible import visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MEANING = {  # rule: text, level, severity
    RULES["backdoored"]: ("The adapter carries a backdoor", "error", "9.0"),
    RULES["inconclusive"]: ("The adapter could not be judged, so it is not known to be clean", "warning", "5.0"),
    MODIFIED: ("Encoders came with the adapter that are not the base model's", "error", "7.0"),
}


def render(report: Report) -> str:
    rules = [
        {
            "id": rule,
            "name": "".join(word.capitalize() for word in rule.split("-")),
            "shortDescription": {"text": text},
            "defaultConfiguration": {"level": level},
            "properties": {"security-severity": severity, "tags": ["security", "machine-learning"]},
        }
        for rule, (text, level, severity) in MEANING.items()
    ]
    driver = {"name": report.tool.name, "semanticVersion": report.tool.version, "rules": rules}
    findings = [finding(result) for result in report.results if result.rule]
    notes = [{"level": "note", "message": {"text": plain(note)}} for note in report.notes]
    invocation = {"executionSuccessful": True, "toolExecutionNotifications": notes}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": findings,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def finding(result: ScanResult) -> dict[str, Any]:
    accepted = {"kind": "external", "status": "accepted", "justification": visible(str(result.suppressed))}
    uri = quote(weights_path(result), safe="/", errors="surrogatepass")  # a folder's name may be no UTF-8
    rule = certain(result.rule)
    return {
        "ruleId": rule,
        "ruleIndex": list(MEANING).index(rule),
        "level": MEANING[rule][1],
        "message": {"text": plain(f"{result.pinned()}: {'; '.join(result.reasons)}")},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}}}],
        "partialFingerprints": {"hfCi/v1": result.fingerprint} if result.fingerprint else {},
        "suppressions": [accepted] if result.suppressed else [],
    }


def plain(text: str) -> str:
    """A message that is read as letters alone: SARIF's plain messages may hold links, [text](target), with backslashes as
    escapes."""
    return re.sub(r"([\[\]\\])", r"\\\1", visible(text, keep="\n"))


def weights_path(result: ScanResult) -> str:
    """Where the weights are: in this checkout for a folder, below the repo's id for one on the Hub.

    Code scanning takes paths alone, no other kind of URI; the message names the commit.
    """
    weights = result.weights_path
    if result.revision is None:
        place, repo = result.target.rstrip("/").removeprefix("./").replace(":", "/"), ""
    else:
        repo, _, place = result.target.removeprefix(HUB).partition(":")
        place, repo = place.strip("/"), repo.partition("@")[0]
    named = f"/{place}".endswith(f"/{weights}")  # a checkpoint may be the target itself
    parts = [repo, place, "" if named else weights]
    return "/".join(part for part in parts if part)
