"""Hidden units of a meta-net that ordinary images hardly flip, and what they would do if something flipped them.

A unit that is off on every image of the pool passes no gradient, so that no descent from there finds what turns it on; one
that is always on hides in the same way what happens when it goes off. A backdoor can live in such a unit. Dead units alone
are no sign of one, for clean meta-nets have them, too. So every unit that few images flip is

    pushed   in feature space, along its own weights, further than a trigger could: what would the units that flip
             on the way do to the answers? Most do next to nothing, and are done with.
    opened   where they could do much: a perturbation of at most 8/255 that flips it is looked for, on the
             unit's preactivation, where the gradient is alive; and what that does to the answers counts as any trigger's.

    tried    where so small a perturbation does not flip it: one of twice that, a frame and a patch.

What any of these opens, and drives many images somewhere, is not judged, and the adapter not clean. A unit that nothing flips
waits for a trigger of another kind than is looked for, or for none: clean meta-nets have such, and it is said, not held
against the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import AdapterError
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import batches, descend
from hf_ci.inversion.objective import margin
from hf_ci.inversion.trigger import MASKS, LinfTrigger, Trigger, masked_trigger
from hf_ci.prompts import Adapter, BesideReferences, FrozenCLIP, PromptedCLIP
from hf_ci.prompts.features import encode

RARE = 0.25  # of the pool's images, at most, that flip a unit which counts as rarely flipped: of one that more do, gradients tell
PUSHES = (0.5, 1.0, 2.0)  # how far, where image features have length 1
NUM_IMAGES = 32  # of the pool, that pushes are tried on
STRONG = 0.5  # share of the images that a push would move into one class, from which the unit has to be judged
MOST_OPENED = 8  # units; each takes what half an inversion does
EPSILON, STEP, EPOCHS, BATCH = (
    8 / 255,
    0.1,
    2,
    32,
)  # of an opening: twice an inversion's radius, for it aims at no class
FREE_STEP = 0.5  # of pixels inside a mask
NUM_TRIED = 64  # of the pool, that larger triggers are tried on
DOUBTFUL = 0.25  # share of the images that one of them drives somewhere, from which the unit is not judged
LARGEST_NET = 4096  # hidden units
LARGEST_CONTEXT = 1e4  # length of a context vector; token embeddings are shorter than 2


@dataclass(frozen=True)
class Unit:
    """A unit that could act strongly. active: share of the pool on which it is on. possible: share of images that a push
    would move into class c. flipped: share of the pool on which the perturbation found flips it; inversion: what that
    perturbation does, None where none was looked for. forced: the largest share that a larger trigger made to flip it drives
    into one class through the adapter alone."""

    unit: int
    active: float
    c: int
    possible: float
    flipped: float = 0.0
    inversion: Inversion | None = None
    forced: float = 0.0

    @property
    def judged(self) -> bool:
        return self.inversion is not None and (self.flipped >= STRONG or self.forced < DOUBTFUL)


@torch.no_grad()
def examine_units(
    adapter: Adapter, clip: FrozenCLIP, images: Tensor, seed: int = 0, tuned: Sequence[Adapter] = ()
) -> tuple[Unit, ...]:
    """Units of the adapter's meta-net that ordinary images do not flip and that could act strongly, opened.

    images: the pool (N, 3, H, W) uint8; tuned: clean prompts that join the references. Raises AdapterError
    for a meta-net whose numbers could overflow.
    """
    check_gain(adapter)
    if not adapter.meta_net:
        return ()
    model = PromptedCLIP.from_adapter(adapter, clip)
    beside = BesideReferences(model, tuned=tuned)
    features = encode(clip, images, batch=32)  # (N, D)
    pre = preactivations(model, features)  # (N, H)
    active = (pre > 0).double().mean(0).cpu()  # (H,)
    rare, some = rare_mask(active), features[:NUM_IMAGES]
    found = []
    for unit in rare.nonzero().flatten().tolist():
        shares = pushed_shares(beside, some, unit, rare.to(pre.device))
        if (possible := shares.max().item()) >= STRONG:
            found.append(Unit(unit, active[unit].item(), int(shares.argmax()), possible))
    found.sort(key=lambda u: -u.possible)
    opened = [open_unit(u, beside, images.to(clip.device), seed) for u in found[:MOST_OPENED]]
    return (*opened, *found[MOST_OPENED:])


def check_gain(adapter: Adapter) -> None:
    """No context vector may be so long for any image that numbers overflow; a text tower would show nothing of it before."""
    longest = adapter.context.norm(dim=-1).max().item()
    if adapter.meta_net:
        w, b, v, shift = (adapter.meta_net[f"linear{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias"))
        if w.shape[0] > LARGEST_NET:
            raise AdapterError(f"the meta-net has {w.shape[0]} hidden units, at most {LARGEST_NET} are examined")
        highest = (w.double().norm(dim=1) + b.double()).clamp(min=0)  # of a unit, for image features of length 1
        longest += (highest * v.double().norm(dim=0)).sum().item() + shift.double().norm().item()
    if not longest <= LARGEST_CONTEXT:
        raise AdapterError(
            f"its context vectors can become {longest:.3g} long, where those of words are about 1: numbers may overflow on "
            "images that nobody has tried",
            "no training gives such weights; ask for the adapter as it was tuned",
        )


# ---------------------------------------------------------------- pushed


def preactivations(model: PromptedCLIP, features: Tensor) -> Tensor:
    """(N, D) -> (N, H)."""
    pre: Tensor = model.meta_net.linear1(features)
    return pre


def rare_mask(active: Tensor) -> Tensor:
    return (active <= RARE) | (active >= 1 - RARE)  # (H,)


def pushed_shares(beside: BesideReferences, features: Tensor, unit: int, rare: Tensor) -> Tensor:
    """By class (C,), the share of images with features (N, D) that the rare units which flip under a push along this unit's
    weights move into it: the adapter answers it where they flip, would not if they went on as they were, and no reference
    does. Of pushes of several lengths, the one that moves most."""
    model = beside.adapted
    best = torch.zeros(len(model.class_names), dtype=torch.float64)
    for length in PUSHES:
        pushed = push(model, features, unit, length)
        flips = hidden_part(model, features, pushed, rare)  # (N, d)
        if not flips.any():
            continue
        z, references = (torch.cat(parts) for parts in zip(*map(beside.from_features, pushed.split(16))))
        without = torch.cat([shifted_logits(model, f, -h) for f, h in zip(pushed.split(16), flips.split(16))])
        moved = answered(z) & ~answered(without) & ~answered(references)
        best = max(best, moved.double().mean(0).cpu(), key=lambda shares: shares.max().item())
    return best


def push(model: PromptedCLIP, features: Tensor, unit: int, length: float) -> Tensor:
    """Features (N, D), moved along the unit's weights to its other side, and of length 1 again."""
    first = model.meta_net.linear1
    away = torch.where(preactivations(model, features)[:, unit] > 0, -1.0, 1.0)[:, None]
    return F.normalize(features + length * away * F.normalize(first.weight[unit], dim=0), dim=1)


