"""The command that gives a result again."""

from __future__ import annotations

import shlex

from hf_ci.report import ScanResult


def reproduce(result: ScanResult) -> str:
    """As far as the report tells. ASCII, no backtick."""
    words = ["hf-ci", "scan", result.pinned()]
    if result.detector:
        words += ["--detector", result.detector.name]
        if result.detector.calibration_sha256:
            words += ["--calibration", "FILE"]  # whose sha256 the report names
    if result.pool:
        words += ["--pool", result.pool.id]
    if result.settings:
        words += ["--num-images", str(result.settings.num_images), "--seed", str(result.settings.seed)]
        words += ["--precision", result.settings.precision]
        if result.settings.inversion.get("exact"):
            words.append("--exact")
        for name, value in result.settings.given.items():
            words += ["--" + name.replace("_", "-"), str(value)]
    return "".join(c if c.isascii() and c.isprintable() and c != "`" else "?" for c in shlex.join(words))
