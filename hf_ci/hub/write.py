"""Writing to the Hub: everything in one commit, on what was scanned, or not at all.

One attempt looks at the head, makes the files from the card that stands there, and commits with that head as parent; the
Hub refuses (412) when another writer was faster, and the next attempt looks again. So no writer's work is lost and there
is no half state. A head whose adapter is not the scanned one is refused: its verdict would be about other weights.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_ci.certain import certain
from hf_ci.errors import HubMoved
from hf_ci.files import SCANNED
from hf_ci.hub.client import api, blobs, in_our_words
from hf_ci.hub.target import Fetched

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

CARD = "README.md"
SECONDS = 300  # for all attempts together
PATIENCE = 8.0  # longest pause between two of them, seconds, unless the Hub asks for more
Build = Callable[[bytes | None], dict[str, bytes]]


@dataclass(frozen=True)
class Proposal:
    """What to write. `build` makes path -> content from the card as it stands (None: there is none).

    marker: what a pull request of this kind is found again by; its text says so in a comment that nobody sees.
    """

    title: str
    text: str
    marker: str
    build: Build

    @property
    def description(self) -> str:
        return f"{self.text}\n\n<!-- hf-ci:pr {self.marker} -->"


@dataclass(frozen=True)
class Pushed:
    """revision: what to load it from, such as refs/pr/3; changed: False where everything stood there already."""

    url: str
    revision: str
    sha: str
    changed: bool


def push(fetched: Fetched, proposal: Proposal, to: str, seconds: float = SECONDS) -> Pushed:
    """Write to `to`: "pr" (an open one of ours is updated, otherwise opened), "main", or another branch.

    Raises HubMoved when the adapter is no longer the scanned one, HubError when the Hub refuses or time is up.
    """
    with in_our_words(fetched.target.location, None, writes=True):
        attempt = to_pull_request if to == "pr" else to_branch
        return patiently(seconds)(attempt, fetched, proposal, to)


def push_new_repo(source: Fetched, repo: str, files: dict[str, bytes], title: str, seconds: float = SECONDS) -> Pushed:
    """Write `files` to `repo`, which is made if need be, as private as the source. Raises HubError as `push` does."""
    from huggingface_hub import CommitOperationAdd

    def attempt() -> Pushed:
        private = api().model_info(source.target.location).private
        api().create_repo(repo, private=private, exist_ok=True)
        head = api().model_info(repo).sha
        operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        done = api().create_commit(repo, operations, commit_message=title, parent_commit=head)
        return Pushed(done.commit_url, "main", done.oid, done.oid != head)

    with in_our_words(repo, None, writes=True):
        return patiently(seconds)(attempt)


def to_branch(fetched: Fetched, proposal: Proposal, branch: str) -> Pushed:
    from huggingface_hub import errors

    repo = fetched.target.location
    try:
        head = certain(api().model_info(repo, revision=branch).sha)
    except errors.RevisionNotFoundError:
        api().create_branch(repo, branch=branch, revision=fetched.revision, exist_ok=True)
        head = certain(fetched.revision)
    check_unmoved(fetched, head, branch)
    return commit(fetched, proposal, fetched.read(CARD, head), parent=head, revision=branch)


def to_pull_request(fetched: Fetched, proposal: Proposal, _: str) -> Pushed:
    repo = fetched.target.location
    head = certain(api().model_info(repo).sha)
    check_unmoved(fetched, head, "main")
    card, number = fetched.read(CARD, head), find_pull_request(repo, proposal.marker)
    if number is None:
        return commit(fetched, proposal, card, parent=head, revision="main", create_pr=True)
    revision = f"refs/pr/{number}"
    parent = certain(api().model_info(repo, revision=revision).sha)
    pushed = commit(fetched, proposal, card, parent=parent, revision=revision)
    if pushed.changed:
        api().comment_discussion(repo, number, comment=f"Updated.\n\n{proposal.text}")
    return pushed


def commit(
    fetched: Fetched, proposal: Proposal, card: bytes | None, parent: str, revision: str, create_pr: bool = False
) -> Pushed:
    from huggingface_hub import CommitOperationAdd

    target = fetched.target
    operations = [  # made anew for each attempt: they can be used once
        CommitOperationAdd(target.prefix + path, content) for path, content in sorted(proposal.build(card).items())
    ]
    with warnings.catch_warnings():  # a card without metadata had none before us
        warnings.filterwarnings("ignore", "Warnings while validating metadata")
        done = api().create_commit(
            target.location,
            operations,
            commit_message=proposal.title,
            commit_description=proposal.description,
            revision=revision,
            parent_commit=parent,
            create_pr=create_pr,
        )
    if create_pr:
        revision = done.pr_revision or revision
    url = done.pr_url or (
        discussion_url(target.location, revision) if revision.startswith("refs/pr/") else done.commit_url
    )
    return Pushed(url, revision, done.oid, done.oid != parent)


def discussion_url(repo: str, revision: str) -> str:
    return f"{api().endpoint}/{repo}/discussions/{revision.rpartition('/')[2]}"


def find_pull_request(repo: str, marker: str) -> int | None:
    """The newest open pull request of this user that carries `marker`."""
    me = api().whoami(cache=True)["name"]
    for talk in api().get_repo_discussions(repo, author=me, discussion_type="pull_request", discussion_status="open"):
        events = api().get_discussion_details(repo, talk.num).events
        if any(f"<!-- hf-ci:pr {marker} -->" in (getattr(event, "content", None) or "") for event in events[:3]):
            return talk.num
    return None


def check_unmoved(fetched: Fetched, head: str, branch: str) -> None:
    """Raises HubMoved when the adapter's files at `head` are not the scanned ones; other files may have changed."""
    if head == fetched.revision:
        return
    target = fetched.target
    paths = [target.prefix + name for name in {*SCANNED, *fetched.own}]
    scanned = certain(fetched.revision)
    if blobs(target.location, head, paths) != blobs(target.location, scanned, paths):
        raise HubMoved(
            f"{target.location}: the adapter on {branch} ({head[:7]}) is not the one that was scanned ({scanned[:7]})",
            "scan again",
        )


# ---------------------------------------------------------------- patience


def patiently(seconds: float) -> Retrying:
    """Calls a function again for as long as what it raises may pass."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay

    return Retrying(retry=retry_if_exception(may_pass), stop=stop_after_delay(seconds), wait=pause, reraise=True)


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: another writer was faster, the Hub is busy or broken, the line dropped."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError, too, but it stays
        return False
    status = status_of(error)
    if status is not None:
        return status in (408, 412, 425, 429) or status >= 500 and status != 501
    return any(kind.__name__ in ("TransportError", "ConnectionError", "TimeoutError") for kind in type(error).__mro__)


def pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the Hub asks for, else longer each time, never the same for two writers."""
    error = certain(certain(state.outcome).exception())
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    if re.fullmatch(r"\d{1,4}", asked):
        return float(asked) + random.random()
    first = 0.05 if status_of(error) == 412 else 0.5  # a race is over at once, a fault is not
    return random.uniform(0, min(PATIENCE, first * 2**state.attempt_number))
