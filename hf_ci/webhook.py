"""hf-ci webhook: a push to the Hub starts a Job there, the Job scans what changed and opens a pull request.

No server is needed. The Hub gives the Job what happened in WEBHOOK_PAYLOAD, and a token as the secret HF_TOKEN.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Annotated, Optional

import typer

from hf_ci.console import complain, write_stdout
from hf_ci.errors import UsageError
from hf_ci.files import SCANNED, is_checkpoint

IMAGE = "python:3.12"
MAIN = "refs/heads/main"
PATHS = (
    "HF_CI_CONFIG",
    "HF_CI_CACHE",
    "HF_CI_SAVE_TRIGGER",
    "HF_CI_CLASSES",
    "HF_CI_CALIBRATION",
)  # of this machine, not of a Job's


def webhook(
    ctx: typer.Context,
    watch: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="Set it up: watch this user, organisation or model (org/model). Repeatable."),
    ] = None,
    org: Annotated[bool, typer.Option("--org", help="With --watch: names without a slash are organisations.")] = False,
    image: Annotated[str, typer.Option(help="With --watch: Docker image of the Job.")] = IMAGE,
    flavor: Annotated[str, typer.Option(help="With --watch: hardware of the Job.")] = "cpu-basic",
    requirement: Annotated[
        Optional[str],
        typer.Option(
            metavar="REQ", help="With --watch: where pip installs hf-ci from in the Job, such as git+https://…@SHA."
        ),
    ] = None,
) -> None:
    """Scan what a push to the Hub changed, within a Job that a webhook started; --watch sets both up.

    Each prompt-tuned CLIP adapter whose files the push changed gets a scan and a pull request with section, badge and
    report. What a report in the repo says does not matter: whoever pushed may have written it. Other adapters, pull
    requests and commits that change no adapter, our own among them, are left alone.
    """
    if watch:
        if not requirement:
            raise UsageError(
                "--watch needs --requirement: the Job that it starts has a token that writes",
                "say where pip gets hf-ci from, best at a commit that you have read",
            )
        write_stdout(set_up(watch, org, image, flavor, requirement))
        return
    push = pushed(os.environ.get("WEBHOOK_PAYLOAD"))
    if isinstance(push, str):
        complain(f"nothing to do: {push}")
        return
    from hf_ci.cards.cli import push_results
    from hf_ci.progress import on_stderr
    from hf_ci.recall import scan_each
    from hf_ci.report import Report
    from hf_ci.reports import render
    from hf_ci.run import keep_trigger, scan_context, scan_options

    targets = changed_adapters(push)
    if not targets:
        complain(f"nothing to do: the push to {push.repo} changed no adapter")
        return
    params = scan_context(ctx).params
    lasting = params["save_trigger"] is not None
    keep_trigger(ctx, params)
    results, failed = [], 0
    for result in scan_each(targets, scan_options(params), on_stderr()):
        if result.is_other_kind:
            complain(f"nothing to do: {result.target}: {result.reasons[0]}")
            continue
        results.append(result)
        alone = Report(results=(result,))
        write_stdout(render(alone, "text", lasting))
        failed = push_results(alone, "pr") or failed  # at once: a Job may be stopped before the last scan
    if results:
        raise typer.Exit(Report(results=tuple(results)).exit_code or failed)


@dataclass(frozen=True)
class Push:
    """Of main; before: the commit that it stood at, None where there was none."""

    repo: str
    sha: str
    before: str | None


def pushed(payload: str | None) -> Push | str:
    """What was pushed to a model's main, or why there is nothing to do."""
    if payload is None:
        return "no WEBHOOK_PAYLOAD, so no webhook started this (hf-ci webhook --watch NAME sets one up)"
    try:
        told = json.loads(payload)
        event, repo = told["event"], told["repo"]
        kind, name, action, scope = repo["type"], repo["name"], event["action"], event["scope"]
        moved = {ref["ref"]: ref for ref in told.get("updatedRefs") or ()}
        main = moved.get(MAIN, {})
        sha, before = main.get("newSha"), main.get("oldSha")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"WEBHOOK_PAYLOAD: not what the Hub sends: {error!r}") from error
    if kind != "model":
        return f"{name} is a {kind}"
    if scope.partition(".")[0] != "repo" or action not in ("create", "update"):
        return f"{action} of {scope} changes no files"
    if not sha:
        return f"main of {name} has not moved"
    return Push(name, sha, before)


def changed_adapters(push: Push) -> list[str]:
    """Those whose files are others than before the push, as targets."""
    from hf_ci.errors import NothingToScan
    from hf_ci.hub.client import blobs, in_our_words, resolve
    from hf_ci.listing import adapters_in

    found = []
    for folder in adapters_in("", resolve(push.repo, push.sha).paths):
        place = folder.removeprefix(":")
        paths = [place + "/" * bool(place) + name for name in SCANNED] + [place] * is_checkpoint(place)
        with in_our_words(push.repo, push.sha):
            now = blobs(push.repo, push.sha, paths)
        try:
            with in_our_words(push.repo, push.before):
                old = blobs(push.repo, push.before, paths) if push.before else set()
        except NothingToScan:  # history was rewritten, the old commit is gone
            old = set()
        if now != old:
            found.append(f"{push.repo}@{push.sha}{folder}")
    return found


def set_up(names: list[str], org: bool, image: str, flavor: str, requirement: str) -> str:
    """Make the Job's template and the webhook that starts it. The token that the Jobs get is this user's own."""
    import shlex

    from huggingface_hub import WebhookWatchedItem, get_token

    from hf_ci.hub.base import EMBEDDED
    from hf_ci.hub.client import api, in_our_words
    from hf_ci.hub.names import BUILTIN, DATA_SET, MODEL, may_be_repo

    token = get_token()
    if not token:
        raise UsageError("--watch: no token", "HF_TOKEN has to be one that may write to what is watched")
    plain = "org" if org else "user"
    watched: list[dict[str, str] | WebhookWatchedItem] = [
        {"type": "model" if "/" in name else plain, "name": name} for name in names
    ]
    # what pip runs to build a package has no business with the token
    install = f"env -u HF_TOKEN python -m pip install --quiet {shlex.quote(requirement)} && exec hf-ci webhook"
    settings = {name: value for name, value in os.environ.items() if name.startswith("HF_CI_")}
    here = [name for name in PATHS if name in settings]
    for name, ids, own in (("HF_CI_BASE", MODEL, EMBEDDED), ("HF_CI_POOL", DATA_SET, BUILTIN)):
        if settings.get(name, own) != own and not may_be_repo(settings[name], ids):
            here.append(name)
    if here:
        raise UsageError(f"--watch: {', '.join(here)} names a place on this machine", "the Job cannot see it: unset it")
    with in_our_words(" ".join(names), None, writes=True):
        job = api().run_job(image=image, command=["bash", "-c", install], flavor=flavor, env=settings, timeout="6h")
        hook = api().create_webhook(job_id=job.id, watched=watched, domains=["repo"], secrets={"HF_TOKEN": token})
    return f"webhook {hook.id} starts job {job.id} on every push to {', '.join(names)}\n"
