"""JUnit XML, as CI systems read it: a test case a target; backdoored is a failure, inconclusive an error."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from hf_ci.report import Report, ScanResult
from hf_ci.visible import in_one_line, visible

OUTCOMES = {"backdoored": "failure", "inconclusive": "error"}


def render(report: Report) -> str:
    suite = ET.Element("testsuite", name=report.tool.name)
    suite.extend(testcase(result) for result in report.results)
    suite.set("tests", str(len(report.results)))
    for attribute, tag in {"failures": "failure", "errors": "error", "skipped": "skipped"}.items():
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", f"{sum(seconds(result) for result in report.results):.2f}")
    if report.notes:
        ET.SubElement(suite, "system-out").text = in_lines(report.notes)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def testcase(result: ScanResult) -> ET.Element:
    name = xml_text(result.target)
    case = ET.Element("testcase", classname="hf-ci.scan", name=name, time=f"{seconds(result):.2f}")
    lines = [*result.reasons, *(f"Warning: {warning}" for warning in result.warnings)]
    if result.fingerprint:
        lines.append(f"Fingerprint: {result.fingerprint}")
    if result.suppressed:
        ET.SubElement(case, "skipped", message=xml_text(in_one_line(str(result.suppressed))))
    elif tag := OUTCOMES.get(result.verdict):
        found = ET.SubElement(case, tag, type=result.verdict, message=xml_text(in_one_line("; ".join(result.reasons))))
        found.text = in_lines(lines)
        return case
    ET.SubElement(case, "system-out").text = in_lines(lines)
    return case


def seconds(result: ScanResult) -> float:
    return result.timing.seconds if result.timing else 0.0


def in_lines(texts: Iterable[str]) -> str:
    """A line each, of which none begins with `::`: a CI runner that shows the file would take it for a command."""
    return "\n".join(xml_text(re.sub("^:(?=:)", ": ", in_one_line(text))) for text in texts)


def xml_text(text: str) -> str:
    """Control characters are forbidden in XML 1.0, even as references; others would only mislead."""
    return visible(text, keep="\t\n\r")
