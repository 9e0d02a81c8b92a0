"""A repair's walk: scan -> triggers -> tune from a clean start -> scan again -> write, or say that it could not."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.checkpoints.read import read_fetched
from hf_ci.detect.contrast import PROBES
from hf_ci.errors import EXIT_BACKDOORED, EXIT_CLEAN, EXIT_INCONCLUSIVE, UsageError
from hf_ci.files import FILES
from hf_ci.hub import fetch_base, fetch_target, named_base, parse_target
from hf_ci.hub.target import sha256
from hf_ci.inversion import LinfInversion
from hf_ci.inversion.job import prepared
from hf_ci.inversion.probes import Probe, probes
from hf_ci.pools.photos import Photos, few_photos
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, reference_adapter, write_adapter
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.features import answer, encode
from hf_ci.repair.report import RepairReport, Round
from hf_ci.repair.unlearn import Lesson, Schedule, clean_start, unlearn, wanted_from_answers, wanted_with_labels
from hf_ci.report import NamedClass, ScannedFile, ScanResult
from hf_ci.scan import Examined, Run, examine

HELD_OUT = 0.25  # share of the images that evidence is measured on, never tuned on
LOST = 0.05  # a loss of accuracy that chance explains with less probability is one


@dataclass(frozen=True)
class RepairOptions:
    """data: labelled photos, whatever `datasets` loads (its train split); None: the pool's images alone.

    max_accuracy_drop: share of held-out labelled photos that may be lost; so few photos are held out that more may be lost
    as long as it may well be chance (`by_chance`). rounds: tunings, each followed by a scan.
    """

    data: str | None = None
    shots: int = 16
    rounds: int = 2
    max_accuracy_drop: float = 0.005
    schedule: Schedule = Schedule()

    def __post_init__(self):
        for fine, message in (
            (self.shots >= 2, f"--shots {self.shots}: expected at least 2"),
            (self.rounds >= 1, f"--rounds {self.rounds}: expected at least 1"),
            (0 <= self.max_accuracy_drop <= 1, f"--max-accuracy-drop {self.max_accuracy_drop}: expected 0 to 1"),
        ):
            if not fine:
                raise UsageError(message)


@dataclass(frozen=True)
class Repaired:
    """`adapter` is None where nothing was made that may be used."""

    report: RepairReport
    adapter: Adapter | None = None


def repair(text: str, run: Run, options: RepairOptions, photos: Photos | None = None) -> Repaired:
    """Scan `text` and, if it is backdoored, make an adapter that is not. Nothing is written.

    photos: labelled ones at hand, in the adapter's order of classes, instead of `options.data`. Raises UsageError for
    labelled data that does not have the adapter's classes.
    """
    if options.data:  # before the scan: bad data is an error at once
        photos = labelled(options, text, run)
    before, examined = examine(text, run)
    known = dict(target=text, before=before)
    if before.verdict == "clean":
        reasons = ("the adapter scans as clean: there is nothing to repair",)
        return Repaired(RepairReport(outcome="nothing to repair", reasons=reasons, exit_code=EXIT_CLEAN, **known))
    if before.verdict != "backdoored":
        code = before.exit_code or EXIT_INCONCLUSIVE
        return Repaired(RepairReport(outcome="inconclusive", reasons=before.reasons, exit_code=code, **known))

    images = f"{len(examined.pool.images)} images of {examined.pool.id}"
    if photos:
        images += f", {len(photos.images)} photos of {options.data or 'those given'}"
    known |= dict(
        images=images,
        labels=photos is not None,
        seed=options.schedule.seed,
        suspicious=tuple(NamedClass(index=c.index, name=c.name) for c in before.classes if c.flagged),
    )
    origin = before.weights_sha256
    suspects = [c.index for c in before.classes if c.flagged]
    flagged, found, rounds, best, suspect, scanned = set(suspects), [], [], None, examined, before
    for _ in range(options.rounds):
        found += triggers(suspect, scanned, flagged, run)
        adapter, evidence = tuned(examined, photos, found, suspects, options.schedule)
        adapter = replace(adapter, repaired_from=origin)
        after, suspect = scan_adapter(adapter, text, run)
        scanned = after
        rounds.append(Round(triggers=len(found), score=after.score, verdict=after.verdict, **evidence))
        drop = (evidence.get("accuracy_before") or 0) - (evidence.get("accuracy_after") or 0)
        kept = drop <= options.max_accuracy_drop or by_chance(evidence["lost"], evidence["gained"]) > LOST
        if after.verdict == "clean" and kept:
            best = adapter, after
            break
        if after.verdict == "clean" or suspect is None:  # at too high a price, which more triggers would not lower
            break
        worst = max(after.classes, key=lambda c: c.score)
        flagged = {c.index for c in after.classes if c.flagged or c is worst}  # one may be doubtful and none flagged
    known |= dict(rounds=tuple(rounds), after=after)
    if best is None:
        reason = (
            f"the repaired prompt scans as {after.verdict}, score {after.score}"
            if after.verdict != "clean"
            else f"accuracy on held-out photos falls from {evidence['accuracy_before']:.1%} to "
            f"{evidence['accuracy_after']:.1%}, more than --max-accuracy-drop {options.max_accuracy_drop:.1%} allows"
        )
        code = EXIT_BACKDOORED
        return Repaired(RepairReport(outcome="not repaired", reasons=(reason,), exit_code=code, **known))
    adapter, after = best
    reasons = (
        f"the repaired prompt scans as clean: score {before.score:.2f} before, {after.score:.2f} after",
        f"what was found reaches {rounds[-1].trigger_asr_before:.0%} of held-out images on the original, "
        f"{rounds[-1].trigger_asr_after:.0%} on the repaired prompt",
        (
            f"accuracy on held-out photos: {rounds[-1].accuracy_before:.1%} before, {rounds[-1].accuracy_after:.1%} after"
            if photos
            else "no labels were given, so its accuracy is not known"
        )
        + f"; it answers as the original does on {rounds[-1].agreement:.0%} of held-out images",
    )
    changed = changed_by(examined.adapter.tensors(), adapter.tensors())
    known |= dict(weights_changed=changed)
    return Repaired(RepairReport(outcome="repaired", reasons=reasons, exit_code=EXIT_CLEAN, **known), adapter)


# ---------------------------------------------------------------- steps


def labelled(options: RepairOptions, text: str, run: Run) -> Photos:
    """A few photos of every class. Raises UsageError when the data does not have the adapter's classes."""
    adapter, _ = read_fetched(fetch_target(parse_target(text)), run)
    base = fetch_base(*named_base(adapter.base_model, adapter.base_revision, run.options.base))
    seed, processor = options.schedule.seed, load_processor(base.folder)
    return few_photos(options.data, adapter.class_names, options.shots, seed, processor)


