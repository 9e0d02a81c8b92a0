"""Targets: `org/model[@revision][:subfolder]`, a local folder, or `demo:NAME` (an adapter that ships with hf-ci).

A folder whose path looks like a repo's id is written `./org/model`, a repo that a folder hides `hf://org/model`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_ci.errors import AdapterError, NothingToScan
from hf_ci.files import CONFIG, ENCODERS, FILES, SCANNED
from hf_ci.hub.client import download, read_file, resolve
from hf_ci.hub.names import HUB, here, is_folder

DEMOS = Path(__file__).parents[1] / "assets" / "demo"
REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<subfolder>[^:@]+))?")


@dataclass(frozen=True)
class Target:
    text: str
    kind: Literal["hub", "folder", "demo"]
    location: str  # repo id, or path of the folder
    revision: str | None = None
    subfolder: str | None = None

    @property
    def prefix(self) -> str:
        """What the adapter's paths begin with inside its repo."""
        return f"{self.subfolder.strip('/')}/" if self.subfolder else ""


@dataclass(frozen=True)
class Fetched:
    """A target's files on disk. `files` are (path inside the adapter's folder, sha256), sorted.

    security: what the Hub's own scanners say of the repo; None for a folder.
    """

    target: Target
    folder: Path
    revision: str | None
    files: tuple[tuple[str, str], ...]
    security: str | None = None

    def read(self, path: str, revision: str | None = None) -> bytes | None:
        """A file beside the adapter, at `revision` (default: the fetched commit); None where there is none."""
        if self.target.kind == "hub":
            return read_file(self.target.location, revision or self.revision, self.target.prefix + path)
        file = self.folder / path
        return file.read_bytes() if file.is_file() else None


def parse_target(text: str) -> Target:
    """Raises NothingToScan when `text` can be neither folder nor repo, Inconclusive when it can be both."""
    if text.startswith("demo:"):
        folder = DEMOS / text.removeprefix("demo:")
        if not folder.is_dir() or folder.parent != DEMOS:
            raise NothingToScan(
                f"no demo adapter {text!r}", "there are " + ", ".join(f"demo:{n}" for n in demo_names())
            )
        return Target(text, "demo", str(folder))
    if is_folder(text):
        return Target(text, "folder", text)
    match = REPO.fullmatch(text.removeprefix(HUB))
    if not match or text.startswith((".", "/", "~")):
        raise NothingToScan(
            f"{text!r} is neither a folder nor of the form org/model[@revision][:subfolder]", "check the spelling"
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
    """Each target once, where one of an adapter's own files stands for its folder: pre-commit names files."""
    found = []
    for text in texts:
        path = Path(text)
        if path.is_file():
            folder = path.parent.parent if path.parent.name == ".hf-ci" else path.parent
            text = here(folder)
        if text not in found:
            found.append(text)
    return found


def demo_names() -> list[str]:
    return sorted(p.name for p in DEMOS.iterdir() if p.is_dir()) if DEMOS.is_dir() else []


def fetch_target(target: Target) -> Fetched:
    """Bring the adapter's files (and no others) to disk, at one commit, and hash what will be read."""
    folder, revision, security = Path(target.location), None, None
    if target.kind == "hub":
        snapshot = resolve(target.location, target.revision)
        revision, security, prefix = snapshot.sha, snapshot.security, target.prefix
        wanted = [prefix + name for name in to_scan(lambda name: prefix + name in snapshot.paths)]
        if not wanted:
            raise NothingToScan(
                f"no adapter found in {target.text}: it holds no {prefix}{FILES[0]}",
                "name the adapter's folder, as org/model:subfolder",
            )
        folder = download(target.location, revision, wanted) / prefix
        absent = [name for name in wanted if not (folder / name.removeprefix(prefix)).is_file()]
        if absent:
            raise AdapterError(f"{', '.join(absent)} could not be fetched", "try again")
    return Fetched(target, folder, revision, hashes(folder), security)


def hashes(folder: Path) -> tuple[tuple[str, str], ...]:
    return tuple((name, sha256(folder / name)) for name in sorted(to_scan(lambda name: (folder / name).is_file())))


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
