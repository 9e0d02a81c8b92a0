"""What an adapter's files are called, and files that appear complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG, WEIGHTS, PROMPT = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "clip_prompt.json",
)  # the first two: PEFT's
FILES = (CONFIG, WEIGHTS, PROMPT)
ENCODERS = "model.safetensors"  # a whole model: no part of an adapter, but read where it lies beside one
SCANNED = (*FILES, ENCODERS)


def write_whole(path: Path, write: bytes | Callable[[Path], None]) -> None:
    """Write beside `path`, then rename: a reader or an interrupted run never sees half a file. Raises OSError.

    write: the content, or a function that writes it to the path it is given.
    """
    partial = partial_of(path)
    try:
        if isinstance(write, bytes):
            partial.write_bytes(write)
        else:
            write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
