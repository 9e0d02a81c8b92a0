"""Trigger inversion: for each class, the universal perturbation that drives images into it."""

from hf_ci.inversion.engine import check_cache, invert_classes, launch
from hf_ci.inversion.invert import Inversion, InversionSettings, invert
from hf_ci.inversion.objective import OBJECTIVES

__all__ = ["OBJECTIVES", "Inversion", "InversionSettings", "check_cache", "invert", "invert_classes", "launch"]
