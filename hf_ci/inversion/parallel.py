"""All classes of one adapter: from the cache, in this process, or shared out over several."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_ci.inversion.engine import Progress, invert_classes, launch, read_cached
from hf_ci.inversion.invert import Inversion, InversionSettings
from hf_ci.prompts import Adapter, PromptedCLIP, load_clip


def invert_adapter(
    model: PromptedCLIP,
    adapter: Adapter,
    base_folder: Path,
    images: Tensor,
    settings: InversionSettings,
    precision: str = "fp32",
    num_processes: int = 1,
    cache: Path | None = None,
    progress: Progress = lambda inversion: None,
    tag: str = "",
) -> tuple[list[Inversion], int]:
    """All classes' inversions, and how many of them were in `cache` before.

    `model` is `adapter` on the CLIP in `base_folder`; other processes build it anew from these two.
    """
    classes, device = range(len(adapter.class_names)), model.clip.device
    shown: set[int] = set()

    def show(inversion: Inversion) -> None:
        if inversion.c not in shown:
            shown.add(inversion.c)
            progress(inversion)

    with ExitStack() as stack:
        if cache is None and num_processes > 1:  # the processes hand their classes over through files
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-ci-")))

        def show_cached() -> None:
            for c in classes:
                if c not in shown and (inversion := read_cached(cache, c)):
                    show(inversion)

        show_cached()
        cached = len(shown)
        if num_processes > 1 and cached < len(classes):
            args = (adapter, str(base_folder), images.numpy(), settings, device.type, precision, str(cache))
            launch(_worker, args, min(num_processes, len(classes)), device.type == "cpu", show_cached)
        with model.frozen_prompt():
            return invert_classes(model, images.to(device), classes, settings, cache, show, tag), cached


def _worker(
    adapter: Adapter,
    base_folder: str,
    images: np.ndarray,  # not a tensor: those travel through shared memory, which containers keep small
    settings: InversionSettings,
    device_type: str,
    precision: str,
    cache: str,
) -> None:
    """One of several processes: inverts its share of the classes and leaves them in `cache`."""
    from accelerate import PartialState

    state = PartialState(cpu=device_type == "cpu")
    model = PromptedCLIP.from_adapter(adapter, load_clip(Path(base_folder), state.device, precision))
    images = torch.from_numpy(images).to(state.device)
    with model.frozen_prompt():
        invert_classes(model, images, range(len(adapter.class_names)), settings, Path(cache))
    torch.distributed.destroy_process_group()
