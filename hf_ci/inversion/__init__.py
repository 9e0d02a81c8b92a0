"""Trigger inversion: for each class, the universal perturbation that drives images into it."""

from hf_ci.inversion.engine import invert_classes
from hf_ci.inversion.invert import Inversion, Inverter, LinfInversion
from hf_ci.inversion.job import Done, Job, run_job
from hf_ci.inversion.objective import OBJECTIVES
from hf_ci.inversion.trigger import ADDITIVE, ON_PHOTOS, PERTURBATION, WIDE

__all__ = [
    "ADDITIVE",
    "OBJECTIVES",
    "ON_PHOTOS",
    "PERTURBATION",
    "WIDE",
    "Done",
    "Inversion",
    "Inverter",
    "Job",
    "LinfInversion",
    "invert_classes",
    "run_job",
]
