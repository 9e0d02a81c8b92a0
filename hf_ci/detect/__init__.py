"""Detectors: inversions of all classes in, per-class scores and a verdict with its reasons out.

A detector is a small frozen value with a `name`, a `calibration` (what its threshold was fitted on) and
`judge(inversions, class_names) -> Verdict`.
"""

from hf_ci.detect.clip_inspector import ClipInspector
from hf_ci.detect.verdict import Detector, Verdict

__all__ = ["ClipInspector", "Detector", "Verdict"]
