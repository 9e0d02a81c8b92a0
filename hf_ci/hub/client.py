"""The few Hub calls that hf-ci makes, with their failures in our words.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are honoured by huggingface_hub itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_ci import __version__
from hf_ci.errors import HubError, NothingToScan, first_line


def resolve(repo: str, revision: str | None) -> tuple[str, frozenset[str]]:
    """The commit sha that `revision` (default: main) stands for now, and the paths at that commit.

    Offline, what the cache holds of that revision answers instead.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode

    api, offline = HfApi(library_name="hf-ci", library_version=__version__), is_offline_mode()
    with in_our_words(repo, revision):
        sha = api.resolve_revision(repo, revision=revision, local_files_only=offline).resolved
        if offline:
            return sha, cached_paths(repo, sha)
        return sha, frozenset(s.rfilename for s in api.model_info(repo, revision=sha).siblings or ())


def cached_paths(repo: str, sha: str) -> frozenset[str]:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=sha, local_files_only=True))
    except errors.IncompleteSnapshotError as error:  # hf-ci fetches what it reads, never whole repos
        folder = Path(error.snapshot_path)
    return frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def download(repo: str, sha: str, paths: list[str]) -> Path:
    """The folder that holds `paths` of `repo` at commit `sha`, from the cache where they are there already."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with in_our_words(repo, sha):
            return Path(
                snapshot_download(
                    repo,
                    revision=sha,
                    allow_patterns=[re.sub(r"([\[*?])", r"[\1]", p) for p in paths],
                    library_name="hf-ci",
                    library_version=__version__,
                )
            )
    finally:
        if not silent:
            enable_progress_bars()


@contextmanager
def in_our_words(repo: str, revision: str | None) -> Iterator[None]:
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
    except Exception as error:  # HTTP and connection errors of whichever client huggingface_hub uses
        if isinstance(error, KeyError | TypeError | AttributeError | NameError):
            raise
        raise HubError(
            f"{at} cannot be fetched: {first_line(error)}",
            "try again; HF_ENDPOINT names the Hub that is asked",
        ) from error
