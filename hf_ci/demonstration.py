"""What a finding looks like: the trigger of each flagged class on images of the pool, and what is answered there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import AdapterError
from hf_ci.inversion import Inversion
from hf_ci.inversion.probes import probes
from hf_ci.inversion.trigger import ADDITIVE, MASKS
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP
from hf_ci.prompts.prompted import NEAREST_BATCH, reference_adapter
from hf_ci.report import Answers, ClassScore, Example, FoundTrigger, NamedClass, Trigger
from hf_ci.reports.trigger import save_trigger

SHOWN = 3  # images a class: the first of the pool that its trigger moves there
SEARCHED = 64  # of the pool; where it moves fewer of these, others are shown
MOST = 10  # classes: each is some pictures in the HTML page


def demonstrated(
    adapter: Adapter,
    clip: FrozenCLIP,
    pool: Tensor,
    inversions: Sequence[Inversion],
    classes: Sequence[ClassScore],
    target: int,
    name: str,
    folder: Path | None,
) -> dict[str, Any]:
    """Two fields of a result: `triggers`, of the flagged classes, that of class `target` first; and `trigger`, this one
    again where it was reconstructed and kept.

    pool: (N, 3, H, W) uint8. folder: where triggers are kept, called after `name` and their class; None: nowhere.
    """
    flagged = sorted((c for c in classes if c.flagged), key=lambda c: (c.index != target, -c.score))[:MOST]
    triggers, trigger = [], None
    with asking(adapter, clip) as ask:
        untouched = Untouched(pool[:SEARCHED], ask)
        for c in flagged:
            found = reconstructed(inversions[c.index], c)
            apply = change(found, c, pool.shape[-1])
            examples: tuple[Example, ...] = ()
            arrays: dict[str, Any] = {"delta": found and found.delta.numpy()}
            if apply:
                examples, images, changed = moved(c, apply, untouched)
                on_grey = apply(torch.full_like(pool[:1], 0.5, dtype=torch.float32))[0]
                arrays |= {"images": images.numpy(), "changed": changed.numpy(), "on_grey": on_grey.numpy()}
            path: Path | str = ""
            linf = float(found.delta.abs().max()) if found else None
            if folder:
                facts = {"loss": found.loss, "asr": found.asr} if found else {"asr": c.probe_asr}
                path = save_trigger(folder, f"{name}-{c.index}-{c.name}", **arrays, class_index=c.index, **facts)
                if found and c.index == target:
                    trigger = Trigger(path=str(path.with_suffix(".png")), linf=linf)
            triggers.append(
                FoundTrigger(
                    target=NamedClass(index=c.index, name=c.name),
                    kind=found.family if found else c.probe,
                    reconstructed=found is not None,
                    linf=linf if found and found.family in ADDITIVE else None,
                    examples=examples,
                    path=str(path),
                )
            )
    return {"triggers": tuple(triggers), "trigger": trigger}


def reconstructed(i: Inversion, c: ClassScore) -> Inversion | None:
    """What gave the class its score; None for a probe."""
    if c.by_probe:
        return None
    return next((o for o in i.others if o.family == c.family), i)


def change(found: Inversion | None, c: ClassScore, size: int) -> Callable[[Tensor], Tensor] | None:
    """Pixels (B, 3, H, W) in [0, 1] -> the same with the trigger; None where the method's is nothing that is put on an
    image."""
    if found is None:
        return probes(size)[certain(c.probe)]
    return found.trigger() if found.family in (*ADDITIVE, *MASKS) else None


class Untouched:
    """Images (N, 3, H, W) uint8 and what is answered on them: a few at a time, and only once asked for."""

    def __init__(self, images: Tensor, ask: Callable[[Tensor], list[Answers]]):
        self.parts, self.ask = images.split(NEAREST_BATCH), ask
        self.answers = cache(lambda i: ask(self.parts[i]))


def moved(
    c: ClassScore, apply: Callable[[Tensor], Tensor], untouched: Untouched
) -> tuple[tuple[Example, ...], Tensor, Tensor]:
    """SHOWN examples, and their images without and with the trigger, uint8: the first that it moves into the class through
    the adapter and not through the hand-written prompt; where there are fewer, the first of the others follow."""
    rows: list[tuple[Example, Tensor, Tensor]] = []
    for i, part in enumerate(untouched.parts):
        those = (apply(part.float() / 255) * 255).round().byte()
        pairs = zip(untouched.answers(i), untouched.ask(those), strict=True)
        rows += zip((Example(before=b, after=a) for b, a in pairs), part, those, strict=True)
        rows.sort(key=lambda row: not moves(row[0], c.index))  # stable: in the pool's order otherwise
        if len(rows) >= SHOWN and moves(rows[SHOWN - 1][0], c.index):
            break
    examples, images, changed = zip(*rows[:SHOWN])
    return examples, torch.stack(images), torch.stack(changed)


def moves(example: Example, c: int) -> bool:
    before, after = example.before, example.after
    by_hand = after.hand_written is not None and after.hand_written.index == c
    return after.adapter.index == c != before.adapter.index and not by_hand


@contextmanager
def asking(adapter: Adapter, clip: FrozenCLIP) -> Iterator[Callable[[Tensor], list[Answers]]]:
    """Within this block: images (N, 3, H, W) uint8 -> what the adapter and a hand-written prompt answer on each."""
    names = adapter.class_names
    with ExitStack() as stack:
        adapted, by_hand = stack.enter_context(PromptedCLIP.from_adapter(adapter, clip).frozen_prompt()), None
        try:
            plain = PromptedCLIP.from_adapter(reference_adapter(clip, names), clip)
            by_hand = stack.enter_context(plain.frozen_prompt())
        except AdapterError:  # its words take more tokens than the adapter's context, and the names leave it fewer
            pass

        @torch.no_grad()
        def ask(images: Tensor) -> list[Answers]:
            features = clip.image_features(images.to(clip.device).float() / 255)
            said = [
                [NamedClass(index=c, name=names[c]) for c in model.logits_from_features(features).argmax(-1).tolist()]
                if model
                else [None] * len(images)
                for model in (adapted, by_hand)
            ]
            return [Answers(adapter=a, hand_written=b) for a, b in zip(*said, strict=True)]

        yield ask
