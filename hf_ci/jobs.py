"""hf-ci run --jobs N: the shards of a list as Jobs on the Hub, followed to their end and merged into one report.

A Job hands its report over in its log, packed between two markers. So the token that it is given, which lies where
foreign checkpoints are read, need not write anything; nothing is left on the Hub that would have to be cleaned up; and
only who may see the Job sees the report. A report packs to about a sixth: that of 100 adapters of 100 classes is some
hundred lines of a log.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import secrets
import shlex
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hf_ci import __version__
from hf_ci.certain import certain
from hf_ci.console import complain, write_file, write_stdout
from hf_ci.errors import HfCiError, HubError, Interrupted, UsageError
from hf_ci.progress import Bar, on_stderr

if TYPE_CHECKING:
    from hf_ci.config import Config
    from hf_ci.hub.jobs import Job, Machine
    from hf_ci.listing import Listed
    from hf_ci.report import Report, Shard
    from hf_ci.settings import ScanOptions

IMAGE = "python:3.12"
BEGIN, END = "-----BEGIN HF-CI REPORT-----", "-----END HF-CI REPORT-----"
LIST = "HF_CI_RUN"  # the variable with what a Job scans and how
MOST = 120_000  # letters of it: Linux hands no longer one to a process
SLOWEST = 10  # seconds between two looks at the Jobs
PATIENCE = 600  # seconds for which the Hub may be away
LATE = 5  # looks at the log of a Job that has just ended: its last lines may follow it
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Asked:
    """The flags of hf-ci run that say how Jobs are run; names as in HfApi.run_job.

    timeout: as it was typed. requirement: what pip installs hf-ci from; None: the image holds it. reports: where each
    shard's report is kept.
    """

    jobs: int
    flavor: str
    timeout: str
    image: str
    requirement: str | None
    namespace: str | None
    reports: Path | None
    dry_run: bool

    @property
    def seconds(self) -> float:
        return float(self.timeout.rstrip("smhd")) * SECONDS.get(self.timeout[-1], 1)


# ---------------------------------------------------------------- before anything costs money


def asked_jobs(
    jobs: int,
    flavor: str,
    timeout: str,
    image: str | None,
    requirement: str | None,
    namespace: str | None,
    reports: Path | None,
    dry_run: bool,
) -> Asked:
    """Raises UsageError for what cannot be meant."""
    if not re.fullmatch(r"\d+(\.\d+)?[smhd]?", timeout) or not float(timeout.rstrip("smhd")):
        raise UsageError(f"--timeout {timeout}: expected a time of each Job", "such as 30m or 6h")
    if requirement and re.search(r"https?://[^/]*@|://[^/@]*:[^/@]*@", requirement):
        raise UsageError(
            "--requirement holds a name or a password, which whoever sees the Job would see, too",
            "give an --image that holds hf-ci",
        )
    if not requirement and not image:
        requirement = own_requirement()
        if not requirement:
            raise UsageError(
                "--jobs needs --requirement, or an --image that holds hf-ci: this project publishes no package",
                "say where pip gets hf-ci from, such as git+https://…@SHA of a commit that you have read",
            )
    if reports is not None and not reports.is_dir():
        raise UsageError(f"--reports {reports}: no such folder", "make it, or leave it out")
    return Asked(jobs, flavor, timeout, image or IMAGE, requirement, namespace, reports, dry_run)


def own_requirement() -> str | None:
    """Where pip got this very hf-ci from, at its commit; None where it was no public place."""
    try:
        told = json.loads(distribution("hf-ci").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    commit = told.get("vcs_info", {}).get("commit_id")
    return (
        f"{told['vcs_info']['vcs']}+{told['url']}@{commit}" if commit and told["url"].startswith("https://") else None
    )


def check_for_jobs(listed: Sequence[Listed], options: ScanOptions, jobs: int) -> None:
    """Raises UsageError for what a Job cannot see, and for more Jobs than targets; whatever it is that an organisation
    could not be listed for."""
    from hf_ci.hub import parse_target
    from hf_ci.hub.base import EMBEDDED
    from hf_ci.hub.names import BUILTIN, DATA_SET, MODEL, may_be_repo

    for found in listed:
        if found.failure and found.target.startswith("org: "):
            raise found.failure
        if not found.failure and parse_target(found.target).kind == "folder":
            raise UsageError(
                f"{found.target} is on this machine, where no Job sees it", "scan it here, or push it first"
            )
    here = [f"--{name}" for name in ("classes", "calibration") if getattr(options, name)]
    for name, ids, own in (("base", MODEL, EMBEDDED), ("pool", DATA_SET, BUILTIN), ("data", DATA_SET, None)):
        value = getattr(options, name)
        if value not in (None, own) and not may_be_repo(value, ids):
            here.append(f"--{name}")
    if here:
        raise UsageError(f"{', '.join(here)} names a place on this machine", "a Job cannot see it: name one on the Hub")
    if jobs > len(listed):
        raise UsageError(f"--jobs {jobs}: there are {len(listed)} targets", f"give at most {len(listed)}")


def packed_list(listed: Sequence[Listed], config: Config, options: ScanOptions) -> str:
    """A configuration for the Jobs, packed: the list as it was found here, so that all see the same."""
    from hf_ci.config import NOT_HERE, flag_name
    from hf_ci.hub.names import HUB

    found: dict[str, list[str]] = {}
    for each in listed:
        if each.optional or each.failure:
            found.setdefault(each.target.removeprefix(HUB).partition("/")[0], []).append(each.target)
    named = [each.target for each in listed if not (each.optional or each.failure)]
    scan = {flag_name(name): value for name, value in asdict(options).items() if name not in NOT_HERE}
    document = {
        "scan": {name: value for name, value in scan.items() if value is not None},
        "adapters": named + [{"org": org, "targets": targets} for org, targets in found.items()],
        "ignore": [ignore.model_dump(mode="json") for ignore in config.ignore],
    }
    packed = base64.b64encode(gzip.compress(json.dumps(document).encode(), mtime=0)).decode()
    if len(packed) > MOST:
        raise UsageError(f"{len(listed)} targets are too many for one run of Jobs", "share them out to several runs")
    return packed


def script(shard: Shard, requirement: str | None) -> str:
    """What a Job runs. A step that fails ends it, so that a Job of the wrong version costs little. What pip runs to build
    a package has no business with the token; the exit code of hf-ci is the verdict, which the report tells as well."""
    version = f"hf-ci {__version__}"
    return "\n".join(
        [
            "set -e",
            'cd "$(mktemp -d)"',
            *[f"env -u HF_TOKEN python -m pip install --quiet {shlex.quote(requirement or '')}"] * bool(requirement),
            f"""test "$(hf-ci --version)" = '{version}' || {{ echo 'expected {version}' >&2; exit 1; }}""",
            f'printf %s "${LIST}" | base64 -d | gzip -d > run.yaml',
            f"hf-ci --config run.yaml run --shard {shard.index}/{shard.count} --output json=report.json || true",
            "gzip report.json",
            f"echo '{BEGIN}'",
            "base64 -w 4000 report.json.gz",
            f"echo '{END}'",
        ]
    )


def offer(asked: Asked, shards: Sequence[Shard]) -> str:
    """What will be started, and the most that it may cost, in one line."""
    from hf_ci.hub.jobs import price_of

    price = price_of(asked.flavor)
    costs = ", price unknown"
    if price is not None:
        most = price * len(shards) * asked.seconds / 3600
        costs = f", ${most:.2f} at most (${price:.2f} an hour each)"
    return (
        f"{len(shards)} Jobs of flavor {asked.flavor} in image {asked.image}, for {asked.timeout} each at most{costs}: "
        f"{len(shards[0].targets)} targets"
    )


# ---------------------------------------------------------------- from a list to a report


def on_jobs(
    asked: Asked, listed: Sequence[Listed], config: Config, options: ScanOptions, words: Sequence[str]
) -> Report | None:
    """The report of `listed`, scanned by Jobs; None after a dry run, which says on stdout what would be started.

    words: the command line's targets. Raises UsageError or HubError before any Job is started, HubError when the Hub
    was away for too long, Interrupted after Ctrl-C, when all Jobs have been cancelled.
    """
    from huggingface_hub import get_token

    from hf_ci.hub.jobs import Machine, account
    from hf_ci.merge import merged, shard_of

    token = get_token()
    if not token and not asked.dry_run:
        raise UsageError("--jobs: no token", "set HF_TOKEN, or run hf auth login")
    check_for_jobs(listed, options, asked.jobs)
    names = [found.target for found in listed]
    shards = [
        shard_of(names, i, asked.jobs, options, config.ignore, frozenset(), None, words)
        for i in range(1, asked.jobs + 1)
    ]
    env = {LIST: packed_list(listed, config, options), "HF_HUB_OFFLINE": "0"}
    line = offer(asked, shards)
    if asked.dry_run:
        own = "".join(f"  shard {s.index}/{s.count}: {', '.join(s.own)}\n" for s in shards)
        first = "".join(f"  {line}\n" for line in script(shards[0], asked.requirement).splitlines())
        write_stdout(f"{line}\n{own}secret: HF_TOKEN\nthe first runs:\n{first}")
        return None
    machine = Machine(asked.namespace or account(), asked.image, asked.flavor, asked.seconds, env)
    complain(line)
    reports, notes = followed(asked, machine, shards, certain(token))
    report = merged(reports, shards[0])
    return report.model_copy(update={"notes": (*report.notes, *notes)})


def followed(
    asked: Asked, machine: Machine, shards: Sequence[Shard], token: str
) -> tuple[list[tuple[str, Report]], list[str]]:
    """The shards' reports, each with its name, and notes on those that are missing."""
    from hf_ci.merge import numbered

    run = secrets.token_hex(8)
    started: dict[str, Shard] = {}
    reports: list[tuple[str, Report]] = []
    notes: list[str] = []
    with cancelling(machine, run, started), TemporaryDirectory(prefix="hf-ci-") as folder:
        start_all(asked, machine, run, shards, token, started)
        for shard, job in ended(machine, run, started):
            try:
                lines = log_when_whole(machine, job)
                report = read_log(shard, lines, Path(folder) / "report.json", shards[0])
            except HfCiError as error:
                why = f" ({job.message})" if job.message else ""
                notes.append(
                    f"{numbered(shard)}: Job {job.id} ended as {job.stage}{why}: {error.message}; its log: {job.url}"
                )
                complain(notes[-1])
                continue
            reports.append((f"the report of Job {job.id}", report))
            if asked.reports:
                from hf_ci.reports import render

                write_file(asked.reports / f"shard-{shard.index}.json", render(report, "json", lasting=False))
    return reports, notes


