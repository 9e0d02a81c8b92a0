"""Which adapters a configuration names: patterns of folders and whole organisations, one target each."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

from hf_ci.config import Organisation
from hf_ci.errors import UsageError
from hf_ci.files import CONFIG, FILES
from hf_ci.hub.client import api, in_our_words


@dataclass(frozen=True)
class Listed:
    """optional: found by looking around, so that it may turn out to be no adapter for us."""

    target: str
    optional: bool = False


def list_targets(adapters: Sequence[str | Organisation]) -> list[Listed]:
    """Each target once, in order. A pattern that matches nothing stays as it is: its scan says so."""
    found = {}
    for entry in adapters:
        for listed in organisation(entry) if isinstance(entry, Organisation) else folders(entry):
            found.setdefault(listed.target, listed)
    return list(found.values())


def folders(pattern: str) -> list[Listed]:
    if not any(sign in pattern for sign in "*?["):
        return [Listed(pattern)]
    paths = [Path(path) for path in sorted(glob(pattern, recursive=True))]
    holding = [path for path in paths if any((path / name).is_file() for name in FILES)]
    return [Listed(path.as_posix()) for path in holding] or [Listed(pattern)]


def organisation(entry: Organisation) -> Iterator[Listed]:
    """Every folder with an adapter_config.json in every model of `entry` whose name fits."""
    with in_our_words(entry.org, None):
        for model in api().list_models(author=entry.org, expand=["siblings"]):
            name = model.id.partition("/")[2]
            if not fnmatch(name, entry.match) or any(fnmatch(name, pattern) for pattern in entry.exclude):
                continue
            for target in adapters_in(model.id, [sibling.rfilename for sibling in model.siblings or ()]):
                yield Listed(target, optional=True)


def adapters_in(repo: str, paths: Iterable[str]) -> list[str]:
    """A target for every folder with an adapter_config.json. repo: as in a target, with its revision or without."""
    places = [path.rpartition("/") for path in sorted(paths)]
    return [f"{repo}:{folder}" if folder else repo for folder, _, name in places if name == CONFIG]


def changed(target: str, ref: str) -> bool:
    """Whether a local adapter's files differ from `ref` in the git repository around it; a repo on the Hub never does.

    Raises UsageError where there is no such commit or no repository.
    """
    folder = Path(target)
    if not folder.is_dir():
        return any(sign in target for sign in "*?[") or target.startswith((".", "/"))  # its scan says what is wrong
    differing = git(folder, "diff", "--name-only", "--relative", ref, "--", *FILES)
    untracked = git(folder, "ls-files", "--others", "--", *FILES)
    return bool(differing or untracked)


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True)
    if done.returncode:
        what = (done.stderr.strip() or "git failed").splitlines()[0]
        raise UsageError(f"--changed-since: {what}", "name a commit of the repository that holds the adapters")
    return done.stdout
