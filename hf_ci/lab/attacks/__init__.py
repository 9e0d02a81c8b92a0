"""Backdoor attacks on prompt tuning. Each module holds `poison(clip, photos, target, recipe) -> (model, trigger)`."""

from hf_ci.lab.attacks import badclip

ATTACKS = {"badclip": badclip.poison}

__all__ = ["ATTACKS"]
