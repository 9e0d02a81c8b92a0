"""A name may stand for a folder here or for a repo on the Hub. One rule tells which, wherever there is such a choice."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from hf_ci.errors import UsageError

HUB = "hf://"  # what makes a name a repo's beyond doubt, as in huggingface_hub's file system
MODEL = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?(:[^:@]+)?")  # as its id may be written
DATA_SET = re.compile(r"(?!.*\.parquet$)[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")  # old ones have no namespace
BUILTIN = "builtin"  # the pool that needs no files


def is_folder(name: str, ids: re.Pattern[str] = MODEL) -> bool:
    """Whether `name` stands for a folder here. Raises UsageError when it could be a repo as well."""
    if name.startswith(HUB) or not os.path.isdir(name):
        return False
    check_is_no_id(name, ids)
    return True


def pool_files(pattern: str) -> list[str]:
    """The files here that a pool's name stands for. Raises UsageError when it could be a data set as well."""
    found = [] if pattern.startswith(HUB) else sorted(glob.glob(pattern))
    if found:
        check_is_no_id(pattern, DATA_SET)
    return found


def files_of_pool(folder: Path) -> list[str]:
    """The images below a pool's folder, or the parquet files where there are none. Sorted, so that the order does not
    depend on the disk."""
    from PIL import Image

    known, below = Image.registered_extensions(), sorted(str(path) for path in folder.rglob("*"))
    images = [path for path in below if os.path.splitext(path)[1].lower() in known]
    return images or [path for path in below if path.endswith(".parquet")]


def check_is_no_id(name: str, ids: re.Pattern[str]) -> None:
    """A pull request could otherwise put something harmless in the place of the repo that was meant, or the reverse."""
    if ids.fullmatch(name):
        raise UsageError(
            f"{name!r} is a {'folder' if os.path.isdir(name) else 'file'} here and may be a repo on the Hub",
            f"write ./{name} or {HUB}{name}",
        )


def may_be_repo(name: str, ids: re.Pattern[str] = MODEL) -> bool:
    """Whether `name` has the form of an id on the Hub and nothing here has that path."""
    return bool(ids.fullmatch(name.removeprefix(HUB))) and not os.path.exists(name)


def here(folder: Path) -> str:
    """`folder` as a name that no repo can have."""
    text = folder.as_posix()
    return text if folder.is_absolute() or text.startswith(".") else f"./{text}"
