"""All classes of one adapter: from the cache, in this process, or shared out over several."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hf_ci.errors import Inconclusive
from hf_ci.inversion.engine import Progress, invert_classes, launch, read_arrays, read_cached, write_arrays
from hf_ci.inversion.invert import Inversion, Inverter
from hf_ci.inversion.probes import probe
from hf_ci.prompts import Adapter, BesideReferences, FrozenCLIP, PromptedCLIP, load_clip

PROBES = "probes-2"  # name of their file in the cache: change it whenever the probes do
VERSION = 5  # part of the cache key: raise it whenever the same settings give other numbers


@dataclass(frozen=True)
class Job:
    """Everything that an adapter's inversions depend on, and nothing else: a verdict's thresholds are not in it.

    images: the pool (N, 3, H, W) uint8 on the CPU; base_digest and fingerprint stand for the base model's and the
    pool's content. Adapters with the same content share their inversions, wherever they came from.
    """

    adapter: Adapter
    base_folder: Path
    base_digest: str
    images: Tensor
    fingerprint: str
    inverter: Inverter
    precision: str = "fp32"
    device: str = "cpu"

    @cached_property
    def key(self) -> str:
        parts = dict(
            version=VERSION,
            adapter=self.adapter.digest,
            base=self.base_digest,
            pool=self.fingerprint,
            inverter=[type(self.inverter).__name__, asdict(self.inverter)],
            precision=self.precision,
            device=self.device,
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def run_job(
    job: Job,
    clip: FrozenCLIP,
    num_processes: int = 1,
    cache: Path | None = None,
    progress: Progress = lambda inversion: None,
) -> tuple[list[Inversion], int]:
    """All classes' inversions in order, and how many of them were in `cache` (a folder for all jobs) before.

    `clip` is the model in `job.base_folder`; other processes load it anew. Raises Inconclusive where several cannot hand
    over what they found.
    """
    classes, shown = range(len(job.adapter.class_names)), set()

    def show(inversion: Inversion) -> None:
        if inversion.c not in shown:
            shown.add(inversion.c)
            progress(inversion)

    with ExitStack() as stack:
        if cache is None and num_processes > 1:  # the processes hand their classes over through files
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-ci-")))
        folder = cache and cache / job.key

        def show_cached() -> None:
            for c in classes:
                if c not in shown and (inversion := read_cached(folder, c)):
                    show(inversion)

        show_cached()
        cached = len(shown)
        if num_processes > 1 and cached < len(classes):
            # numpy, because tensors travel to a new process through shared memory, which containers keep small
            args = (job.adapter, str(job.base_folder), job.images.numpy(), job.inverter, job.precision, str(folder))
            cpu = torch.device(job.device).type == "cpu"
            launch(_worker, (*args, cpu), min(num_processes, len(classes)), cpu, show_cached)
            if lost := len(classes) - len(shown):
                raise Inconclusive(
                    f"{lost} of {len(classes)} classes could not be handed over through files in {folder}",
                    "make room there, name another place with --cache, or use --num-processes 1",
                )
        with prepared(job.adapter, clip, job.inverter.uses_reference) as model:
            images = job.images.to(clip.device)
            inversions = invert_classes(model, images, classes, job.inverter, folder, show, job.key)
            if job.inverter.uses_reference:
                inversions = beside_probes(inversions, model, images, folder)
            return inversions, cached


def beside_probes(
    inversions: Sequence[Inversion], model: nn.Module, images: Tensor, folder: Path | None
) -> list[Inversion]:
    """Each class's inversion with the probe that serves it best."""
    shares = read_arrays(folder, PROBES)
    if not shares:
        shares = {name: share.numpy() for name, share in probe(model, images).items()}
        write_arrays(folder, PROBES, shares)
    names, table = list(shares), np.stack(list(shares.values()))  # (P, C)
    return [
        replace(i, probe=names[best], probe_asr=float(table[best, i.c]))
        for i, best in zip(inversions, table.argmax(axis=0))
    ]


@contextmanager
def prepared(adapter: Adapter, clip: FrozenCLIP, uses_reference: bool) -> Iterator[nn.Module]:
    """The model that an inverter is given: the prompted CLIP, or that beside clean reference prompts."""
    adapted = PromptedCLIP.from_adapter(adapter, clip)
    with adapted.frozen_prompt():
        yield BesideReferences(adapted) if uses_reference else adapted


def _worker(
    adapter: Adapter, base_folder: str, images: np.ndarray, inverter: Inverter, precision: str, folder: str, cpu: bool
) -> None:
    """One of several processes: inverts its share of the classes and leaves them in `folder`."""
    from accelerate import PartialState

    state = PartialState(cpu=cpu)
    clip = load_clip(Path(base_folder), state.device, precision)
    with prepared(adapter, clip, inverter.uses_reference) as model:
        pool = torch.from_numpy(images).to(state.device)
        invert_classes(model, pool, range(len(adapter.class_names)), inverter, Path(folder))
    torch.distributed.destroy_process_group()
