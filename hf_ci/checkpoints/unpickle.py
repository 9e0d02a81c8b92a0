"""Pickles read without running anything: PyTorch's restricted unpickler, and inert stubs for what training leaves in them.

Dassl's checkpoints hold the optimiser and, within the warm-up scheduler, a live scheduler object, which the restricted
unpickler refuses. Stubs of those names stand in for them: empty classes that throw away the state they are given.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pickle import UnpicklingError
from typing import Any

import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals, safe_globals

from hf_ci.certain import certain
from hf_ci.errors import AdapterError, Inconclusive, first_line


class Inert:
    """Stands in for an object of the training code: takes any state and keeps none."""

    def __setstate__(self, state: object) -> None:
        pass


def plain_dict(*_: object) -> dict[str, Any]:
    """Stands in for a defaultdict, which the unpickler does not fill."""
    return {}


# Whatever Dassl's configuration may name as optimiser and scheduler, and what an optimiser keeps its state in.
STUBS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((Inert, f"torch.optim.{name}") for name in ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop")),
    *((Inert, f"torch.optim.lr_scheduler.{name}") for name in ("CosineAnnealingLR", "StepLR", "MultiStepLR")),
    (plain_dict, "collections.defaultdict"),
    (Inert, "builtins.dict"),
]
REFUSED = re.compile(r"GLOBAL (.+?) (?:was not|whose module)|unrecognized function (.+)|(?:,|globals`) but got (.+)")


def unpickle(content: bytes, name: str) -> object:
    """What torch.save wrote, every tensor on the CPU. `name` is for the errors.

    Raises Inconclusive that names the offending global for a file that wants more than tensors and plain values, and
    AdapterError for one that is damaged.
    """
    check_stored(content, name)
    others = get_safe_globals()  # what anything else in this process has allowed counts for nothing here
    clear_safe_globals()
    try:
        with warnings.catch_warnings(action="ignore"), safe_globals(STUBS):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may raise anything in the unpickler
        if wanted := refused(error) or foreign(content):
            raise Inconclusive(
                f"{name}: the pickle wants {wanted[:100]!r}, and whoever loads it in the usual way runs that; it was not "
                "loaded",
                "ask for the adapter as safetensors",
            ) from error
        what = str(error).partition("WeightsUnpickler error:")[2].strip() or first_line(error)
        raise AdapterError(
            f"{name} cannot be read: {what.splitlines()[0][:200]}",
            "expected a file that torch.save wrote; fetch it again",
        ) from error
    finally:
        add_safe_globals(others)


def refused(error: Exception) -> str | None:
    """The global that the restricted unpickler stumbled over, as its message names it."""
    match = isinstance(error, UnpicklingError) and REFUSED.search(str(error))
    return match[match.lastindex or 0] if match else None


def foreign(content: bytes) -> str | None:
    """The first global that is none of PyTorch's, in a pickle that the restricted unpickler cannot follow at all."""
    texts, memo = [""], list[str]()  # a global's module and name are texts just seen, or remembered
    with suppress(Exception):  # what cannot be followed here either names nothing
        if zipfile.is_zipfile(file := io.BytesIO(content)):
            with zipfile.ZipFile(file) as archive:
                content = archive.read(next(entry for entry in archive.namelist() if entry.endswith("data.pkl")))
        for opcode, value, _ in pickletools.genops(content):
            found: str | None = None
            if opcode.name == "GLOBAL":
                found = certain(value).replace(" ", ".", 1)
            elif opcode.name == "STACK_GLOBAL":
                found = ".".join(texts[-2:])
            elif opcode.name == "MEMOIZE":
                memo.append(texts[-1])
            elif "GET" in opcode.name:
                texts.append(memo[certain(value)])
            else:
                texts.append(value if isinstance(value, str) else "")
            if found and not found.startswith(("torch._utils.", "torch.FloatStorage", "collections.")):
                return found
    return None


def check_stored(content: bytes, name: str) -> None:
    """Raises AdapterError where the archive is compressed, as torch.save never does: little could become very much."""
    try:
        if not zipfile.is_zipfile(file := io.BytesIO(content)):
            return  # before PyTorch 1.6: no archive
        with zipfile.ZipFile(file) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise AdapterError(
            f"{name} cannot be read: {first_line(error)}", "the file is damaged; fetch it again"
        ) from error
    if packed:
        raise AdapterError(f"{name} is a compressed archive", "expected a file that torch.save wrote")
