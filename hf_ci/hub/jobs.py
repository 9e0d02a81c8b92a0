"""Jobs: commands that run on the Hub's machines, for money. Started, looked at, read and cancelled through huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_ci.errors import HfCiError, HubError, UsageError, first_line
from hf_ci.hub.client import api

if TYPE_CHECKING:
    from huggingface_hub import JobInfo

LABEL = "hf-ci-run"  # by its value, Jobs of one run are found again
HOURS = {"minute": 60, "hour": 1, "second": 3600}  # units of a price in one hour
PAID = "Jobs need a paid account with credit, and a token that may start them (fine-grained: job.write)"


@dataclass(frozen=True)
class Machine:
    """What all Jobs of one run have in common, by the names of HfApi.run_job. timeout: seconds."""

    namespace: str
    image: str
    flavor: str
    timeout: float
    env: dict[str, str]


@dataclass(frozen=True)
class Job:
    """stage: as the Hub calls it. message: what it says of the stage, which may be nothing."""

    id: str
    url: str
    stage: str
    message: str = ""

    @property
    def has_ended(self) -> bool:
        from huggingface_hub import JobStage

        return self.stage in (JobStage.COMPLETED, JobStage.CANCELED, JobStage.ERROR, JobStage.DELETED)


def account() -> str:
    """Who the token belongs to. Raises HubError where the Hub does not know it."""
    with in_words_of_jobs("the token"):
        name: str = api().whoami()["name"]
        return name


def price_of(flavor: str) -> float | None:
    """US dollars an hour; None where the Hub counts otherwise. Raises UsageError for a flavor that the Hub does not have."""
    with in_words_of_jobs(f"--flavor {flavor}"):
        known = {machine.name: machine for machine in api().list_jobs_hardware()}
    if flavor not in known:
        raise UsageError(f"--flavor {flavor}: the Hub has none such", f"it has {', '.join(known)}")
    times = HOURS.get(known[flavor].unit_label)
    return times and known[flavor].unit_cost_usd * times


def start(machine: Machine, run: str, name: str, script: str, token: str) -> Job:
    """A Job of the run `run` that has the token as its secret HF_TOKEN. Not tried again: it might start twice."""
    with in_words_of_jobs(f"a Job in {machine.namespace}"):
        return job_of(
            api().run_job(
                image=machine.image,
                command=["sh", "-c", script],
                env=machine.env,
                secrets={"HF_TOKEN": token},
                flavor=machine.flavor,
                timeout=machine.timeout,
                labels={LABEL: run, "name": name},
                namespace=machine.namespace,
            )
        )


def look(machine: Machine, run: str, ids: Sequence[str] = ()) -> dict[str, Job]:
    """The Jobs of the run `run` by their ids; one of `ids` that the Hub does not list is asked for by itself."""
    with in_words_of_jobs(f"the Jobs in {machine.namespace}"):
        listed = api().list_jobs(labels={LABEL: run}, namespace=machine.namespace)
        found = {job.id: job for job in listed if (job.labels or {}).get(LABEL) == run}
        for id in ids:
            if id not in found:
                found[id] = api().inspect_job(job_id=id, namespace=machine.namespace)
        return {id: job_of(job) for id, job in found.items()}


def log_of(machine: Machine, id: str) -> list[str]:
    """What a Job that has ended printed, line by line."""
    with in_words_of_jobs(f"the log of Job {id}"):
        lines = api().fetch_job_logs(job_id=id, namespace=machine.namespace)
        return [line.rstrip("\r\n") for line in lines]


def cancel(machine: Machine, id: str) -> None:
    with in_words_of_jobs(f"Job {id}"):
        api().cancel_job(job_id=id, namespace=machine.namespace)


def job_of(info: JobInfo) -> Job:
    return Job(info.id, info.url, info.status.stage, info.status.message or "")


@contextmanager
def in_words_of_jobs(what: str) -> Iterator[None]:
    """UsageError for what the Hub cannot make sense of, HubError for everything else that goes wrong on the way there."""
    from huggingface_hub import errors

    try:
        yield
    except HfCiError:
        raise
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = f"{what}: the Hub answers {status}: {error.server_message or first_line(error)}"
        if status in (400, 422):
            raise UsageError(said, "correct --flavor, --image, --timeout or --namespace") from error
        raise HubError(said, PAID if status in (401, 402, 403) else "try again") from error
    except Exception as error:  # connection errors of whichever client huggingface_hub uses
        if isinstance(error, KeyError | TypeError | AttributeError | NameError):
            raise
        raise HubError(f"{what}: {first_line(error)}", "try again; HF_ENDPOINT names the Hub that is asked") from error
