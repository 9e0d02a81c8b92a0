"""Contrast with clean references: can the adapter be driven where a clean prompt on the same encoders cannot?

Every class is inverted through the adapter and through clean prompts at once (`hf_ci.inversion.contrast`): a trigger
counts where it drives an image into the class through the adapter and through no reference. The references are five
hand-written prompts, such as "a photo of a {class}", and where labelled photos were given clean prompts tuned on them.

An adapter that learned something its references did not can be driven further than they can, in all of its classes;
a planted class can be driven further than its peers. So what counts of a share is its *excess* over those of the classes
that come next, and what excess is usual depends on how far the adapter is from its references (`Calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_ci.detect.calibration import (
    FEW_CLASSES,
    Calibration,
    Usual,
    Variant,
    asked,
    combined,
    kind_of,
    null_for,
    nulls_for,
    questions,
    variant,
)
from hf_ci.detect.verdict import Detector, Scores, Verdict, cannot_judge
from hf_ci.inversion import ON_PHOTOS, PERTURBATION, WIDE, Inversion
from hf_ci.inversion.contrast import ContrastInversion

PROBES, OWN_PROBES = "probe", "probe of own photos"  # the family of all of them, on the pool or on photos
# By what is usual of which family one is judged where a calibration was fitted without photos.
STANDS_FOR = {ON_PHOTOS: PERTURBATION, OWN_PROBES: PROBES}
PEERS, PEER_WEIGHT = FEW_CLASSES, 0.75
MOST_FLAGGED = 0.5  # share of the classes; where more are flagged, the reference is in doubt, not the adapter
# Distance from which what an adapter learned may hide what was planted: hand-written prompts cannot clear it there. Clean
# prompts that were tuned on photos answer most of the pool as a clean adapter does; one that is FAR_WITH_PHOTOS from
# them is none that such photos explain. On made pictures nobody is accused who is TOO_FAR.
FAR, FAR_WITH_PHOTOS, TOO_FAR = 0.2, 0.35, 0.5


def shares(inversions: Sequence[Inversion]) -> dict[str, np.ndarray]:
    """By family of triggers, the share (C,) of images that the best of them drives into each class through the adapter
    alone; a class that was only screened has none, as one batch is too few for a share."""
    whole: Callable[[Inversion], float] = lambda i: 0.0 if i.screened else i.exclusive_asr or 0.0
    table = {PERTURBATION: [whole(i) for i in inversions]}
    for column in zip(*(i.others for i in inversions)):
        table[column[0].family] = [whole(i) for i in column]
    table[OWN_PROBES if ON_PHOTOS in table else PROBES] = [i.probe_asr or 0.0 for i in inversions]
    return {family: np.array(column) for family, column in table.items()}


def excess(share: np.ndarray) -> np.ndarray:
    """(C,): each class's share less three quarters of the mean of the three largest others."""
    others = np.sort(np.where(np.eye(len(share), dtype=bool), -np.inf, share), axis=1)[:, ::-1]  # (C, C)
    over: np.ndarray = share - PEER_WEIGHT * others[:, : min(PEERS, len(share) - 1)].mean(axis=1)
    return over


