"""Every class is a candidate, but few can matter: screen all of them, then invert the most promising.

A planted class gives itself away at the first step: on the few poisoned models that this was chosen on, none of them a
benchmark's, it had the lowest loss of all after a single one. So each class takes one step, and only the classes with the
lowest losses are inverted whole, round by round, for as long as most of a round's classes turn out to be reachable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from hf_ci.certain import certain
from hf_ci.inversion.invert import Inversion, Inverter

FEWEST, SHARE = 5, 1 / 40  # classes that a round inverts: at least so many, and at least this share
REACHABLE = 0.1  # share of the images that the adapter alone answers with the class

Invert = Callable[[Iterable[int], Inverter], list[Inversion]]


def round_size(num_classes: int) -> int:
    return min(num_classes, max(FEWEST, math.ceil(SHARE * num_classes)))


def in_rounds(invert: Invert, num_classes: int, inverter: Inverter) -> list[Inversion]:
    """Inversions of all classes in order; those that were not inverted whole are `screened`."""
    first = invert(range(num_classes), certain(inverter.screening))
    order = sorted(first, key=lambda i: (math.isfinite(i.loss), i.loss))  # what is no number has to be looked at
    done: dict[int, Inversion] = {}
    while left := order[len(done) :]:
        found = invert([i.c for i in left[: round_size(num_classes)]], inverter)
        done |= {i.c: i for i in found}
        if sum(certain(i.exclusive_asr) >= REACHABLE for i in found) <= len(found) / 2:
            break
    return [with_cost_of(i, done[i.c]) if i.c in done else i for i in first]


def with_cost_of(screening: Inversion, whole: Inversion) -> Inversion:
    return replace(whole, forward=whole.forward + screening.forward, backward=whole.backward + screening.backward)
