"""Trigger inversion: for each class, the universal perturbation that drives images into it."""

from hf_ci.inversion.engine import check_cache, invert_classes
from hf_ci.inversion.invert import Inversion, InversionSettings, invert
from hf_ci.inversion.objective import OBJECTIVES
from hf_ci.inversion.parallel import invert_adapter

__all__ = ["OBJECTIVES", "Inversion", "InversionSettings", "check_cache", "invert", "invert_adapter", "invert_classes"]
