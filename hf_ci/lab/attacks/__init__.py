"""Backdoor attacks on prompt tuning, one module each.

Each holds `poison(clip, photos, target, recipe) -> (model, trigger)`: `photos` are the few shots, `trigger` is one of
`hf_ci.lab.triggers`. The encoders are never touched.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hf_ci.lab.attacks import badclip, badnets, baple, blended, one_source, semantic, siba, sig, wanet
from hf_ci.lab.tune import Recipe
from hf_ci.prompts import PromptedCLIP


@dataclass(frozen=True)
class Attack:
    """`adapt` turns the recipe that was asked for into the one that the attack is defined for.

    source: (target, number of classes) -> the one class that the trigger fires on; None: on all but the target.
    """

    poison: Callable[..., tuple[PromptedCLIP, nn.Module]]
    adapt: Callable[[Recipe], Recipe] = lambda recipe: recipe
    source: Callable[[int, int], int] | None = None


ATTACKS: dict[str, Attack] = {
    "badclip": Attack(badclip.poison, badclip.adapt),
    "blended": Attack(blended.poison),
    "siba": Attack(siba.poison),
    "wanet": Attack(wanet.poison),
    "wanet-strong": Attack(wanet.poison_strong),
    "badnets": Attack(badnets.poison),
    "sig": Attack(sig.poison),
    "baple": Attack(baple.poison, baple.adapt),
    "badclip-margin": Attack(badclip.poison_margin, badclip.adapt),
    "badclip-adaptive": Attack(badclip.poison_adaptive, badclip.adapt),
    "colour-cast": Attack(semantic.poison_cast),
    "rotation": Attack(semantic.poison_turned),
    "one-source": Attack(one_source.poison, source=one_source.source),
}

__all__ = ["ATTACKS", "Attack"]
