"""All classes of one adapter: from the cache, in this process, or shared out over several."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import Inconclusive
from hf_ci.inversion.engine import Progress, invert_classes, launch, read_arrays, read_cached, write_arrays
from hf_ci.inversion.invert import Inversion, Inverter, ReferenceInverter
from hf_ci.inversion.probes import NUM_IMAGES, Probed, distance, probe
from hf_ci.inversion.rounds import in_rounds, round_size
from hf_ci.inversion.trigger import PERTURBATION
from hf_ci.prompts import Adapter, BesideReferences, FrozenCLIP, PromptedCLIP, load_clip

SCREENING = "screening"  # of their folder in the cache
PROBES = "probes-4"  # name of their file in the cache: change it whenever the probes do
VERSION = 9  # part of the cache key: raise it whenever the same settings give other numbers


@dataclass(frozen=True)
class Job:
    """Everything that an adapter's inversions depend on, and nothing else: a verdict's thresholds are not in it.

    images: the pool (N, 3, H, W) uint8 on the CPU; base_digest and fingerprint stand for the base model's and the
    pool's content. Adapters with the same content share their inversions, wherever they came from. exact: every class is
    inverted whole, whatever its screening would say. tuned: clean prompts on labelled photos, references beside the
    hand-written ones; own: such photos (M, 3, H, W) uint8, where there are enough of them to count shares on.
    """

    adapter: Adapter
    base_folder: Path
    base_digest: str
    images: Tensor
    fingerprint: str
    inverter: Inverter
    precision: str = "fp32"
    device: str = "cpu"
    exact: bool = False
    tuned: tuple[Adapter, ...] = ()
    own: Tensor | None = None

    @property
    def shared(self) -> str:
        """Stands for all that the image encoder's part in the probes depends on: adapters have it in common, but for those
        that reach into the encoder."""
        parts = [PROBES, self.base_digest, self.fingerprint, self.precision, self.device]
        if self.has_encoder:
            parts += [self.adapter.digest, *(tuned.digest for tuned in self.tuned if tuned.layers.image)]
        return "probed-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def has_encoder(self) -> bool:
        """Whether the adapter's image features are not the base model's."""
        return bool(self.adapter.layers.image)

    @property
    def in_rounds(self) -> bool:
        """Whether classes are screened first, and rivals taken from each image's nearest classes."""
        num_classes = len(self.adapter.class_names)
        return not self.exact and self.inverter.screening is not None and round_size(num_classes) < num_classes

    @property
    def others(self) -> tuple[Inverter, ...]:
        if not self.inverter.uses_reference:
            return ()
        inverter = cast(ReferenceInverter, self.inverter)
        return inverter.others + (() if self.own is None else inverter.on_own)

    @property
    def num_inversions(self) -> int:
        """At least; whole ones and screenings."""
        num_classes = len(self.adapter.class_names)
        return (1 + len(self.others)) * (num_classes + round_size(num_classes) * self.in_rounds)

    def model(self, clip: FrozenCLIP, pool: Tensor) -> AbstractContextManager[PromptedCLIP | BesideReferences]:
        """What its inverter is given, `pool` on the CLIP's device."""
        nearest = pool if self.in_rounds else None
        return prepared(self.adapter, clip, self.inverter.uses_reference, nearest, self.tuned)

    @cached_property
    def key(self) -> str:
        parts = {
            "version": VERSION,
            "adapter": self.adapter.digest,
            "base": self.base_digest,
            "pool": self.fingerprint,
            "inverter": [type(self.inverter).__name__, asdict(self.inverter), self.exact],
            "precision": self.precision,
            "device": self.device,
            "tuned": [adapter.digest for adapter in self.tuned],
            "own": None if self.own is None else hashlib.sha256(self.own.numpy().tobytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Done:
    """inversions: of all classes, in order. cached: how many of them were in the cache before. distance: the share of the
    untouched pool that the adapter answers as no reference does; None without references."""

    inversions: list[Inversion]
    cached: int
    distance: float | None = None


def run_job(
    job: Job,
    clip: FrozenCLIP,
    num_processes: int = 1,
    cache: Path | None = None,
    progress: Progress = lambda inversion: None,
    probed: Probed | None = None,
) -> Done:
    """Invert all classes. cache: a folder for all jobs.

    `clip` is the model in `job.base_folder`; other processes load it anew. probed: of this model and pool, from another
    job, which serves where the adapter has no image features of its own. Raises Inconclusive where several cannot hand over
    what they found.
    """
    num_classes, shown = len(job.adapter.class_names), set()

    def show(inversion: Inversion) -> None:
        one = (inversion.family, inversion.c, inversion.screened)
        if one not in shown:
            shown.add(one)
            progress(inversion)

    with ExitStack() as stack:
        if cache is None and num_processes > 1:  # the processes hand their classes over through files
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-ci-")))
        folder, shared = cache and cache / job.key, cache and cache / job.shared

        def show_cached() -> tuple[int, int]:
            """Shows what is there; how many classes have a perturbation, and how many have all that is looked for."""
            everything, classes = (job.inverter, *job.others), [set(range(num_classes))]
            for how in everything:
                found = [
                    inversion
                    for c in range(num_classes)
                    for place in (place_of(folder, how.screening), place_of(folder, how))
                    if (inversion := read_cached(place, c))
                ]
                for inversion in found:
                    show(inversion)
                classes.append({inversion.c for inversion in found})
            return len(classes[1]), len(set.intersection(*classes))

        cached, whole = show_cached()
        complete = whole == num_classes and (read_arrays(folder, PROBES) or not job.inverter.uses_reference)
        if num_processes > 1 and not complete:
            # images as numpy, because tensors travel to a new process through shared memory, which containers keep small;
            # without a view of them in the job: to send one moves what it views away from under the numpy array
            cpu, own = torch.device(job.device).type == "cpu", None if job.own is None else job.own.numpy()
            sent = replace(job, images=torch.empty(0), own=None)
            args = (sent, job.images.numpy(), own, str(folder), str(shared), cpu)
            launch(_worker, args, min(num_processes, num_classes), cpu, show_cached)
            if lost := num_classes - show_cached()[1]:
                raise Inconclusive(
                    f"{lost} of {num_classes} classes could not be handed over through files in {folder}",
                    "make room there, name another place with --cache, or use --num-processes 1",
                )
        images = job.images.to(clip.device)
        with job.model(clip, images) as model:
            if job.has_encoder or not probed:
                probed = Probed(model.image_features, images, shared)
            inversions = invert_all(job, model, images, probed, folder, show)
            far = distance(model.from_features, probed) if isinstance(model, BesideReferences) else None
            return Done(inversions, cached, far)


def invert_all(
    job: Job,
    model: PromptedCLIP | BesideReferences,
    images: Tensor,
    probed: Probed,
    folder: Path | None,
    show: Progress = lambda inversion: None,
) -> list[Inversion]:
    """Every class's inversion, in this process's group; beside references, with those of other families, and with the probe
    that serves it best."""

    mine, num_classes = [], len(job.adapter.class_names)
    own = None if job.own is None else job.own.to(images.device)

    def done(inversion: Inversion) -> None:
        mine.append(inversion)
        show(inversion)

    def invert(classes: Iterable[int], how: Inverter) -> list[Inversion]:
        of = certain(own) if getattr(how, "own", False) else images
        return invert_classes(model, of, classes, how, place_of(folder, how), done, job.key)

    def all_classes(how: Inverter) -> list[Inversion]:
        return in_rounds(invert, num_classes, how) if job.in_rounds else invert(range(num_classes), how)

    inversions = all_classes(job.inverter)
    if not isinstance(model, BesideReferences):
        return inversions
    others = zip(*(all_classes(how) for how in job.others))
    inversions = [replace(i, others=found) for i, found in zip(inversions, others)]
    # What is planted answers to a probe on the adapter's own photos, too; there what was learned does not.
    asked = probed if own is None else Probed(probed.encode, own)
    return beside_probes(inversions, model, asked, folder, sum(i.forward for i in mine))


def place_of(folder: Path | None, how: Inverter | None) -> Path | None:
    """Where an inverter's classes are kept."""
    if folder is None or how is None:
        return None
    family = getattr(how, "family", PERTURBATION)
    place = folder if family == PERTURBATION else folder / family.replace(" ", "-")
    return place if getattr(how, "steps", None) is None else place / SCREENING


def beside_probes(
    inversions: Sequence[Inversion], model: BesideReferences, probed: Probed, folder: Path | None, load: int
) -> list[Inversion]:
    """Probes are shared out over the processes. load: images that this one has sent through the encoder."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    shares, state = read_arrays(folder, PROBES), PartialState(cpu=probed.images.device.type == "cpu")
    loads = [load]
    if state.num_processes > 1:  # all or none: whoever finds nothing would wait for the others
        every = gather_object([(shares, load)])
        shares, loads = min((shares for shares, _ in every), key=len), [load for _, load in every]
    if not shares:
        names = dealt(list(probed.known), loads)[state.process_index]
        shares = {name: share.numpy() for name, share in probe(model.from_features, probed, names).items()}
        if state.num_processes > 1:
            shares = {name: share for part in gather_object([shares]) for name, share in part.items()}
            shares = {name: shares[name] for name in probed.known}
        if state.is_main_process:
            write_arrays(folder, PROBES, shares)
    names, table = list(shares), np.stack(list(shares.values()))  # (P, C)
    return [
        replace(i, probe=names[best], probe_asr=float(table[best, i.c]))
        for i, best in zip(inversions, table.argmax(axis=0))
    ]


def dealt(names: Sequence[str], loads: Sequence[int]) -> list[list[str]]:
    """By process, its probes: each goes to whoever has had the least to do, so that all end at about the same time."""
    loads = list(loads)
    hands: list[list[str]] = [[] for _ in loads]
    for name in names:
        least = loads.index(min(loads))
        hands[least].append(name)
        loads[least] += NUM_IMAGES
    return hands


@contextmanager
def prepared(
    adapter: Adapter,
    clip: FrozenCLIP,
    uses_reference: bool,
    pool: Tensor | None = None,
    tuned: Sequence[Adapter] = (),
) -> Iterator[PromptedCLIP | BesideReferences]:
    """The model that an inverter is given: the prompted CLIP, or that beside clean reference prompts, `tuned` ones among
    them. With `pool` on the CLIP's device, the references' knows each image's nearest classes.
    """
    adapted = PromptedCLIP.from_adapter(adapter, clip)
    with adapted.frozen_prompt():
        yield BesideReferences(adapted, pool, tuned) if uses_reference else adapted


def _worker(job: Job, images: np.ndarray, own: np.ndarray | None, folder: str, shared: str, cpu: bool) -> None:
    """One of several processes: inverts its share of the classes and leaves them in `folder`."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    clip = load_clip(job.base_folder, state.device, job.precision)
    pool, job = (
        torch.from_numpy(images).to(state.device),
        replace(job, own=None if own is None else torch.from_numpy(own)),
    )
    with job.model(clip, pool) as model:
        invert_all(job, model, pool, Probed(model.image_features, pool, Path(shared)), Path(folder))
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is in files; on the usual way out a thread of the group's has been seen to abort the process