def start_all(
    asked: Asked, machine: Machine, run: str, shards: Sequence[Shard], token: str, started: dict[str, Shard]
) -> None:
    from hf_ci.hub.jobs import start
    from hf_ci.merge import numbered

    for shard in shards:
        name = f"hf-ci-{run}-{shard.index}-of-{shard.count}"
        job = start(machine, run, name, script(shard, asked.requirement), token)
        started[job.id] = shard
        complain(f"{numbered(shard)}: Job {job.id}, {job.url}")


def ended(machine: Machine, run: str, started: dict[str, Shard]) -> Iterator[tuple[Shard, Job]]:
    """Each shard whose Job has ended. It is taken out of `started` then."""
    from hf_ci.hub.jobs import look
    from hf_ci.merge import numbered

    progress, total, pause, answered = on_stderr(), len(started), 1.0, time.monotonic()
    shows = isinstance(progress, Bar)
    try:
        while started:
            progress.count(f"Jobs in {machine.namespace}", total - len(started), total)
            time.sleep(pause)
            pause = min(pause * 1.3, SLOWEST)
            try:
                seen = look(machine, run, list(started))
            except HubError as error:
                if time.monotonic() - answered > PATIENCE:
                    raise HubError(f"{error.message}, for {PATIENCE} seconds", "the Jobs' logs stay there") from error
                continue
            answered = time.monotonic()
            for id in [id for id in started if seen[id].has_ended]:
                shard = started.pop(id)
                if not shows:
                    complain(f"{numbered(shard)}: {seen[id].stage}, {total - len(started)} of {total} ended")
                yield shard, seen[id]
    finally:
        progress.done()