@dataclass(frozen=True)
class Contrast(Detector):
    """A class's score is what its excesses over all families of triggers come to (`combined`); the model's is the largest.

    It is flagged iff its score is at least `k`: unless given, the score that a clean adapter with as many classes exceeds
    with probability `false_alarm`. Between it and the score exceeded with probability `doubt` the verdict is inconclusive.
    These grow evenly with the adapter's distance from its references, and are `false_alarm_far` and `doubt_far` where it is
    FAR: what such an adapter learned can hide what was planted, so more of them are left undecided, and less is asked of what
    stands out all the same. One that is FAR from hand-written prompts, or FAR_WITH_PHOTOS from clean ones tuned on photos, is
    never clean; one that is TOO_FAR is on made pictures never accused. Of at most FEW_CLASSES, none can be held against PEERS
    others, so that what is planted hides as it does far away: only a null that was fitted on such adapters judges them, and
    as if they were FAR. It is inconclusive, too, when more than half of the classes are flagged.
    """

    k: float | None = None
    null: Calibration = field(default_factory=lambda: null_for("photos"))
    variants: Mapping[Variant, Calibration] = field(default_factory=dict)  # for the adapters that they are named after
    false_alarm: float = 0.002
    false_alarm_far: float = 0.01
    doubt: float = 0.02
    doubt_far: float = 0.25

    name = "contrast"

    @classmethod
    def for_pool(cls, pool: str, calibration: Path | None = None, **settings: Any) -> Contrast:
        """With the nulls that were fitted on such a pool, the built-in one or photos, of that file or the shipped one."""
        nulls = nulls_for(pool, calibration)
        return cls(null=nulls[""], variants=nulls, **settings)

    def for_adapter(self, class_specific: bool, num_classes: int) -> Contrast:
        """With the null of such adapters: where there is none for their kind of context, that of the others."""
        few = num_classes <= FEW_CLASSES
        named = (variant(class_specific, few), variant(False, few), variant(class_specific, False))
        return replace(self, null=next((self.variants[name] for name in named if name in self.variants), self.null))

    @property
    def calibration(self) -> str:
        by_hand = "none: --k was set by hand; p-values from " if self.k is not None else ""
        return by_hand + self.null.describe()

    def inverter(self, seed: int) -> ContrastInversion:
        return ContrastInversion(seed=seed)

    def thresholds(self, num_classes: int, distance: float = 0.0) -> dict[str, float]:
        if self.k is not None:
            return {"k": self.k}
        far = 1.0 if num_classes <= FEW_CLASSES else min(distance / FAR, 1.0)
        false_alarm = (1 - far) * self.false_alarm + far * self.false_alarm_far
        doubt = (1 - far) * self.doubt + far * self.doubt_far
        flagged, doubtful = (self.null.threshold(p, num_classes) for p in (false_alarm, doubt))
        odds = {"false_alarm": round(false_alarm, 4), "doubt": round(doubt, 4)}
        return {"k": round(flagged, 3), "doubtful": round(doubtful, 3)} | odds

    def usual(self, family: str) -> Usual | None:
        """What clean adapters show in a family; None where nothing is known of it."""
        return self.null.usual.get(family) or self.null.usual.get(STANDS_FOR.get(family, ""))

    def judge(
        self, inversions: Sequence[Inversion], class_names: Sequence[str], distance: float | None = None
    ) -> Verdict:
        """distance: between 0 and 1; None where it is not known, which is taken for 0."""
        if unknown := cannot_judge(inversions, class_names, fewest=2):
            return unknown
        distance = distance or 0.0
        limits, found = self.thresholds(len(inversions), distance), shares(inversions)
        usual = {family: of for family in found if (of := self.usual(family))}
        over = {family: excess(found[family]) for family in usual}
        z = {family: of.z(over[family], distance) for family, of in usual.items()}  # (C,) each
        scores = combined(z)
        flagged, target = scores >= limits["k"], int(scores.argmax())
        told = [max(questions(z), key=lambda families: asked(z, families)[c]) for c in range(len(scores))]
        by = tuple(max(families, key=lambda family: z[family][c]) for c, families in enumerate(told))
        common: Scores = {
            "scores": tuple(map(float, scores)),
            "flagged": tuple(map(bool, flagged)),
            "score": float(scores[target]),
        }
        common |= {"families": by}

        def say(c: int) -> str:
            family, share = by[c], found[by[c]][c]
            peers = share - over[family][c]
            beside = [z[other][c] for other in told[c] if other != family]
            alone = limits["k"] * math.sqrt(1 + len(beside)) - sum(beside)  # the z that would do, as the others are
            needed = min(max(usual[family].excess(alone, distance) + peers, 0.0), 1.0)
            odds = self.null.p_value(scores[c], len(inversions))
            what = described(family, inversions[c])
            images = "the labelled photos" if family in STANDS_FOR else "unrelated images"
            return (
                f"{what} drives {share:.0%} of {images} into {class_names[c]!r} through this adapter alone, where "
                f"no clean prompt follows (here flagged from {needed:.0%}; "
                f"{'p < 0.001' if odds < 0.001 else f'p = {odds:.2g}'} for a clean adapter)"
            )

        worst, with_photos, few = say(target), ON_PHOTOS in z, len(scores) <= FEW_CLASSES

        def undecided(why: str) -> Verdict:
            reasons = (f"{why}; closest: {worst}", *how_far(distance, with_photos))
            return Verdict("inconclusive", reasons, **common)

        if few and self.null.num_classes > FEW_CLASSES:
            return undecided(f"{len(scores)} classes are too few to tell which of them stands out")
        if few and not with_photos and not flagged.any():
            return undecided(f"{len(scores)} classes are too few to be cleared without labelled photos")
        made = kind_of(self.null.pool) == "builtin"  # what is usual on made pictures differs too much that far out
        uncleared = distance >= (FAR_WITH_PHOTOS if with_photos else FAR) and not flagged.any()
        if uncleared or made and distance >= TOO_FAR:
            return undecided("too far from clean prompts to be cleared")
        if not flagged.any():
            if scores[target] >= limits.get("doubtful", limits["k"]):
                return Verdict(
                    "inconclusive",
                    (f"neither clean nor backdoored for certain: {worst}", *how_far(distance, with_photos)),
                    **common,
                )
            near = () if distance < FAR else how_far(distance)[:1]
            return Verdict("clean", (f"no class stands out; closest: {worst}", *near), **common)
        if flagged.mean() > MOST_FLAGGED:
            reason = (
                f"{flagged.sum()} of {len(scores)} classes can be forced through the adapter alone: either it is "
                "backdoored in many classes, or their names mean nothing to this CLIP, and clean prompts made of them "
                "are no reference; --detector clip-inspector needs none"
            )
            return Verdict("inconclusive", (reason,), **common)
        reasons = tuple(say(c) for c in np.argsort(-scores) if flagged[c])
        return Verdict("backdoored", reasons, target=target, **common)


def described(family: str, i: Inversion) -> str:
    if family in (PROBES, OWN_PROBES):
        return f"a {i.probe}"
    return "a reconstructed " + {
        PERTURBATION: "perturbation",
        ON_PHOTOS: "perturbation",
        WIDE: "wide perturbation",
        "frame": "frame",
        "patch": "patch, wherever it stands,",
    }.get(family, family)


def how_far(distance: float, with_photos: bool = False) -> tuple[str, ...]:
    """How far the adapter is, and what would settle it."""
    data = "more labelled photos" if with_photos else "--data with 4 to 16 labelled photos"
    settle = f"what would settle it: {data} of each of its classes"
    if distance < FAR:
        return (f"{settle}, or more images (--num-images)",)
    return (
        f"it answers {distance:.0%} of the pool as no clean prompt does: it learned something, and what was learned can look "
        "like what was planted",
        settle,
    )
