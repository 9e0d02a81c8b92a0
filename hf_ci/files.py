"""What the files of adapters, checkpoints and base models are called, and files that appear complete or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from hf_ci.errors import BaseModelError

CONFIG, WEIGHTS, PROMPT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "clip_prompt.json",
)  # the first two: PEFT's
FILES = (CONFIG, WEIGHTS, PROMPT)
INDEX = "model.safetensors.index.json"  # of a model in shards
ENCODERS = "model.safetensors"  # a whole model: no part of an adapter, but read where it lies beside one
SCANNED = (*FILES, ENCODERS)
DASSL = re.compile(r"(.+/)?[\w-]+\.pth\.tar(-\d+)?")  # model.pth.tar-50, model-best.pth.tar
TENSORS = re.compile(r"(.+/)?[^/]+\.(pt|pth)")
LARGEST = 1 << 30  # bytes of a checkpoint: a thousand class-specific contexts with their optimiser take a third


def weights_of(base: Path) -> list[Path]:
    """A base model's files of weights, those that `transformers` loads: a whole one before shards; empty without any.

    Raises BaseModelError where the index of the shards cannot be read or one of them is missing.
    """
    if (base / ENCODERS).is_file():
        return [base / ENCODERS]
    if not (base / INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [base / name for name in names]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{base}: {INDEX} names no shards: {error}", "fetch the base model again") from error
    if missing := [path.name for path in shards if path.parent != base or not path.is_file()]:
        raise BaseModelError(
            f"{base}: {len(missing)} of {len(shards)} shards are missing, {missing[0]} among them",
            "fetch the whole base model",
        )
    return shards


def is_checkpoint(path: str) -> bool:
    """Whether a file's name is one that training code gives to what it saves; BadCLIP's saves its trigger apart."""
    return PurePosixPath(path).parent.name != "trigger" and bool(DASSL.fullmatch(path) or TENSORS.fullmatch(path))


def adapters_among(paths: Iterable[str], checkpoint: Callable[[str], object] = is_checkpoint) -> list[str]:
    """Every folder with an adapter_config.json ("" for the root), and every checkpoint that lies in none of those."""
    paths = sorted(paths)
    folders = [path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == CONFIG]
    holding = {folder or "." for folder in folders}
    return folders + [path for path in paths if checkpoint(path) and str(PurePosixPath(path).parent) not in holding]


# That are read of a file whose author nobody knows; other small files have the README's limit. Encoders are compared two
# tensors at a time, so that theirs is for downloads.
MOST_BYTES = {CONFIG: 2**20, PROMPT: 2**24, WEIGHTS: 2**31, ENCODERS: 2**34, "README.md": 2**23}


def most_bytes(name: str) -> int:
    return MOST_BYTES.get(name, MOST_BYTES["README.md"])


WEIGHTS_LIKE = re.compile(
    r"\.(safetensors|bin|pth|pt|ckpt|pkl|pickle|tar|tar-\d+|h5|msgpack|npy|npz|onnx|gguf|(safetensors|bin)\.index\.json)$",
    re.IGNORECASE,
)
LEFT_BEHIND = re.compile(r"(training_args|optimizer|scheduler|rng_state\w*|random_states\w*)\.\w+$")  # by training
MOST_FILES = 20_000  # of a folder that are looked at


def other_weights(paths: Iterable[str]) -> tuple[str, ...]:
    """Of the paths below an adapter's folder, those that may hold weights and are none that a scan reads."""
    found = (path for path in paths if path not in SCANNED and WEIGHTS_LIKE.search(path))
    return tuple(sorted(path for path in found if not LEFT_BEHIND.search(path) and not is_hidden(path)))


def is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/")[:-1])


def paths_below(folder: Path) -> Iterator[str]:
    """Of files, at most MOST_FILES; links to folders are not followed, hidden folders are left out."""
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if (count := count + 1) > MOST_FILES:
                return
            yield (Path(place) / name).relative_to(folder).as_posix()


def write_whole(path: Path, write: bytes | Callable[[Path], None]) -> None:
    """Write beside `path`, then rename: a reader or an interrupted run never sees half a file. Raises OSError.

    write: the content, or a function that writes it to the path it is given. A device or a pipe, such as /dev/stdout, is
    written to as it is: whoever may do everything would rename a file into its place.
    """
    if path.exists() and not path.is_file():
        return write_through(path, write)
    partial = partial_of(path)
    try:
        if isinstance(write, bytes):
            partial.write_bytes(write)
        else:
            write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_through(path: Path, write: bytes | Callable[[Path], None]) -> None:
    if isinstance(write, bytes):
        with path.open("wb") as file:
            file.write(write)
    else:
        write(path)


def partial_of(path: Path) -> Path:
    """Nobody else's, even where containers share a folder and so process ids."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write in, which becomes `folder` (absent or empty) at the end of the block, or is removed."""
    partial = partial_of(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
