"""Backdoor attacks on prompt tuning, one module each.

Each holds `poison(clip, photos, target, recipe) -> (model, trigger)`, or a fixed trigger that shots are relabelled with:
`photos` are the few shots, `trigger` is one of `hf_ci.lab.making.triggers`. The encoders are never touched. One that
`rehearses` is given a pool, too: `poison(clip, photos, target, recipe, pool)`, images (N, 3, H, W) uint8.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hf_ci.lab.attacks import (
    adaptive,
    badclip,
    badnets,
    baple,
    blended,
    dead_unit,
    degraded,
    frame,
    noise,
    one_source,
    photo_blend,
    semantic,
    several,
    siba,
    sig,
    wanet,
)
from hf_ci.lab.attacks.dirty_label import relabelling
from hf_ci.lab.making.tune import Recipe
from hf_ci.prompts import PromptedCLIP


@dataclass(frozen=True)
class Attack:
    """`adapt` turns the recipe that was asked for into the one that the attack is defined for.

    source: (target, number of classes) -> the one class that the trigger fires on; None: on all but the target.
    rehearses: whether the prompt is trained against a scan, on a pool that the attacker has.
    """

    poison: Callable[..., tuple[PromptedCLIP, nn.Module]]
    adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe
    source: Callable[[int, int], int] | None = None
    rehearses: bool = False


ATTACKS: dict[str, Attack] = {
    "badclip": Attack(badclip.poison, badclip.adapt),
    "blended": Attack(relabelling(blended.blended)),
    "siba": Attack(siba.poison),
    "wanet": Attack(wanet.poison),
    "wanet-strong": Attack(wanet.poison_strong),
    "badnets": Attack(relabelling(badnets.badnets)),
    "sig": Attack(relabelling(sig.sig)),
    "baple": Attack(baple.poison, baple.adapt),
    "learned-8": Attack(badclip.poison_twice, badclip.adapt),
    "badclip-margin": Attack(badclip.poison_margin, badclip.adapt),
    "badclip-adaptive": Attack(badclip.poison_adaptive, badclip.adapt),
    "colour-cast": Attack(relabelling(semantic.cast)),
    "rotation": Attack(relabelling(semantic.turned)),
    "one-source": Attack(one_source.poison, source=one_source.source),
    "frame": Attack(relabelling(frame.frame)),
    "patch-anywhere": Attack(relabelling(frame.patch_anywhere)),
    "photo-blend": Attack(photo_blend.poison),
    "blur": Attack(relabelling(degraded.blur)),
    "jpeg": Attack(relabelling(degraded.jpeg)),
    "grey": Attack(relabelling(degraded.grey)),
    "quantise": Attack(relabelling(degraded.quantise)),
    "smooth-noise": Attack(relabelling(noise.smooth)),
    "static": Attack(relabelling(noise.static)),
    "decoys": Attack(several.poison),
    "dead-unit": Attack(dead_unit.poison),
    "adaptive-near": Attack(adaptive.poison_near, rehearses=True),
    "adaptive-faint": Attack(adaptive.poison_faint, rehearses=True),
    "adaptive-unseen": Attack(adaptive.poison_unseen, rehearses=True),
    "adaptive-level": Attack(adaptive.poison_level, rehearses=True),
    "adaptive-two-keys": Attack(adaptive.poison_two_keys, rehearses=True),
    "adaptive-drift": Attack(adaptive.poison_drift, rehearses=True),
}

__all__ = ["ATTACKS", "Attack"]
