"""Tune a clean prompt against what a scan reconstructed, and measure on images held out what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.inversion import LinfInversion
from hf_ci.inversion.job import prepared
from hf_ci.inversion.probes import Probe, probes
from hf_ci.photos import PROMPTS, folds_of, views_of
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, reference_adapter
from hf_ci.prompts.features import answer, encode
from hf_ci.repair.unlearn import Lesson, Schedule, clean_start, unlearn, wanted_from_answers, wanted_with_labels
from hf_ci.scan import Examined, Run

HELD_OUT = 0.25  # share of the pool that evidence is measured on, never tuned on; of photos, one fold


@dataclass(frozen=True)
class Trigger:
    """What changes images so that they are answered with class c; finding: a scan found it for a class that stands out."""

    c: int
    change: Probe
    finding: bool = False


@dataclass(frozen=True)
class Source:
    """Images that a prompt is tuned on, and images held out. ways: (V, N, D), features of the former untriggered, in some
    views; labels (N,) and held_labels, where they are known."""

    used: Tensor
    held: Tensor
    ways: Tensor
    labels: Tensor | None = None
    held_labels: Tensor | None = None


def triggers(examined: Examined, flagged: set[int], run: Run) -> list[Trigger]:
    """For each flagged class the triggers that the scan reconstructed, the probe that the class answers to most, and a
    trigger that need not fail through a clean prompt."""
    suspects = [i for i in examined.inversions if i.c in flagged]
    known = probes(examined.clip.image_size, examined.clip.device)
    whole = [one for i in suspects for one in (i, *i.others) if not one.screened]
    found = [Trigger(one.c, one.trigger(), finding=True) for one in whole]
    found += [Trigger(i.c, known[i.probe], finding=True) for i in suspects if i.probe]
    images = examined.pool.images.to(examined.clip.device)
    with prepared(examined.adapter, examined.clip, uses_reference=False) as model:
        plain = LinfInversion(seed=run.options.seed)
        return found + [
            Trigger(i.c, adder(plain.trigger(model, images, i.c, plain.batch).delta.detach())) for i in suspects
        ]


def clean_prompt(examined: Examined) -> Adapter:
    """What a repair starts from: a prompt tuned on the labelled photos but for their first fold, or without any a
    hand-written one."""
    if examined.witnesses:
        return examined.witnesses.prompts[0]
    return reference_adapter(examined.clip, examined.adapter.class_names)


def sources(examined: Examined, schedule: Schedule) -> list[Source]:
    """The pool, and after it the photos: those that the clean prompt was not tuned on are held out."""
    clip, pool = examined.clip, examined.pool.images
    used, held = split(len(pool), schedule.seed + 1)
    found = [Source(pool[used], pool[held], encode(clip, pool[used])[None])]
    if examined.witnesses:
        photos = examined.witnesses.photos
        held = folds_of(photos.labels, PROMPTS) == 0
        used, kept = photos.images[~held], photos.images[held]
        labels = photos.labels.to(clip.device)
        ways = views_of(clip, used, schedule.seed)  # never as they are: they may have been supplied with a trigger
        found.append(Source(used, kept, ways, labels[~held], labels[held]))
    return found


def tuned(
    examined: Examined,
    found: Sequence[Trigger],
    suspects: Sequence[int],
    schedule: Schedule,
    probed: bool = True,
) -> tuple[Adapter, dict[str, Any]]:
    """A prompt tuned on the pool's images and the photos, and what those held out say of it: the photos, where there are
    any. probed: whether on images with probes as well."""
    clip, start = examined.clip, clean_prompt(examined)
    original, reference = (PromptedCLIP.from_adapter(one, clip) for one in (examined.adapter, start))
    model = clean_start(examined.adapter, clip, start.context.to(clip.device))
    known = list(probes(clip.image_size, clip.device).values()) if probed else []
    num_changes = bool(found) + bool(known)
    weights = [1 / 2] + [1 / 2 / num_changes] * num_changes if num_changes else [1.0]

    lessons, given = [], sources(examined, schedule)
    for source in given:
        changed = [torch.stack([encode(clip, source.used, t.change) for t in found])] if found else []  # (T, N, D)
        if known:
            changed.append(some_ways(clip, source.used, known, schedule))
        wanted = [
            torch.stack([wanted_from_answers(answer(original, x), answer(reference, x), suspects) for x in source.ways])
        ]
        wanted += [torch.stack([F.log_softmax(answer(reference, x), dim=1) for x in part]) for part in changed]
        if source.labels is not None:
            wanted = [wanted_with_labels(w, source.labels, schedule.label_weight) for w in wanted]
        shares = [weight / len(given) for weight in weights]
        lessons += [Lesson(*lesson) for lesson in zip([source.ways, *changed], wanted, shares)]
    unlearn(model, lessons, schedule)
    return as_adapter(model, examined.adapter), evidence(given[-1], found, clip, original, reference, model)


def evidence(
    source: Source,
    found: Sequence[Trigger],
    clip: FrozenCLIP,
    original: PromptedCLIP,
    reference: PromptedCLIP,
    model: PromptedCLIP,
) -> dict[str, Any]:
    """Of the images held out, as a `Round` has it."""
    clean, labels = encode(clip, source.held), source.held_labels
    findings = [(encode(clip, source.held, t.change), t.c) for t in found if t.finding]
    then, other, now = (answer(m, clean).argmax(1) for m in (original, reference, model))

    def reached(m: PromptedCLIP) -> float:
        return max((moved(m, clean, x, c) for x, c in findings), default=0.0)

    said = {
        "held_out": len(clean),
        "agreement": share(then == now),
        "trigger_asr_before": reached(original),
        "trigger_asr_after": reached(model),
    }
    if labels is None:
        return said
    right_then, right_now = then == labels, now == labels
    return said | {
        "accuracy_before": share(right_then),
        "accuracy_after": share(right_now),
        "accuracy_clean": share(other == labels),
        "lost": int((right_then & ~right_now).sum()),
        "gained": int((right_now & ~right_then).sum()),
        "lost_to_clean": int(((other == labels) & ~right_now).sum()),
        "gained_on_clean": int((right_now & (other != labels)).sum()),
    }


def some_ways(clip: FrozenCLIP, images: Tensor, changes: Sequence[Probe], schedule: Schedule) -> Tensor:
    """Features (T, N, D) of each image under T of the changes, drawn for it: all of them would take most of a repair."""
    ways = min(schedule.ways, len(changes))
    generator = torch.Generator().manual_seed(schedule.seed + 2)
    drawn = torch.rand(len(images), len(changes), generator=generator).argsort(dim=1)[:, :ways].T  # (T, N)
    features = torch.empty(ways, len(images), clip.feature_dim, device=clip.device)
    for i, change in enumerate(changes):
        way, row = (drawn == i).nonzero(as_tuple=True)
        if len(row):
            features[way.to(clip.device), row.to(clip.device)] = encode(clip, images[row], change)
    return features


def moved(model: PromptedCLIP, clean: Tensor, triggered: Tensor, c: int) -> float:
    """Share of the images that are not answered with c until the trigger is there."""
    then, now = answer(model, clean).argmax(1), answer(model, triggered).argmax(1)
    return share((now == c) & (then != c))


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are tuned on, and rows held out."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = round(HELD_OUT * n)
    return order[held:], order[:held]


def as_adapter(model: PromptedCLIP, original: Adapter) -> Adapter:
    meta_net = {k: v.detach().cpu() for k, v in model.meta_net.state_dict().items()} if original.meta_net else {}
    return replace(original, context=model.prompt.ctx.detach().cpu(), meta_net=meta_net)


def adder(delta: Tensor) -> Probe:
    return lambda x: (x + delta.to(x.device)).clamp(0, 1)


def share(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)
