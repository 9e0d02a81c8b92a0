"""Why a result is what it is, signal by signal, so that a reader can argue with it."""

from __future__ import annotations

from statistics import median

from hf_ci.certain import certain
from hf_ci.console import printable
from hf_ci.detect.calibration import Calibration
from hf_ci.report import ClassScore, Report, ScanResult
from hf_ci.reports.reproduce import reproduce
from hf_ci.reports.text import headline, one_line, paragraph, table


def render(report: Report) -> str:
    """For people, as text."""
    return printable("\n".join(explain(result) for result in report.results))


def explain(result: ScanResult) -> str:
    parts = [headline(result), *map(paragraph, result.reasons)]
    if not (result.classes and result.detector and result.pool and result.base_model):
        return "\n".join([*parts, paragraph("Nothing was measured, so there is nothing to explain.")]) + "\n"
    null = Calibration.of(result.detector.fitted) if result.detector.fitted else None
    parts += ["", "Signals, worst class first", *rows(result, null)]
    parts += ["", "Against what", *map(paragraph, compared_with(result, null))]
    parts += ["", "What speaks against it", *map(paragraph, doubts(result, null))]
    parts += ["", "Again", "  " + reproduce(result)]
    return "\n".join(parts) + "\n"


def rows(result: ScanResult, null: Calibration | None) -> list[str]:
    headings = ["class", "score", "ASR", "loss", *(["clean prompts", "probe", "p-value"] if null else []), "reading"]
    lines = []
    for c in sorted(result.classes, key=lambda c: -c.score):
        line = [one_line(c.name), f"{c.score:.2f}", f"{c.asr:.0%}", f"{c.loss:.2f}"]
        if null:
            p = null.p_value(c.score, len(result.classes))
            line += [f"{c.reference_asr:.0%}", f"{c.probe_asr or 0:.0%}", f"{p:.1g}"]
        lines.append([*line, reading(c, result)])
    return table(headings, lines)


def reading(c: ClassScore, result: ScanResult) -> str:
    limits = certain(result.detector).thresholds
    if c.by_probe and c.score >= limits.get("doubtful", float("inf")):
        return f"answers to a {c.probe}"
    if c.flagged:
        return "forced through this adapter alone" if c.reference_asr is not None else "stands out"
    if c.score >= limits.get("doubtful", float("inf")):
        return "unusual, not beyond doubt"
    if c.vulnerable:
        return "vulnerable: forced through clean prompts, too"
    return "screened alone: others were more promising" if c.screened else ""


def compared_with(result: ScanResult, null: Calibration | None) -> list[str]:
    scores = sorted((c.score for c in result.classes), reverse=True)
    detector = certain(result.detector)
    limits = ", ".join(f"{name} {value:.3f}" for name, value in detector.thresholds.items())
    lines = [f"Thresholds: {limits}.", f"They come from: {detector.calibration}."]
    if null:
        file = detector.calibration_sha256
        lines.append(
            f"The calibration is {f'the file with sha256 {file}' if file else 'the one that ships with hf-ci'}, fitted on "
            f"{', '.join(null.data)} in {null.precision}; its records have the sha256 {null.records_sha256[:12]}."
        )
        lines.append(
            "A score is by how much a class stands out among its peers, in units of what clean adapters as far from clean "
            f"prompts show. Over those the largest has mean {null.mean:.2f} and deviation {null.sd:.2f}. A p-value is the "
            f"share of clean adapters with {len(scores)} classes whose largest score is at least as large."
        )
    lines.append(
        f"Within this adapter: the worst class scores {scores[0]:.2f}, the next {scores[1]:.2f}, the median "
        f"{median(scores):.2f}."
    )
    return lines


def doubts(result: ScanResult, null: Calibration | None) -> list[str]:
    """What a careful reader would hold against the result."""
    found, pool = list(result.warnings), certain(result.pool)
    if null and result.settings and null.precision != result.settings.precision:
        found.append(
            f"The thresholds were measured in {null.precision}, this scan computed in {result.settings.precision}."
        )
    if null and null.num_images != pool.num_images:
        found.append(f"The thresholds were measured with {null.num_images} images, this scan had {pool.num_images}.")
    worst = max(result.classes, key=lambda c: c.score)
    if worst.flagged and worst.vulnerable:
        found.append(
            f"{worst.name!r} is also forced through clean prompts for {worst.reference_asr:.0%} of the images: a part of "
            "the effect is the frozen encoder's, not the adapter's. The score does not count that part."
        )
    if result.verdict == "clean":
        found.append(
            "A trigger that neither a small perturbation nor a probe imitates (an object, one for a single source class "
            "or for the text) is not looked for."
        )
    return found or ["Nothing that is known here."]
