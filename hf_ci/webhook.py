"""hf-ci webhook: a push to the Hub starts a Job there, the Job scans what changed and opens a pull request.

No server is needed. The Hub gives the Job what happened in WEBHOOK_PAYLOAD, and a token as the secret HF_TOKEN.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Optional

import typer

from hf_ci.console import complain, write_stdout
from hf_ci.errors import HfCiError, UsageError

IMAGE = "python:3.12"
REQUIREMENT = "hf-ci"
MAIN = "refs/heads/main"


def webhook(
    ctx: typer.Context,
    watch: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="Set it up: watch this user, organisation or model (org/model). Repeatable."),
    ] = None,
    org: Annotated[bool, typer.Option("--org", help="With --watch: names without a slash are organisations.")] = False,
    image: Annotated[str, typer.Option(help="With --watch: Docker image of the Job.")] = IMAGE,
    flavor: Annotated[str, typer.Option(help="With --watch: hardware of the Job.")] = "cpu-basic",
    requirement: Annotated[str, typer.Option(help="With --watch: what pip installs in the Job.")] = REQUIREMENT,
) -> None:
    """Scan what a push to the Hub changed, within a Job that a webhook started; --watch sets both up.

    Each adapter whose weights have no report beside them gets a scan and a pull request with section, badge and report.
    Pull requests, other repos and commits that change no weights, our own among them, are left alone.
    """
    if watch:
        write_stdout(set_up(watch, org, image, flavor, requirement))
        return
    repo, sha = pushed(os.environ.get("WEBHOOK_PAYLOAD"))
    if repo is None:
        complain(f"nothing to do: {sha}")
        return
    from hf_ci.cards.cli import push_results
    from hf_ci.hub.client import resolve
    from hf_ci.listing import adapters_in
    from hf_ci.progress import on_stderr
    from hf_ci.reports.text import render
    from hf_ci.run import scan_context, scan_options
    from hf_ci.scan import scan_targets

    targets = [target for target in adapters_in(f"{repo}@{sha}", resolve(repo, sha).paths) if not known(target)]
    if not targets:
        complain(f"nothing to do: no weights of {repo}@{sha[:7]} are without a report")
        return
    params = scan_context(ctx).params
    params["save_trigger"] = params["save_trigger"] or Path(ctx.with_resource(TemporaryDirectory(prefix="hf-ci-")))
    report = scan_targets(targets, scan_options(params), on_stderr())
    write_stdout(render(report))
    failed = push_results(report, "pr")
    raise typer.Exit(report.exit_code or failed)


def pushed(payload: str | None) -> tuple[str, str] | tuple[None, str]:
    """The model that main was pushed to, and the commit; or None, and why there is nothing to do."""
    if payload is None:
        return None, "no WEBHOOK_PAYLOAD, so no webhook started this (hf-ci webhook --watch NAME sets one up)"
    try:
        told = json.loads(payload)
        event, repo = told["event"], told["repo"]
        kind, name, sha = repo["type"], repo["name"], repo.get("headSha")
        action, scope = event["action"], event["scope"]
        refs = {ref["ref"] for ref in told.get("updatedRefs") or ()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"WEBHOOK_PAYLOAD: not what the Hub sends: {error!r}") from error
    if kind != "model":
        return None, f"{name} is a {kind}"
    if scope.partition(".")[0] != "repo" or action not in ("create", "update"):
        return None, f"{action} of {scope} changes no files"
    if MAIN not in refs or not sha:
        return None, f"main of {name} has not moved"
    return name, sha


def known(target: str) -> bool:
    """Whether a report about exactly these weights lies beside them: after our own commits it does."""
    from hf_ci.cards.cli import is_of
    from hf_ci.cards.safety import REPORT, parse_report
    from hf_ci.hub import fetch_target, parse_target

    try:
        fetched = fetch_target(parse_target(target))
        raw = fetched.read(REPORT)
        return raw is not None and any(is_of(result, fetched) for result in parse_report(raw, REPORT).results)
    except HfCiError:
        return False  # its scan says what is wrong


def set_up(names: list[str], org: bool, image: str, flavor: str, requirement: str) -> str:
    """Make the Job's template and the webhook that starts it. The token that the Jobs get is this user's own."""
    import shlex

    from huggingface_hub import get_token

    from hf_ci.hub.client import api, in_our_words

    token = get_token()
    if not token:
        raise UsageError("--watch: no token", "HF_TOKEN has to be one that may write to what is watched")
    plain = "org" if org else "user"
    watched = [{"type": "model" if "/" in name else plain, "name": name} for name in names]
    install = f"python -m pip install --quiet {shlex.quote(requirement)} && exec hf-ci webhook"
    settings = {name: value for name, value in os.environ.items() if name.startswith("HF_CI_")}
    with in_our_words(" ".join(names), None, writes=True):
        job = api().run_job(image=image, command=["bash", "-c", install], flavor=flavor, env=settings, timeout="6h")
        hook = api().create_webhook(job_id=job.id, watched=watched, domains=["repo"], secrets={"HF_TOKEN": token})
    return f"webhook {hook.id} starts job {job.id} on every push to {', '.join(names)}\n"
