"""A name may stand for a folder here or for a repo on the Hub. One rule tells which, wherever there is such a choice."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hf_ci.errors import Inconclusive

HUB = "hf://"  # what makes a name a repo's beyond doubt, as in huggingface_hub's file system
LIKE_AN_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?(:[^:@]+)?")


def is_folder(name: str) -> bool:
    """Whether `name` stands for a folder here.

    Raises Inconclusive when it could be either: a pull request could otherwise put a harmless folder in the place of
    the repo that was meant, or the reverse.
    """
    if name.startswith(HUB) or not os.path.isdir(name):
        return False
    if LIKE_AN_ID.fullmatch(name):
        raise Inconclusive(
            f"{name!r} is a folder here, and could as well be a repo on the Hub",
            f"write ./{name} for the folder, {HUB}{name} for the repo",
        )
    return True


def may_be_repo(name: str) -> bool:
    """Whether `name` has the form of a model's id on the Hub and nothing here has that path."""
    return bool(LIKE_AN_ID.fullmatch(name.removeprefix(HUB))) and not os.path.exists(name)


def here(folder: Path) -> str:
    """`folder` as a name that no repo can have."""
    text = folder.as_posix()
    return text if folder.is_absolute() or text.startswith(".") else f"./{text}"
