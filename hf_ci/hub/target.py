"""Targets: `org/model[@revision][:subfolder]`, a local folder, or `demo:NAME` (an adapter that ships with hf-ci).

A checkpoint is named as such a subfolder or folder is, or found there where no adapter is and no other checkpoint.

A folder whose path looks like a repo's id is written `./org/model`, a repo that a folder hides `hf://org/model`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from hf_ci.certain import certain
from hf_ci.errors import AdapterError, CardError, Inconclusive, NothingToScan, UsageError
from hf_ci.files import (
    CONFIG,
    DASSL,
    ENCODERS,
    FILES,
    LARGEST,
    SCANNED,
    adapters_among,
    is_checkpoint,
    most_bytes,
    other_weights,
    paths_below,
)
from hf_ci.hub.client import download, read_file, resolve, size_of, sizes
from hf_ci.hub.names import HUB, MODEL, check_is_no_id, here, is_folder
from hf_ci.kind import check_bytes, read_whole

DEMOS = Path(__file__).parents[1] / "assets" / "demo"
REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[^:@]+))?")


@dataclass(frozen=True)
class Target:
    text: str
    kind: Literal["hub", "folder", "demo"]
    location: str  # repo id, or path of the folder
    revision: str | None = None
    subfolder: str | None = None
    file: str | None = None  # a checkpoint in that folder

    @property
    def prefix(self) -> str:
        """What the adapter's paths begin with inside its repo."""
        return f"{self.subfolder.strip('/')}/" if self.subfolder else ""


@dataclass(frozen=True)
class Fetched:
    """A target's files on disk. `files` are (path inside the adapter's folder, sha256), sorted.

    security: what the Hub's own scanners say of the repo; None for a folder. checkpoint: what is to be read in place of an
    adapter, as a path inside the folder. remarks: on what else lies there. others: files beside an adapter or below it that
    may hold weights, and that no scan of it reads.
    """

    target: Target
    folder: Path
    revision: str | None
    files: tuple[tuple[str, str], ...]
    security: str | None = None
    checkpoint: str | None = None
    remarks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def own(self) -> Sequence[str]:
        """Names of the files that are the adapter."""
        return [self.checkpoint] if self.checkpoint else FILES

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """A file beside the adapter, at `revision` (default: the fetched commit); None where there is none.

        Raises CardError for a link, which may lead to anything on this machine, and AdapterError for a file that is too large.
        """
        if self.target.kind == "hub":
            return read_file(self.target.location, revision or certain(self.revision), self.target.prefix + path)
        file = check_no_link(self.folder, path)
        return read_whole(file) if file.is_file() else None


def check_no_link(folder: Path, path: str) -> Path:
    """`path` in `folder`. Raises CardError where it is a link, or lies in one: what is read there would be published, and
    what is written would go elsewhere."""
    place = folder
    for part in Path(path).parts:
        place = place / part
        if place.is_symlink():
            raise CardError(f"{place} is a link; none is followed beside an adapter", "put the file itself there")
    return place


def parse_target(text: str) -> Target:
    """Raises UsageError when `text` can be neither folder nor repo, as a slip of the pen is, or when it can be both;
    NothingToScan for a demo that there is not, and for a pattern that nothing here fits."""
    if text.startswith("demo:"):
        folder = DEMOS / text.removeprefix("demo:")
        if not folder.is_dir() or folder.parent != DEMOS:
            raise NothingToScan(
                f"no demo adapter {text!r}", "there are " + ", ".join(f"demo:{n}" for n in demo_names())
            )
        return Target(text, "demo", str(folder))
    if is_folder(text):
        return Target(text, "folder", text)
    if is_checkpoint(text) and Path(text).is_file():
        check_is_no_id(text, MODEL)
        return Target(text, "folder", str(Path(text).parent), file=Path(text).name)
    match = REPO.fullmatch(text.removeprefix(HUB))
    if not match or text.startswith((".", "/", "~")):
        if any(sign in text for sign in "*?["):
            raise NothingToScan(f"nothing here fits {text!r}", "check the spelling")
        raise UsageError(
            f"{text!r} is no folder or checkpoint here, nor of the form org/model[@revision][:subfolder]",
            "check the spelling",
        )
    return Target(text, "hub", match["repo"], match["revision"], match["subfolder"])


