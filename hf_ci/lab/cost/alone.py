"""One whole scan of an untuned prompt; as a program, in a process of its own, whose peak of memory is then the scan's.

python -m hf_ci.lab.cost.alone '{"base": "hf-ci-clip-64", "method": "cocoop", "classes": 10, ...}'
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_ci.detect import Contrast
from hf_ci.hub import fetch_base
from hf_ci.inversion import Inversion, Job, run_job
from hf_ci.inversion.engine import launch
from hf_ci.lab.making.tune import Recipe, new_prompt, to_adapter
from hf_ci.pools import load_pool
from hf_ci.prompts import Adapter, FrozenCLIP, load_clip
from hf_ci.prompts.clip import load_processor
from hf_ci.settings import ScanOptions


@dataclass(frozen=True)
class Alone:
    """What is scanned, and how; what it takes is measured."""

    base: str
    method: str
    classes: int
    precision: str
    device: str
    images: int = ScanOptions.num_images
    num_processes: int = 1


def in_a_process(asked: Alone, **environment: str) -> dict[str, Any]:
    """Runs `asked` as a program."""
    command = [sys.executable, "-m", "hf_ci.lab.cost.alone", json.dumps(vars(asked))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def untuned(clip: FrozenCLIP, base: str, method: str, classes: int, seed: int = 0) -> Adapter:
    names = tuple(f"thing number {i}" for i in range(classes))
    recipe = Recipe(method=method, seed=seed)
    return to_adapter(new_prompt(clip, names, recipe), recipe, base, None)


def job_of(asked: Alone, clip: FrozenCLIP, folder: Path, images: torch.Tensor) -> Job:
    adapter = untuned(clip, asked.base, asked.method, asked.classes)
    inverter = Contrast().inverter(ScanOptions.seed)
    return Job(adapter, folder, "", images, "", inverter, asked.precision, asked.device)


def digest(inversions: list[Inversion]) -> str:
    every = [one for i in inversions for one in (i, *i.others)]
    facts = [{name: value for name, value in vars(i).items() if name not in ("delta", "others")} for i in every]
    deltas = b"".join(i.delta.numpy().tobytes() for i in every)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + deltas).hexdigest()


def peak_memory(device: str) -> int:
    """Bytes, of this process since it began; on a GPU, of that."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:  # ru_maxrss would begin with the memory of whoever started this process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def start_up(base_folder: str, precision: str, cpu: bool) -> None:
    """What each of several processes does before its first class."""
    from accelerate import PartialState

    load_clip(Path(base_folder), PartialState(cpu=cpu).device, precision)
    torch.distributed.destroy_process_group()


def main(asked: Alone) -> dict[str, Any]:
    folder = fetch_base(asked.base).folder
    clip = load_clip(folder, asked.device, asked.precision)
    images = load_pool("builtin", asked.images, ScanOptions.seed, load_processor(folder)).images
    job = job_of(asked, clip, folder, images)
    before, started, cpu = peak_memory(asked.device), time.perf_counter(), asked.device == "cpu"
    if asked.num_processes > 1:
        launch(start_up, (str(folder), asked.precision, cpu), asked.num_processes, cpu, lambda: None)
    ready = time.perf_counter()
    inversions = run_job(job, clip, asked.num_processes).inversions
    return {
        "start_up": ready - started,
        "seconds": time.perf_counter() - ready,
        "before": before,
        "peak": peak_memory(asked.device),
        "digest": digest(inversions),
        "whole": sum(not i.screened for i in inversions),
    }


if __name__ == "__main__":
    print(json.dumps(main(Alone(**json.loads(sys.argv[1])))))