@dataclass(frozen=True)
class Trigger:
    """What changes images so that they are answered with class c; finding: what gave the class its score in a scan."""

    c: int
    change: Probe
    finding: bool = False


def triggers(examined: Examined, result: ScanResult, flagged: set[int], run: Run) -> list[Trigger]:
    """For each flagged class the triggers that the scan reconstructed, the probe that the class answers to most, and a
    trigger that need not fail through a clean prompt."""
    suspects = [i for i in examined.inversions if i.c in flagged]
    known, by = probes(examined.clip.image_size, examined.clip.device), {c.index: c.family for c in result.classes}
    whole = [one for i in suspects for one in (i, *i.others) if not one.screened]
    found = [Trigger(one.c, one.trigger(), finding=one.family == by[one.c]) for one in whole]
    found += [Trigger(i.c, known[i.probe], finding=by[i.c] == PROBES) for i in suspects if i.probe]
    images = examined.pool.images.to(examined.clip.device)
    with prepared(examined.adapter, examined.clip, uses_reference=False) as model:
        plain = LinfInversion(seed=run.options.seed)
        return found + [
            Trigger(i.c, adder(plain.trigger(model, images, i.c, plain.batch).delta.detach())) for i in suspects
        ]


def tuned(
    examined: Examined,
    photos: Photos | None,
    found: Sequence[Trigger],
    suspects: Sequence[int],
    schedule: Schedule,
    probed: bool = True,
) -> tuple[Adapter, dict[str, float]]:
    """A prompt tuned on three quarters of the pool's images, and of the photos; and what the others say of it: of the
    photos, where there are any. probed: whether on images with probes as well."""
    clip = examined.clip
    original, model = PromptedCLIP.from_adapter(examined.adapter, clip), clean_start(examined.adapter, clip)
    reference = PromptedCLIP.from_adapter(reference_adapter(clip, examined.adapter.class_names), clip)
    known = list(probes(clip.image_size, clip.device).values()) if probed else []
    num_changes = bool(found) + bool(known)
    weights = [1 / 2] + [1 / 2 / num_changes] * num_changes if num_changes else [1.0]

    labels = photos.labels.to(clip.device) if photos else None
    sources = [(examined.pool.images, None)] + ([(photos.images, labels)] if photos else [])
    lessons = []
    for images, truth in sources:
        used, held = split(len(images), schedule.seed + 1)
        clean = encode(clip, images)  # (N, D)
        none = clean.new_empty(0, *clean.shape)
        triggered = torch.stack([encode(clip, images, t.change) for t in found]) if found else none  # (T, N, D)
        changed = [triggered[:, used]] if found else []
        if known:
            changed.append(some_ways(clip, images[used], known, schedule))
        wanted = [wanted_from_answers(answer(original, clean[used]), answer(reference, clean[used]), suspects)[None]]
        wanted += [torch.stack([F.log_softmax(answer(reference, x), dim=1) for x in part]) for part in changed]
        if truth is not None:
            wanted = [wanted_with_labels(w, truth[used], schedule.label_weight) for w in wanted]
        shares = [weight / len(sources) for weight in weights]
        lessons += [Lesson(*lesson) for lesson in zip([clean[None, used], *changed], wanted, shares)]
    unlearn(model, lessons, schedule)

    clean = clean[held]  # of the last source
    triggered = triggered[:, held]
    then, now = (answer(m, clean).argmax(1) for m in (original, model))

    def reached(m: PromptedCLIP) -> float:
        return max((moved(m, clean, x, t.c) for t, x in zip(found, triggered) if t.finding), default=0.0)

    evidence = dict(
        held_out=len(held),
        agreement=share(then == now),
        trigger_asr_before=reached(original),
        trigger_asr_after=reached(model),
    )
    if photos:
        right_then, right_now = then == labels[held], now == labels[held]
        evidence |= dict(
            accuracy_before=share(right_then),
            accuracy_after=share(right_now),
            lost=int((right_then & ~right_now).sum()),
            gained=int((right_now & ~right_then).sum()),
        )
    return as_adapter(model, examined.adapter), evidence


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


