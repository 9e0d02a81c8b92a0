"""The few Hub calls that hf-ci makes, with their failures in our words.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are honoured by huggingface_hub itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hf_ci import __version__
from hf_ci.errors import HfCiError, HubError, NothingToScan, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoFile


@dataclass(frozen=True)
class Snapshot:
    """A repo at one commit. security: what the Hub's own scanners say, None where they were not asked."""

    sha: str
    paths: frozenset[str]
    security: str | None = None


def resolve(repo: str, revision: str | None) -> Snapshot:
    """The commit that `revision` (default: main) stands for now.

    Offline, what the cache holds of that revision answers instead.
    """
    from huggingface_hub.constants import is_offline_mode

    offline = is_offline_mode()
    with in_our_words(repo, revision):
        sha = api().resolve_revision(repo, revision=revision, local_files_only=offline).resolved
        if offline:
            return Snapshot(sha, cached_paths(repo, sha))
        info = api().model_info(repo, revision=sha, securityStatus=True)
        return Snapshot(sha, frozenset(s.rfilename for s in info.siblings or ()), security_of(info))


def api() -> HfApi:
    """The Hub's client, which names us to the Hub."""
    from huggingface_hub import HfApi

    return HfApi(library_name="hf-ci", library_version=__version__)


def security_of(info: ModelInfo) -> str | None:
    """The repo's security status in one line. Unknown is not safe."""
    status = info.security_repo_status
    if not isinstance(status, dict):
        return None
    issues = status.get("filesWithIssues") or []
    if issues:
        return "; ".join(f"{issue.get('path')}: {issue.get('level')}" for issue in issues)
    return "no issues found" if status.get("scansDone") else "not scanned yet"


def cached_paths(repo: str, sha: str) -> frozenset[str]:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=sha, local_files_only=True))
    except errors.IncompleteSnapshotError as error:  # hf-ci fetches what it reads, never whole repos
        folder = Path(error.snapshot_path)
    return frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def sizes(repo: str, sha: str, paths: list[str]) -> dict[str, int]:
    """Bytes of each of `paths`; empty offline, where nothing is downloaded."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return {}
    with in_our_words(repo, sha):
        return {file.path: file.size for file in files_at(repo, sha, paths)}


def is_merged(repo: str, revision: str, sha: str) -> bool | None:
    """Whether `sha`, which `revision` stands for, is on a branch or a tag, where only the repo's own people can put it:
    anybody can open a pull request, and its commits are had by their shas like any other. None offline: not known."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return None
    with in_our_words(repo, revision):
        refs = api().list_repo_refs(repo)
        own = {ref.name: ref.target_commit for ref in (*refs.branches, *refs.tags)}
        if revision in own or sha in own.values():
            return True
        return any(sha in (commit.commit_id for commit in api().list_repo_commits(repo, revision=name)) for name in own)


def download(repo: str, sha: str, paths: list[str]) -> Path:
    """The folder that holds `paths` of `repo` at commit `sha`, from the cache where they are there already."""
    from huggingface_hub import snapshot_download

    with in_our_words(repo, sha):
        return Path(
            snapshot_download(
                repo,
                revision=sha,
                allow_patterns=[re.sub(r"([\[*?])", r"[\1]", p) for p in paths],
                tqdm_class=no_bar(),
                library_name="hf-ci",
                library_version=__version__,
            )
        )


@cache
def no_bar() -> type:
    """A progress bar that shows nothing; huggingface_hub's own switch is the whole process's, and we have threads."""
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call] # tqdm has no types

    return NoBar


def read_file(repo: str, revision: str, path: str) -> bytes | None:
    """One file's content; None where the repo has no such file at `revision`."""
    from huggingface_hub import errors, hf_hub_download

    with in_our_words(repo, revision):
        try:
            local = hf_hub_download(repo, path, revision=revision, library_name="hf-ci", library_version=__version__)
        except errors.LocalEntryNotFoundError:  # not in the cache, which says nothing of the repo
            raise
        except errors.EntryNotFoundError:
            return None
        return Path(local).read_bytes()


def blobs(repo: str, revision: str, paths: list[str]) -> set[tuple[str, str]]:
    """(path, git's id of its content) of those `paths` that are there at `revision`."""
    return {(file.path, file.blob_id) for file in files_at(repo, revision, paths)}


def files_at(repo: str, revision: str, paths: list[str]) -> list[RepoFile]:
    """Those of `paths` that are there, all of them files."""
    return cast("list[RepoFile]", api().get_paths_info(repo, paths, revision=revision))


def size_of(repo: str, revision: str, path: str) -> int:
    """Of a file that is there, in bytes; 0 offline, where it is here already."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        return 0
    with in_our_words(repo, revision):
        return files_at(repo, revision, [path])[0].size


@contextmanager
def in_our_words(repo: str, revision: str | None, writes: bool = False) -> Iterator[None]:
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repo} is gated and this token has no access", "ask for access on the Hub, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NothingToScan(f"{repo} has no revision {revision!r}", "name a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        hint = (
            "check the spelling" if os.environ.get("HF_TOKEN") else "check the spelling; a private repo needs HF_TOKEN"
        )
        raise NothingToScan(f"there is no model {repo} on the Hub, or it is private", hint) from error
    except errors.HFValidationError as error:
        raise NothingToScan(f"{repo!r} is not a repo id: {error}", "check the spelling") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.RevisionResolutionError) as error:
        raise HubError(
            f"{at} is not in the local cache and the Hub is not to be reached",
            "try again, online; HF_ENDPOINT names the Hub that is asked, HF_HUB_OFFLINE=1 asks none",
        ) from error
    except HfCiError:
        raise
    except Exception as error:  # HTTP and connection errors of whichever client huggingface_hub uses
        if isinstance(error, KeyError | TypeError | AttributeError | NameError):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if writes and status in (401, 403):
            raise HubError(
                f"{repo}: the Hub refuses to write ({status}: {first_line(error)})",
                "HF_TOKEN needs write access to the repo's contents, and to its discussions for a pull request",
            ) from error
        raise HubError(
            f"{at} cannot be {'written' if writes else 'fetched'}: {first_line(error)}",
            "try again; HF_ENDPOINT names the Hub that is asked",
        ) from error