def without_lone_models(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The targets without whole models' files that have no adapter beside them, and a note on each of those."""

    def is_lone(text: str) -> bool:
        path = Path(text)
        return path.name == ENCODERS and path.is_file() and not any((path.parent / name).exists() for name in FILES)

    lone = [text for text in texts if is_lone(text)]
    notes = [f"{text} was left out: no adapter lies beside it" for text in lone]
    return [text for text in texts if text not in lone], notes


def folders_of(texts: Sequence[str]) -> list[str]:
    """Each target once, where one of an adapter's own files stands for its folder: pre-commit names files. A checkpoint
    stands for itself."""
    found = []
    for text in texts:
        path = Path(text)
        if path.is_file():
            folder = path.parent.parent if path.parent.name == ".hf-ci" else path.parent
            text = here(path if is_checkpoint(text) else folder)
        if text not in found:
            found.append(text)
    return found


def demo_names() -> list[str]:
    return sorted(p.name for p in DEMOS.iterdir() if p.is_dir()) if DEMOS.is_dir() else []


def fetch_target(target: Target) -> Fetched:
    """Bring the adapter's files, or one checkpoint (and no others) to disk, at one commit, and hash what will be read."""
    if target.kind == "hub":
        return fetch_from_hub(target)
    folder = Path(target.location)
    checkpoint = target.file
    if checkpoint is None and not to_scan(lambda name: (folder / name).is_file()):
        checkpoint = one_checkpoint(files_below(folder), target)
    if checkpoint is None:
        others = other_weights(paths_below(folder)) if target.kind == "folder" else ()
        return Fetched(target, folder, None, hashes(folder), others=others)
    check_size(checkpoint, (folder / checkpoint).stat().st_size)
    triggers = [f"trigger/{p.name}" for p in (folder / checkpoint).absolute().parent.parent.glob("trigger/*.pth.tar*")]
    files = ((checkpoint, sha256(folder / checkpoint)),)
    return Fetched(target, folder, None, files, checkpoint=checkpoint, remarks=trigger_remarks(triggers))


def fetch_from_hub(target: Target) -> Fetched:
    snapshot = resolve(target.location, target.revision)
    if target.prefix.rstrip("/") in snapshot.paths:
        path = PurePosixPath(target.prefix)
        target = replace(target, subfolder=None if str(path.parent) == "." else str(path.parent), file=path.name)
    prefix, checkpoint = target.prefix, target.file
    paths = [path.removeprefix(prefix) for path in snapshot.paths if path.startswith(prefix)]
    remarks: tuple[str, ...] = ()
    wanted = [] if checkpoint else to_scan(paths.__contains__)
    if not wanted:
        checkpoint = checkpoint or one_checkpoint(paths, target)
        if checkpoint is None or not is_checkpoint(checkpoint):
            raise NothingToScan(
                f"no adapter found in {target.text}: it holds no {prefix}{FILES[0]} and no checkpoint",
                "name the adapter's folder, as org/model:subfolder",
            )
        check_size(checkpoint, size_of(target.location, snapshot.sha, prefix + checkpoint))
        wanted = [checkpoint]
        beside = PurePosixPath(prefix + checkpoint).parent.parent / "trigger"
        triggers = [path for path in snapshot.paths if PurePosixPath(path).parent == beside and DASSL.fullmatch(path)]
        remarks = trigger_remarks(triggers)
    else:
        check_sizes(target.text, sizes(target.location, snapshot.sha, [prefix + name for name in wanted]))
    folder = download(target.location, snapshot.sha, [prefix + name for name in wanted]) / prefix
    absent = [name for name in wanted if not (folder / name).is_file()]
    if absent:
        raise AdapterError(f"{', '.join(absent)} could not be fetched", "try again")
    files = ((checkpoint, sha256(folder / checkpoint)),) if checkpoint else hashes(folder)
    others = () if checkpoint else other_weights(paths)
    return Fetched(target, folder, snapshot.sha, files, snapshot.security, checkpoint, remarks, others)


# ---------------------------------------------------------------- checkpoints


def one_checkpoint(paths: Sequence[str], target: Target) -> str | None:
    """The checkpoint in a folder without an adapter, or in a folder of it, as Dassl makes one; None where there is none.

    Raises Inconclusive where there are several, NothingToScan where adapters lie elsewhere below the folder.
    """
    found = adapters_among(paths)
    near = [path for path in found if is_checkpoint(path) and path.count("/") < 2]
    if len(near) == 1 and near == found:
        return near[0]
    if not found:
        return None
    every, one = (f"{target.text}/**", f"{target.text}/") if target.kind == "folder" else all_of(target)
    listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    raise (Inconclusive if near == found else NothingToScan)(
        f"no adapter at the root of {target.text}; found {len(found)} below it: {listed}",
        f"name one, as {one}{found[0]}, or '{every}' for all",
    )


def all_of(target: Target) -> tuple[str, str]:
    """How all adapters below a target on the Hub are named, and what one of them is named after."""
    hub = HUB if target.text.startswith(HUB) else ""
    repo = hub + target.text.removeprefix(HUB).partition(":")[0]
    return f"{repo}:{target.prefix}*", f"{repo}:{target.prefix}"


def files_below(folder: Path, deepest: int = 6) -> list[str]:
    """Paths of the files below a folder here, hidden folders left out."""
    found = []
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and len(inside.parts) < deepest]
        found += [(inside / name).as_posix() for name in files]
    return found


def check_size(path: str, size: int) -> None:
    if size > LARGEST:
        raise AdapterError(
            f"{path} is {size / (1 << 30):.1f} GiB, more than a prompt's checkpoint takes", "name another file"
        )


def check_sizes(text: str, found: dict[str, int]) -> None:
    """Raises AdapterError, before anything is downloaded, for a file that is too large to be read."""
    for path, size in found.items():
        most = most_bytes(path.rpartition("/")[2])
        if size > most:
            raise AdapterError(
                f"{text}: {path} has {size / 1e6:,.0f} MB, at most {most / 1e6:,.0f} are read", "nothing was downloaded"
            )


def trigger_remarks(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{path} lies beside it: BadCLIP's training code saves its trigger there" for path in sorted(paths))


# ---------------------------------------------------------------- files


def hashes(folder: Path) -> tuple[tuple[str, str], ...]:
    names = sorted(to_scan(lambda name: (folder / name).is_file()))
    for name in names:
        check_bytes(folder / name)
    return tuple((name, sha256(folder / name)) for name in names)


def to_scan(present: Callable[[str], bool]) -> list[str]:
    """The files that a scan reads, of those that are there; a whole model counts only beside an adapter."""
    return [name for name in (SCANNED if present(CONFIG) else FILES) if present(name)]


def fetch_text(text: str) -> Fetched:
    return fetch_target(parse_target(text))


def sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}") from error
