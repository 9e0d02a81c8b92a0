"""Which adapters a configuration names: patterns of folders and whole organisations, one target each."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

from hf_ci.config import Organisation
from hf_ci.errors import HfCiError, HubError, NothingToScan, UsageError
from hf_ci.files import CONFIG, DASSL, FILES, SCANNED, adapters_among, is_checkpoint
from hf_ci.hub import parse_target
from hf_ci.hub.client import api, in_our_words, resolve
from hf_ci.hub.names import HUB, here, may_be_repo
from hf_ci.hub.target import files_below


@dataclass(frozen=True)
class Listed:
    """optional: found by looking around, so that it may turn out to be no adapter for us. failure: why it cannot be
    scanned at all."""

    target: str
    optional: bool = False
    failure: HfCiError | None = None


def list_targets(adapters: Sequence[str | Organisation]) -> list[Listed]:
    """Each target once, in order. A pattern that matches nothing stays as it is: its scan says so."""
    found: dict[str, Listed] = {}
    for entry in adapters:
        for listed in organisation(entry) if isinstance(entry, Organisation) else folders(entry):
            if not found.get(listed.target, listed).optional:  # what is named has to be scanned
                found.setdefault(listed.target, listed)
            else:
                found[listed.target] = listed
    return list(found.values())


def folders(pattern: str) -> list[Listed]:
    if not any(sign in pattern for sign in "*?["):
        return [Listed(pattern)]
    paths = [Path(path) for path in sorted(glob(pattern, recursive=True))]
    holding = [path for path in paths if any((path / name).is_file() for name in FILES)]
    found = [Listed(here(path)) for path in holding]
    for path in (
        path for path in paths if path not in holding
    ):  # a checkpoint, or a folder that stands for those in it
        inside = [path] if path.is_file() else [path / name for name in files_below(path, 1)]
        free = [file for file in inside if is_checkpoint(file.as_posix()) and file.parent not in holding]
        found += [Listed(here(file), optional=True) for file in sorted(free)]
    return list({each.target: each for each in found}.values()) or [Listed(pattern)]


def entries_of(targets: Sequence[str]) -> list[str | Organisation]:
    """Words of a command line as entries of a configuration; an organisation is `org:NAME`. Raises UsageError for one that
    can be neither, nor folder nor repo."""
    entries: list[str | Organisation] = []
    for text in targets:
        name = text.removeprefix("org:")
        if name == text:
            found = expand([text])
            for target in found:
                with suppress(NothingToScan):  # its scan says so
                    parse_target(target)
            entries += found
        elif re.fullmatch(r"[\w-][\w.-]*", name):
            entries.append(Organisation(org=name))
        else:
            raise UsageError(f"{text}: no name of an organisation", "expected org:NAME")
    return entries


def expand(targets: Sequence[str]) -> list[str]:
    """Each target, and for a pattern of them (org/model:*, a folder's) every one that it fits, once."""
    found = []
    for text in targets:
        found += matching(text) if any(sign in text for sign in "*?[") else [text]
    return list(dict.fromkeys(found))


def matching(pattern: str) -> list[str]:
    """Targets that a pattern names, folders and repos alike; itself where there is none: its scan says so."""
    repo, _, within = pattern.removeprefix(HUB).partition(":")
    if not within or glob(pattern) or not may_be_repo(repo):
        return [each.target for each in folders(pattern)]
    target = parse_target(HUB * pattern.startswith(HUB) + repo)
    try:
        paths = resolve(target.location, target.revision).paths
    except HfCiError:  # its scan meets it again and says what is wrong
        return [pattern]
    places = [place for place in adapters_among(paths) if fnmatch(place, within)]
    return [f"{target.text}:{place}" if place else target.text for place in places] or [pattern]


def organisation(entry: Organisation) -> Iterator[Listed]:
    """Every adapter and checkpoint of Dassl's in every model of `entry` whose name fits; or why there is none."""
    if entry.targets is not None:
        yield from map(on_the_hub, entry.targets)
        return
    found = 0
    try:
        with in_our_words(entry.org, None):
            for model in api().list_models(author=entry.org, expand=["siblings"]):
                name = model.id.partition("/")[2]
                if not fnmatch(name, entry.match) or any(fnmatch(name, pattern) for pattern in entry.exclude):
                    continue
                if model.siblings is None:
                    error = HubError(f"the Hub does not say which files {model.id} holds", "list it by its name")
                    found += 1
                    yield Listed(model.id, failure=error)
                for target in adapters_in(model.id, [sibling.rfilename for sibling in model.siblings or ()]):
                    found += 1
                    yield on_the_hub(HUB * os.path.isdir(target) + target)
        if not found:
            what = f"none of its models in sight that match {entry.match!r} holds an {CONFIG}"
            raise NothingToScan(what, "check the spelling; private models need HF_TOKEN")
    except HfCiError as error:
        yield Listed(f"org: {entry.org}", failure=error)


def on_the_hub(target: str) -> Listed:
    """A folder there may be called as no target can be: that is a failure of its own, and nobody's who lists it."""
    try:
        parse_target(target)
    except UsageError as error:
        return Listed(target, failure=NothingToScan(error.message, "rename it on the Hub"))
    return Listed(target, optional=True)


def adapters_in(repo: str, paths: Iterable[str]) -> list[str]:
    """A target for every folder with an adapter_config.json and every checkpoint of Dassl's. repo: as in a target, with
    its revision or without."""
    places = adapters_among(paths, lambda path: is_checkpoint(path) and DASSL.fullmatch(path))
    return [f"{repo}:{place}" if place else repo for place in places]


# ---------------------------------------------------------------- what differs from a commit


def changed_since(listed: Sequence[Listed], ref: str) -> list[Listed]:
    """Those of `listed` whose files differ from `ref` in the git repository around the working directory, and every
    other adapter below it that does: whoever adds one may not have listed it.

    What git cannot tell of counts as changed: a folder outside, behind a symbolic link or in a repository of its own.
    Repos on the Hub and demos never do. Raises UsageError where there is no such commit or no repository.
    """
    differing = differing_folders(ref)
    kept = [found for found in listed if found.failure or may_differ(found.target, differing)]
    known = {os.path.normpath(found.target) for found in listed}
    new = [place for place in sorted(differing) if str(place) not in known]
    more = [
        here(place) for place in new if (place / CONFIG).exists() or (place.is_file() and DASSL.fullmatch(str(place)))
    ]
    return kept + [Listed(target, optional=True) for target in more]


def left_out(listed: Sequence[Listed], kept: Sequence[Listed], ref: str) -> list[str]:
    """Notes on those of `listed` that are not in `kept`. What was named and is on the Hub is named again: it may be a
    folder that was misspelt."""
    left = [found for found in listed if found not in kept]
    remote = [found for found in left if not found.optional and parse_target(found.target).kind == "hub"]
    rest = len(left) - len(remote)
    notes = [f"{found.target} was left out: it is on the Hub, and not compared with {ref}" for found in remote]
    return notes + [f"{rest} adapters were left out: not changed since {ref}, or not local"] * bool(rest)


def may_differ(target: str, differing: set[Path]) -> bool:
    try:
        if parse_target(target).kind != "folder":
            return False
    except HfCiError:  # its scan says what is wrong
        return True
    folder = Path(os.path.relpath(target))
    on_the_way = [folder, *folder.parents][:-1]
    return (
        folder in differing
        or ".." in folder.parts
        or any(path.is_symlink() or (path / ".git").exists() for path in on_the_way)
        or any((folder / name).is_symlink() for name in SCANNED)
    )


def differing_folders(ref: str) -> set[Path]:
    """Folders below the working directory in which a file that a scan reads is not what it is in `ref`, or is a symbolic
    link: what it points to may be another. Checkpoints of which that holds, and the folders that may stand for them.

    git runs here, never in an adapter's folder: one that is a bare repository would bring its own settings along, and
    with them programs to run.
    """
    files = [f":(glob)**/{name}" for name in (*SCANNED, "*.pth.tar*", "*.pt", "*.pth")]
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}").strip()
        if not re.fullmatch("[0-9a-f]+", commit):  # ^REF excludes a commit
            raise UsageError("it is no single commit")
        paths = git("diff", "-z", "--name-only", "--relative", commit, "--", *files).split("\0")
        paths += git("ls-files", "-z", "--others", "--", *files).split("\0")
        tracked = git("ls-files", "-z", "--", *files).split("\0")
    except UsageError as error:
        advice = "name a commit of the repository around the working directory"
        raise UsageError(f"--changed-since {ref}: {error.message}", error.advice or advice) from error
    found = {Path(path) for path in [*paths, *filter(os.path.islink, tracked)] if path}
    checkpoints = {path for path in found if is_checkpoint(path.as_posix())}
    return {path.parent for path in found} | checkpoints | {path.parent.parent for path in checkpoints}


def git(*command: str) -> str:
    try:
        done = subprocess.run(["git", "-c", "safe.bareRepository=explicit", *command], capture_output=True)
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror or error}", "install it, or leave this out") from error
    if done.returncode:
        raise UsageError((done.stderr.decode(errors="replace").strip() or "git failed").splitlines()[0])
    return os.fsdecode(done.stdout)
