"""Run the inversions of all classes: over processes, resumable, and through an out-of-memory error.

Accelerate drives the processes: each has its share of the classes, results are gathered, and every process ends with
the same list. Class by class the result depends on the seed alone, so one process and many agree.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import socket
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_ci.errors import Inconclusive, UsageError
from hf_ci.files import write_whole
from hf_ci.inversion.invert import Inversion, Inverter

log = logging.getLogger(__name__)
Progress = Callable[[Inversion], None]


def invert_classes(
    model: nn.Module,
    images: Tensor,
    classes: Iterable[int],
    inverter: Inverter,
    cache: Path | None = None,
    progress: Progress = lambda inversion: None,
    tag: str = "",
) -> list[Inversion]:
    """Invert every class of `classes`, split over the processes that Accelerate finds; results in their order.

    With `cache`, each class is kept in a file of its own as soon as it is done, and read back instead of repeated.
    Raises Inconclusive when the processes were not given the same thing (`tag`), or memory is short for one image.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    classes, state = list(classes), PartialState(cpu=images.device.type == "cpu")
    micro_batch, mine = inverter.batch, []
    with state.split_between_processes(classes) as share:
        for c in share:
            inversion = read_cached(cache, c)
            while inversion is None:
                try:
                    inversion = inverter(model, images, c, micro_batch)
                    write_cached(cache, inversion)
                    continue
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                if micro_batch == 1:
                    raise Inconclusive(
                        "out of memory with one image at a time", "use --precision bf16 or another --device"
                    )
                micro_batch //= 2
                log.warning("out of memory: going on with %d images at a time", micro_batch)
                gc.collect()
                if images.device.type == "cuda":
                    torch.cuda.empty_cache()
            progress(inversion)
            mine.append(inversion)
    if state.num_processes > 1:
        shares = gather_object([(tag, mine)])
        if len({tag for tag, _ in shares}) > 1:
            raise Inconclusive("the processes did not read the same adapter, base model and pool", "name a commit")
        by_class = {inversion.c: inversion for _, share in shares for inversion in share}
        return [by_class[c] for c in classes]
    return mine


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text or "can't allocate" in text
    )


# ---------------------------------------------------------------- cache


def read_cached(cache: Path | None, c: int) -> Inversion | None:
    """None when there is nothing, or nothing readable: the class is then inverted anew."""
    arrays = read_arrays(cache, f"class-{c:05d}")
    try:
        values = {name: array.item() for name, array in arrays.items() if name != "delta"}
        return Inversion(delta=torch.from_numpy(arrays["delta"]), **values)
    except (ValueError, KeyError, TypeError):
        return None


def write_cached(cache: Path | None, inversion: Inversion) -> None:
    values = {name: value for name, value in vars(inversion).items() if value is not None and name != "others"}
    write_arrays(cache, f"class-{inversion.c:05d}", values | {"delta": inversion.delta.numpy()})


def read_arrays(cache: Path | None, name: str) -> dict[str, np.ndarray]:
    """Empty when there is nothing, or nothing readable."""
    if cache is None:
        return {}
    try:
        with (cache / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as z:
            return dict(z)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return {}


def write_arrays(cache: Path | None, name: str, arrays: dict[str, Any]) -> None:
    """Without room for it, it is computed again next time: no reason to lose the report."""
    if cache is None:
        return
    content = io.BytesIO()
    np.savez(content, **arrays)
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        write_whole(cache / f"{name}.npz", content.getvalue())


# ---------------------------------------------------------------- processes


def launch(
    function: Callable[..., None], args: tuple[object, ...], num_processes: int, cpu: bool, poll: Callable[[], object]
) -> None:
    """Run `function(*args)` in `num_processes` fresh processes that Accelerate sees as one group.

    `poll` is called about twice a second meanwhile. `function` must be importable. Processes are spawned, not forked:
    CUDA and thread pools do not survive a fork. On CPU the cores are shared out, unless OMP_NUM_THREADS says otherwise.
    They would look for modules in the working directory first, which may be a stranger's checkout: PYTHONSAFEPATH.
    Raises UsageError when there are fewer GPUs than processes, Inconclusive when a process fails.
    """
    from accelerate.utils import PrepareForLaunch, patch_environment
    from torch.multiprocessing.spawn import ProcessException, start_processes

    if not cpu and num_processes > torch.accelerator.device_count():
        raise UsageError(f"--num-processes {num_processes}: there are {torch.accelerator.device_count()} GPUs")
    with patch_environment(
        world_size=num_processes,
        local_world_size=num_processes,
        node_rank=0,
        master_addr="127.0.0.1",
        master_port=free_port(),
        omp_num_threads=threads_each(num_processes),
        accelerate_use_cpu=str(cpu).lower(),
        pythonsafepath="1",
    ):
        prepared = PrepareForLaunch(function, "MULTI_CPU" if cpu else "MULTI_GPU")
        group = start_processes(prepared, args=args, nprocs=num_processes, join=False, start_method="spawn")
        try:
            while not group.join(timeout=0.5):
                poll()
        except BaseException as error:
            for process in group.processes:
                process.terminate()
            for process in group.processes:
                process.join()
            if isinstance(error, ProcessException):
                last = str(error).strip().splitlines()[-1]
                raise Inconclusive(f"one of {num_processes} processes failed: {last}", "try fewer") from error
            raise
    poll()


def threads_each(num_processes: int) -> str:
    """The cores shared out, unless OMP_NUM_THREADS says otherwise."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // num_processes))


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])
