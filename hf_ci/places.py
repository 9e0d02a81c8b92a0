"""What the user names on this machine, looked at before anything is loaded or fetched: a slip of the pen is told at once."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

from hf_ci.errors import UsageError
from hf_ci.files import ENCODERS, INDEX
from hf_ci.hub.names import BUILTIN, DATA_SET, HUB, files_of_pool, is_folder, pool_files
from hf_ci.settings import ScanOptions, read_class_names

PHOTOS = "give a folder, parquet files, or a data set's Hub id"


def check_places(options: ScanOptions) -> None:
    """Raises UsageError for what can be neither here nor on the Hub, or either, and for a folder that cannot be written in.
    Without torch."""
    if options.base is not None:
        check_base(options.base)
    check_pool(options.pool)
    if options.data is not None:
        check_data(options.data)
    if options.classes is not None:
        read_class_names(options.classes)
    if options.calibration is not None:
        check_readable(options.calibration, "--calibration")
    if options.cache is not None:
        check_folder(options.cache, "--cache", ", or use --no-cache")
    if options.save_trigger is not None:
        check_folder(options.save_trigger, "--save-trigger")


def check_base(name: str) -> None:
    if not is_folder(name):
        check_may_be_id(name, "--base", "folder", "give a folder, or a Hub id[@revision]")
    elif not any(os.path.isfile(os.path.join(name, file)) for file in (ENCODERS, INDEX)):
        raise UsageError(f"--base {name}: there is no {ENCODERS} in it", "only safetensors are read")


def check_pool(name: str) -> None:
    advice = f"{PHOTOS}, or {BUILTIN!r}"
    if name == BUILTIN:
        return
    if is_folder(name, DATA_SET):
        if not files_of_pool(Path(name)):
            raise UsageError(f"--pool {name}: the folder holds no images, and no parquet files", advice)
    elif not pool_files(name):
        check_may_be_id(name, "--pool", "file or folder", advice)


def check_data(name: str) -> None:
    if not os.path.exists(name) and not glob.glob(name):
        check_may_be_id(name, "--data", "file or folder", PHOTOS)


def check_may_be_id(name: str, flag: str, expected: str, advice: str) -> None:
    """Of what is not here. A base model of old has no namespace, as a data set."""
    if not DATA_SET.fullmatch(name.removeprefix(HUB)):
        raise UsageError(f"{flag} {name}: no such {expected}, and no id on the Hub", advice)


def check_readable(path: Path, flag: str) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error.strerror or error}", "check the spelling") from error


def check_folder(folder: Path, flag: str, otherwise: str = "") -> None:
    """Make it, where it is not there. Raises UsageError when nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{flag} {folder}: cannot be written: {error.strerror or error}", f"name another folder{otherwise}"
        ) from error