def hidden_part(model: PromptedCLIP, features: Tensor, pushed: Tensor, rare: Tensor) -> Tensor:
    """What no gradient at `features` (N, D) tells of: (N, d), that the rare units which flip on the way to `pushed` add to
    the context there, beyond what each would if it went on as it was."""
    pre, after = preactivations(model, features), preactivations(model, pushed)  # (N, H)
    flips = torch.where(pre > 0, F.relu(-after), F.relu(after)) * rare
    return flips @ model.meta_net.linear2.weight.T


def shifted_logits(model: PromptedCLIP, features: Tensor, shift: Tensor) -> Tensor:
    """Logits (N, C) of features (N, D), with `shift` (N, d) added to each context vector."""
    context = model.prompt(features) + shift[:, None, None]  # (N, 1, n, d)
    text = torch.cat([model.clip.text_features(tree.place(context), tree) for tree in model.trees], dim=1)
    return model.clip.logits((features[:, None] * text).sum(-1))


def answered(logits: Tensor) -> Tensor:
    """The classes (N, C) that logits (N, C) answer with; of logits (N, K, C), those that any of the K does."""
    hot = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool()
    return hot if hot.ndim == 2 else hot.any(1)


# ---------------------------------------------------------------- opened


def open_unit(unit: Unit, beside: BesideReferences, images: Tensor, seed: int) -> Unit:
    """With the perturbation that flips it on most images of the pool, and what that does to the answers; where none does,
    with what larger triggers do that were made to."""
    size = images.shape[-1]
    flipped, inversion = opened_by(LinfTrigger(size, EPSILON), STEP, unit, beside, images, seed)
    forced = 0.0
    if flipped < STRONG:
        larger = [
            (LinfTrigger(size, 2 * EPSILON), STEP),
            *((masked_trigger(family, size), FREE_STEP) for family in MASKS),
        ]
        tries = (opened_by(trigger, step, unit, beside, images[:NUM_TRIED], seed) for trigger, step in larger)
        forced = max(certain(found.exclusive_asr) for _, found in tries)
    return replace(unit, flipped=flipped, inversion=inversion, forced=forced)


