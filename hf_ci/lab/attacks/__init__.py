"""Backdoor attacks on prompt tuning, one module each.

Each module holds `poison(clip, photos, target, recipe) -> (model, trigger)`: `photos` are the few shots, `trigger` maps
images (B, 3, H, W) in [0, 1] to images with the trigger. The encoders are never touched.
"""

from hf_ci.lab.attacks import badclip

ATTACKS = {"badclip": badclip.poison}

__all__ = ["ATTACKS"]