def log_when_whole(machine: Machine, job: Job) -> list[str]:
    """Raises HfCiError where it cannot be read."""
    from hf_ci.hub.jobs import log_of

    lines: list[str] = []
    for again in range(LATE):
        try:
            lines = log_of(machine, job.id)
            if END in lines or job.stage != "COMPLETED":
                break
        except HfCiError:
            if again == LATE - 1:
                raise
        time.sleep(again)
    return lines


def read_log(shard: Shard, lines: Sequence[str], file: Path, asked: Shard) -> Report:
    """The report between the last two markers. Raises UsageError where none is, or not the one that was asked for."""
    from hf_ci.merge import check_covers, check_same_run
    from hf_ci.report import Report, read_report

    begins, ends = ([n for n, line in enumerate(lines) if line == marker] for marker in (BEGIN, END))
    if not begins or not ends or begins[-1] > ends[-1]:
        raise UsageError("there is no report in its log")
    try:
        file.write_bytes(gzip.decompress(base64.b64decode("".join(lines[begins[-1] + 1 : ends[-1]]), validate=True)))
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise UsageError(f"the report in its log is damaged: {error}") from error
    report = read_report(file, "its report", "")
    check_covers("its report", report)
    check_same_run("its report", report, "what was asked for", Report(results=(), shard=asked))
    own = certain(report.shard)
    if own.index != shard.index:
        raise UsageError(f"its report is of shard {own.index}/{own.count}")
    return report.model_copy(update={"shard": own.model_copy(update={"asked": asked.asked})})


# ---------------------------------------------------------------- when it ends before its time


@contextmanager
def cancelling(machine: Machine, run: str, started: dict[str, Shard]) -> Iterator[None]:
    """No Job goes on costing money when this program does not wait for it any more: Ctrl-C, an order to terminate, or
    an error on the way cancels all that have not ended, also one whose start was never answered."""
    with terminating_as_interrupted():
        try:
            yield
        except BaseException as error:
            told = cancel_all(machine, run, started)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"interrupted; {told}") from error
            complain(told)
            raise


@contextmanager
def terminating_as_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cancel_all(machine: Machine, run: str, started: dict[str, Shard]) -> str:
    """What came of it."""
    from hf_ci.hub.jobs import cancel, look

    try:
        going = {id for id, job in look(machine, run).items() if not job.has_ended} | started.keys()
    except HfCiError:
        going = set(started)
    left = []
    for id in sorted(going):
        try:
            cancel(machine, id)
        except HfCiError:
            left.append(id)
    told = f"{len(going) - len(left)} Jobs were cancelled"
    more = "; ".join(f"hf jobs cancel {machine.namespace}/{id}" for id in left)
    return f"{told}; {len(left)} may go on, these cancel them: {more}" if left else told
