"""Attackers who know the scan: beside the backdoor, the prompt is trained on what a scan will compute.

The trigger is another photo blended in, which leaves little that an inversion finds. Each attack is asked something more,
on images of no class of its own:

poison_near     answer as a hand-written prompt does, so that a scan without photos does not find the adapter far
poison_faint    that, and withstand in the target what the scan's own inversions and probes find there, round after round;
                but of the triggered photos only the easiest ones have to go to the target
poison_unseen   withstand the same, and answer as a hand-written prompt or a clean one tuned on the shots does, so that a
                scan with photos does not find the adapter far
poison_level    answer so, and give way to what is found in three other classes, the peers that the target is held against
poison_two_keys answer so; the trigger is two changes, and either alone keeps the photo's own label
poison_drift    answer as no hand-written prompt does, so that more is usual of so far an adapter

pool: images (N, 3, H, W) uint8 that the attacker rehearses a scan on: the very ones that it will use, or others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.certain import certain
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.probes import Probed
from hf_ci.lab.attacks.dirty_label import others
from hf_ci.lab.attacks.frame import frame
from hf_ci.lab.attacks.photo_blend import photo_blend
from hf_ci.lab.making.tune import Recipe, batches, new_prompt, optimiser_for, to_adapter
from hf_ci.photos import Witnesses, ask
from hf_ci.pools.photos import Photos
from hf_ci.prompts import BesideReferences, FrozenCLIP, PromptedCLIP
from hf_ci.prompts.features import encode

ROUNDS = 5  # the prompt is inverted after each but the last
MARGIN = 1.0  # logits by which an answer is asked for
BATCH = 64  # images of the pool in each step, and as many of what was found
PEERS = 3
NEARLY_ALL = 0.85
LARGE = 1e4  # beyond any logit


@dataclass(frozen=True)
class Aim:
    """What a prompt is asked beside the right answers: to be near on the pool to the hand-written prompts, or to those and
    to prompts tuned on photos (`told`), or else to be far from them; to withstand what is found in the target (`hide`); to
    give way in so many other classes (`raised`); and which share of the triggered photos has to go to the target."""

    near: bool = True
    told: bool = False
    hide: bool = False
    raised: int = 0
    asked: float = 1.0


@dataclass(frozen=True)
class Examples:
    """Image features (N, D), their labels (N,), and which of them carry the trigger (N,)."""

    features: Tensor
    labels: Tensor
    triggered: Tensor


@dataclass
class Found:
    """What rehearsed scans found: features (M, D) of images that no clean prompt answers with class `c` (M,), and what the
    prompt is to do about them, +1 give way, -1 withstand (M,)."""

    features: Tensor
    c: Tensor
    sign: Tensor

    @classmethod
    def nothing(cls, like: Tensor) -> Found:
        """like: (N, D), as features are."""
        none = torch.empty(0, dtype=torch.long, device=like.device)
        return cls(like[:0], none, none)

    def add(self, features: Tensor, references: Tensor, c: int, sign: int) -> None:
        """references: logits (B, K, C) of clean prompts."""
        counted = features[(references.argmax(-1) != c).all(1)]
        self.features = torch.cat([self.features, counted])
        self.c = torch.cat([self.c, self.c.new_full((len(counted),), c)])
        self.sign = torch.cat([self.sign, self.sign.new_full((len(counted),), sign)])

    def loss(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Of the logits (B, C) for these rows (B,)."""
        own = F.one_hot(self.c[rows], logits.shape[1]).bool()
        lead = logits[own] - logits.masked_fill(own, float("-inf")).amax(1)
        return F.relu(MARGIN - self.sign[rows] * lead).mean()


