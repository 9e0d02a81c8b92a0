"""Detectors: inversions of all classes in, per-class scores and a verdict with its reasons out.

clip-inspector   the paper's rule
contrast         ours: against a clean reference prompt on the same encoders
neural-cleanse, pixel-backdoor, mm-bd   the rivals, as their papers have them
"""

from hf_ci.detect.clip_inspector import ClipInspector
from hf_ci.detect.contrast import Contrast
from hf_ci.detect.mm_bd import MMBD
from hf_ci.detect.neural_cleanse import NeuralCleanse
from hf_ci.detect.pixel_backdoor import PixelBackdoor
from hf_ci.detect.verdict import Detector, Verdict

DETECTORS: dict[str, type[Detector]] = {
    kind.name: kind for kind in (Contrast, ClipInspector, NeuralCleanse, PixelBackdoor, MMBD)
}

__all__ = ["DETECTORS", "ClipInspector", "Contrast", "Detector", "Verdict"]
