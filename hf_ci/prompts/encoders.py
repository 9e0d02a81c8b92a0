"""Encoder weights that an adapter brings along: they have to be the base model's own, or no verdict holds.

A scan takes the encoders for frozen, so that only the prompt can hide anything. What else was tuned PEFT writes among the
adapter's tensors (`modules_to_save`), and a whole model may lie beside them. Nothing of that is ever used, but whoever
loads the folder elsewhere would use it. It is compared tensor by tensor: whatever the files' size, two are in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hf_ci.errors import AdapterError, EncoderModified, HfCiError
from hf_ci.files import ENCODERS, WEIGHTS, weights_of
from hf_ci.visible import cut

ENCODER_TENSOR = re.compile(
    r"(?:base_model\.)?(?:model\.)?"
    r"((?:vision_model|text_model|visual_projection|text_projection)\..+|logit_scale|logit_bias)",
    re.DOTALL,
)
FLOATS = {"F64", "F32", "F16", "BF16"}


def base_name(tensor: str) -> str | None:
    """What the base model calls a tensor of its encoders that stands in an adapter's file; None for any other."""
    match = ENCODER_TENSOR.fullmatch(tensor)
    return match and match[1]


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file, of which only the header is read. Raises AdapterError for a damaged one."""
    with reading(path.name), safe_open(path, framework="pt") as file:
        yield file


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raises AdapterError for whatever a damaged safetensors file makes of its reader: types and shapes that are none of
    torch's come as KeyError, OverflowError, RuntimeError, ..."""
    try:
        yield
    except HfCiError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {cut(str(error), 300)}"
        raise AdapterError(f"{name} cannot be read: {found}", "the file is damaged; fetch it again") from error


def check_encoders(folder: Path, base: Path) -> int:
    """How many encoder tensors the adapter in `folder` brings, all equal to those of the base model in `base`.

    Equal: the base model's, in the precision in which they are brought. Raises EncoderModified where some are not, and
    AdapterError where the whole model beside the adapter holds anything else.
    """
    with ExitStack() as stack:
        brought: list[tuple[safe_open, str, str | None]] = []  # (file, name there, name in the base model)
        for path in (folder / WEIGHTS, folder / ENCODERS):
            if path.is_file():
                file = stack.enter_context(opened(path))
                found = [(file, name, base_name(name)) for name in file.keys()]
                brought += [each for each in found if each[2] or path.name == ENCODERS]
        if not brought:
            return 0
        theirs: dict[str | None, safe_open] = {}  # name -> file
        for path in weights_of(base):
            file = stack.enter_context(opened(path))
            theirs |= dict.fromkeys(file.keys(), file)
        if unknown := [name for _, name, known in brought if known not in theirs]:
            raise AdapterError(
                f"unexpected tensors: {some(unknown)}", "expected a prompt and, at most, tensors of the base model"
            )
        gaps = [(difference(file, name, theirs[known], known), name) for file, name, known in brought if known]
    check_equal(gaps)
    return len(brought)


def check_equal(found: list[tuple[float, str]]) -> None:
    """Raises EncoderModified where any of the (difference, name) of encoder tensors differs from the base model's."""
    if other := [name for size, name in found if size]:
        largest = max(found)[0]
        by = "shapes or types differ" if largest == math.inf else f"largest difference {largest:.2g}"
        raise EncoderModified(
            f"encoder modified: {len(other)} of {len(found)} tensors differ from the base model's, {by}: {some(other)}; "
            "where the encoders are not frozen, a backdoor may lie in them, and a scan of the prompt says nothing of it",
            "if they belong to another base model, name it with --base",
        )


def difference(file: safe_open, name: str, base: safe_open, known: str) -> float:
    """The largest between two tensors' numbers, 0 for equal ones; infinite where they cannot be compared.

    Shape and type are compared first: a tensor of another size is never loaded.
    """
    ours, theirs = file.get_slice(name), base.get_slice(known)
    types = {ours.get_dtype(), theirs.get_dtype()}
    if ours.get_shape() != theirs.get_shape() or (len(types) > 1 and not types <= FLOATS):
        return math.inf
    return gap(file.get_tensor(name), base.get_tensor(known))


def gap(tensor: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors of one shape, in the first one's precision; infinite for what is no number."""
    other = other.to(tensor.dtype)
    if torch.equal(tensor, other):
        return 0.0
    largest = (tensor.float() - other.float()).abs().max().item()
    return largest if math.isfinite(largest) and largest else math.inf


def some(names: Collection[str], most: int = 3, letters: int = 100) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name[:letters]) for name in sorted(names)[:most]) + more