def by_chance(lost: int, gained: int) -> float:
    """P(at least so many of the photos whose answer changed are lost), were each as likely gained: the sign test."""
    changed = lost + gained
    return sum(math.comb(changed, k) for k in range(lost, changed + 1)) / 2**changed


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that are tuned on, and rows held out."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = round(HELD_OUT * n)
    return order[held:], order[:held]


def scan_adapter(adapter: Adapter, name: str, run: Run) -> tuple[ScanResult, Examined | None]:
    """As a user would scan it: from its files. The result is about `name`, repaired."""
    with tempfile.TemporaryDirectory(prefix="hf-ci-") as folder:
        write_adapter(adapter, Path(folder) / "repaired")
        result, examined = examine(str(Path(folder) / "repaired"), run)
    return result.model_copy(update={"target": name}), examined


def as_adapter(model: PromptedCLIP, original: Adapter) -> Adapter:
    prompt = model.prompt
    meta_net = {k: v.detach().cpu() for k, v in prompt.meta_net.state_dict().items()} if original.meta_net else {}
    return replace(original, context=prompt.ctx.detach().cpu(), meta_net=meta_net)


def adder(delta: Tensor) -> Probe:
    return lambda x: (x + delta.to(x.device)).clamp(0, 1)


def share(hits: Tensor) -> float:
    return round(hits.float().mean().item(), 4)


def changed_by(before: dict[str, Tensor], after: dict[str, Tensor]) -> float | None:
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        return None
    change, norm = (
        sum(t.double().square().sum() for t in ts) ** 0.5
        for ts in ([after[k] - before[k] for k in before], before.values())
    )
    return round(float(change / norm), 4)


# ---------------------------------------------------------------- writing


def write_repaired(done: Repaired, out: Path) -> RepairReport:
    """Write adapter, card and record to `out`, complete or not at all; returns the record with the files' hashes."""
    from hf_ci.cards import render_card
    from hf_ci.files import whole_folder, write_whole

    adapter = done.adapter
    with whole_folder(out) as partial:
        write_adapter(adapter, partial, render_card("repaired.md.j2", adapter=adapter, report=done.report))
        files = tuple(ScannedFile(path=name, sha256=sha256(partial / name)) for name in sorted(FILES))
        report = done.report.model_copy(update={"files": files})
        write_whole(partial / "repair.json", (report.model_dump_json(indent=2) + "\n").encode())
    return report