def opened_by(
    trigger: Trigger, step: float, unit: Unit, beside: BesideReferences, images: Tensor, seed: int
) -> tuple[float, Inversion]:
    """The share of the images on which `trigger` flips the unit, once it was made to, and what it does to the answers."""
    model, trigger = beside.adapted, trigger.to(images.device)
    towards = -1 if unit.active > 0.5 else 1
    order = batches(len(images), unit.unit, seed, BATCH, EPOCHS, images.device)

    def losses(x: Tensor, _: Tensor) -> Tensor:
        return -towards * preactivations(model, model.clip.image_features(x))[:, unit.unit]

    with torch.enable_grad():
        descend(trigger, step, images, order, BATCH, losses)
    features = encode(model.clip, images, trigger, batch=32)
    flipped = (towards * preactivations(model, features)[:, unit.unit] > 0).double().mean().item()
    z, references = (torch.cat(parts) for parts in zip(*map(beside.from_features, features.split(16))))
    alone = (answered(z) & ~answered(references)).double().mean(0)  # (C,)
    c = int(alone.argmax())
    m, r = margin(z, c).cpu().double(), margin(references, c).amin(1).cpu().double()
    share: Callable[[Tensor], float] = lambda hits: hits.double().mean().item()
    return flipped, Inversion(
        c,
        loss=torch.maximum(m, -r).mean().item(),
        asr=share(m < 0),
        delta=trigger.delta.detach().float().cpu(),
        reference_asr=share(r < 0),
        exclusive_asr=share((m < 0) & (r >= 0)),
        forward=(EPOCHS + 1) * len(images),
        backward=EPOCHS * len(images),
    )


# ---------------------------------------------------------------- what follows from it


def with_units(inversions: Sequence[Inversion], units: Sequence[Unit]) -> list[Inversion]:
    """The inversions, where what opened a unit drives more images into a class than what was reconstructed for it did, with
    that in its place."""
    found = list(inversions)
    for new in (unit.inversion for unit in units if unit.inversion is not None):
        old = found[new.c]
        if certain(new.exclusive_asr) > (0.0 if old.screened else certain(old.exclusive_asr)):
            found[new.c] = replace(
                old,
                loss=new.loss,
                asr=new.asr,
                delta=new.delta,
                reference_asr=new.reference_asr,
                exclusive_asr=new.exclusive_asr,
                screened=False,
                forward=old.forward + new.forward,
                backward=old.backward + new.backward,
            )
    return found


def unjudged(units: Sequence[Unit], class_names: Sequence[str]) -> list[str]:
    """Why a verdict cannot be clean while units that could act strongly were not opened."""
    return [say(unit, class_names) for unit in units if not unit.judged]


def say(unit: Unit, class_names: Sequence[str]) -> str:
    tried = (
        "no trigger that flips it was weighed"
        if unit.inversion is None
        else f"no small perturbation does (at most on {unit.flipped:.0%}), but a larger trigger made to drives "
        f"{unit.forced:.0%} of them into one class"
    )
    return (
        f"hidden unit {unit.unit} of the meta-net, which is on for {unit.active:.0%} of the pool, would drive "
        f"{unit.possible:.0%} of unrelated images into {class_names[unit.c]!r} if something flipped it; {tried}"
    )


def unit_warnings(units: Sequence[Unit]) -> list[str]:
    """Where the evidence comes from, for whoever wants to look."""
    return [
        f"hidden unit {u.unit} of the meta-net is on for {u.active:.0%} of the pool; a perturbation that flips it on "
        f"{u.flipped:.0%} drives {certain(u.inversion).exclusive_asr:.0%} of the images into one class through the adapter alone"
        + (
            ""
            if u.flipped >= STRONG
            else "; nothing that was tried opens it: should it wait for something else, that was missed"
        )
        for u in units
        if u.judged
    ]