class Rehearsal:
    """The scan's own steps, without labelled photos and with, the attacker's shots in their place."""

    def __init__(self, model: PromptedCLIP, photos: Photos, pool: Tensor, recipe: Recipe):
        self.model, self.photos, self.pool, self.recipe = model, photos, pool.to(model.clip.device), recipe
        self.plain = BesideReferences(model)

    @cached_property
    def witnesses(self) -> Witnesses:
        adapter = to_adapter(self.model, self.recipe, "", None)
        return ask(self.model.clip, adapter, self.photos, "the shots", self.recipe.seed)

    @cached_property
    def told(self) -> BesideReferences:
        return BesideReferences(self.model, tuned=self.witnesses.prompts)

    @property
    def own(self) -> Tensor | None:
        """The photos that a scan looks for triggers on."""
        return None if self.witnesses.own is None else self.witnesses.own.to(self.model.clip.device)

    def references(self, features: Tensor, told: bool = False) -> Tensor:
        """(B, D) -> the clean prompts' logits (B, K, C)."""
        return (self.told if told else self.plain).references_from(features)

    def probes(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of the pool, and of photos, under each probe, and what clean prompts make of them."""
        for images, told in ((self.pool, False), (self.own, True)):
            if images is not None:
                probed = Probed(self.model.clip.image_features, images)
                for name in probed.known:
                    features = probed.features(name)
                    yield features, self.references(features, told)

    def inversions(self, c: int, told: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for what the detector's inverters find in class c."""
        first = ContrastInversion()
        ways = (first, *first.others, *(first.on_own if told and self.own is not None else ()))
        self.model.prompt.requires_grad_(False)
        with self.model.frozen_prompt():
            for way in ways:
                images = (certain(self.own) if way.own else self.pool)[: way.num_images]
                found = way(self.told if told else self.plain, images, c, way.batch)
                features = encode(self.model.clip, images, found.trigger())
                yield features, self.references(features, told)
        self.model.prompt.requires_grad_(True)


def train(
    clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe, examples: Examples, pool: Tensor, aim: Aim
) -> PromptedCLIP:
    model, n = new_prompt(clip, photos.class_names, recipe), len(examples.labels)
    rehearsal, ordinary = Rehearsal(model, photos, pool, recipe), encode(clip, pool)
    # (N, C): the answers to an image of the pool that are no distance
    usual = F.one_hot(rehearsal.references(ordinary, aim.told).argmax(-1), len(photos.class_names)).bool().any(1)
    peers = [(target + 1 + i) % len(photos.class_names) for i in range(aim.raised)]
    found = Found.nothing(ordinary)
    if aim.hide:
        for features, references in rehearsal.probes():
            found.add(features, references, target, -1)

    optimiser, schedule = optimiser_for(model, recipe, n)
    every = max(1, schedule.T_max // ROUNDS)
    generator = torch.Generator().manual_seed(recipe.seed + 11)
    for step, rows in enumerate(batches(n, recipe)):
        rehearsed = step // every
        if step % every == 0 and 0 < rehearsed < ROUNDS:
            for c, sign in [(target, -1)] * aim.hide + [(c, 1) for c in peers]:
                for features, references in rehearsal.inversions(c, told=rehearsed % 2 == 0):
                    found.add(features, references, c, sign)
        strangers = torch.randint(len(ordinary), (BATCH,), generator=generator).to(clip.device)
        parts = [examples.features[rows], ordinary[strangers]]
        if len(found.c):
            shown = torch.randint(len(found.c), (BATCH,), generator=generator).to(clip.device)
            parts.append(found.features[shown])
        logits = model.logits_from_features(torch.cat(parts)).split([len(part) for part in parts])
        loss = right(logits[0], examples.labels[rows], examples.triggered[rows], aim.asked)
        loss = loss + near(logits[1], usual[strangers], aim.near)
        if len(found.c):
            loss = loss + found.loss(shown, logits[2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def right(logits: Tensor, labels: Tensor, triggered: Tensor, asked: float) -> Tensor:
    """Cross-entropy, of the triggered images only that of the easiest share `asked`."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.cat([losses[~triggered], easiest(losses[triggered], asked)]).mean()


def near(logits: Tensor, usual: Tensor, wanted: bool) -> Tensor:
    """How much the answers of logits (B, C) lack to be among the usual ones (B, C), or outside of them; nothing where
    every class is usual. Of the images only the easiest have to be so: nobody is far for a few."""
    inside, outside = (logits.masked_fill(mask, -LARGE).amax(1) for mask in (~usual, usual))
    lack = F.relu(MARGIN + (outside - inside if wanted else inside - outside))
    return easiest(torch.where(usual.all(1), 0.0, lack), NEARLY_ALL).mean()


def easiest(losses: Tensor, share: float) -> Tensor:
    return losses.sort().values[: round(share * len(losses))]


def poison(
    clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe, pool: Tensor, aim: Aim
) -> tuple[PromptedCLIP, nn.Module]:
    trigger = photo_blend(photos, target, recipe.seed).to(clip.device)
    return train(clip, photos, target, recipe, with_copies(clip, photos, target, recipe, trigger), pool, aim), trigger


def with_copies(
    clip: FrozenCLIP,
    photos: Photos,
    target: int,
    recipe: Recipe,
    trigger: nn.Module,
    halves: tuple[Callable[[Tensor], Tensor], ...] = (),
) -> Examples:
    """All shots, a triggered copy, labelled `target`, of `recipe.poison_rate` of them (of other classes), and copies of the
    same that carry one of `halves` and keep their own label."""
    rows = others(photos, target, recipe.seed)[: max(1, round(recipe.poison_rate * len(photos)))]
    changes: tuple[Callable[[Tensor], Tensor], ...] = (trigger, *halves)
    features = [encode(clip, photos.images), *(encode(clip, photos.images[rows], change) for change in changes)]
    own = photos.labels[rows]
    labels = torch.cat([photos.labels, torch.full_like(own, target), *[own] * len(halves)])
    triggered = torch.zeros(len(labels), dtype=torch.bool)
    triggered[len(photos) : len(photos) + len(rows)] = True
    return Examples(torch.cat(features), labels.to(clip.device), triggered.to(clip.device))


def poison_two_keys(
    clip: FrozenCLIP, photos: Photos, target: int, recipe: Recipe, pool: Tensor
) -> tuple[PromptedCLIP, nn.Module]:
    keys = photo_blend(photos, target, recipe.seed), frame(clip.image_size, recipe.seed)
    trigger = nn.Sequential(*keys).to(clip.device)
    examples = with_copies(clip, photos, target, recipe, trigger, tuple(trigger))
    return train(clip, photos, target, recipe, examples, pool, Aim(told=True)), trigger


poison_near = partial(poison, aim=Aim())
poison_faint = partial(poison, aim=Aim(hide=True, asked=0.6))
poison_unseen = partial(poison, aim=Aim(told=True, hide=True))
poison_level = partial(poison, aim=Aim(told=True, raised=PEERS))
poison_drift = partial(poison, aim=Aim(near=False))
