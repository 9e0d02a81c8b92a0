"""hf-ci run --jobs: shards as Jobs on the Hub, which here are processes of this machine, and one report of them."""

import base64
import gzip
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from making import ANIMALS, made_adapter
from test_merge import without_timing

from hf_ci.config import Organisation
from hf_ci.dev.loopback import LoopbackHub
from hf_ci.dev.machines import Machines
from hf_ci.errors import Inconclusive, UsageError
from hf_ci.jobs import BEGIN, END, LIST, asked_jobs, own_requirement, read_log, script
from hf_ci.listing import list_targets
from hf_ci.merge import shard_of
from hf_ci.prompts import write_adapter
from hf_ci.report import Report, failed
from hf_ci.reports import render
from hf_ci.settings import ScanOptions

HERE = ("--requirement", "hf-ci", "--flavor", "a10g-small", "--timeout", "30m")
LORA = {"adapter_config.json": b'{"peft_type": "LORA", "task_type": "CAUSAL_LM"}'}
TARGETS = ["user/good", "user/half"]
QUICK = ["user/half", "user/lora"]  # judged without torch


@pytest.fixture(scope="module")
def repos(clip, tmp_path_factory):
    """Files of an adapter, of a broken one and of what is no prompt: a list of three, of which one takes a scan."""
    folder = tmp_path_factory.mktemp("good")
    write_adapter(made_adapter(clip, method="coop", names=ANIMALS[:4]), folder)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {"good": good, "half": good | {"clip_prompt.json": b"{"}, "lora": LORA}


@pytest.fixture(scope="module")
def served(repos):
    """One Hub for all tests, so that one program serves them all."""
    with LoopbackHub() as hub:
        for name, held in repos.items():
            hub.add_repo(f"user/{name}", held)
        yield hub


@pytest.fixture
def hub(served, tmp_path, shared_cache):
    (tmp_path / "machines").mkdir()
    served.machines = Machines(tmp_path / "machines", {"XDG_CACHE_HOME": str(shared_cache)})
    yield served
    for machine in served.running.values():
        machine.kill()
    served.jobs, served.running, served.failures, served.damages = {}, {}, [], []


@pytest.fixture
def ask(run, hub, tmp_path, tmp_path_factory):
    """Run the program with this Hub; the configuration asks for 32 images."""
    (tmp_path / ".hf-ci.yaml").write_text(yaml.safe_dump({"scan": {"num-images": 32}}))
    home = tmp_path_factory.getbasetemp() / "jobs-home"
    return lambda *words, token="hf_owner": run(*words, env=hub.env(home, token))


@pytest.fixture
def following(hub, tmp_path):
    """The program when it has started both its Jobs."""
    command = [sys.executable, "-m", "hf_ci", "run", *QUICK, "--jobs", "2", *HERE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | hub.env(tmp_path / "home"), cwd=tmp_path, **pipes)
    while "job2" not in (line := process.stderr.readline()):
        assert line, "it ended before both Jobs were started"
    yield process
    process.kill()
    process.communicate()


# ---------------------------------------------------------------- for real


def test_an_organisation_scanned_by_jobs_is_reported_as_by_one_run(ask, hub, tmp_path):
    (tmp_path / "kept").mkdir()
    done = ask("run", "org:user", "--jobs", "2", *HERE, "--output", "json=jobs.json", "--reports", "kept")
    assert [line.partition("@")[0] for line in done.stdout.splitlines()[:2]] == TARGETS, done.stderr
    offer, *rest = done.stderr.splitlines()
    assert offer == (
        "hf-ci: 2 Jobs of flavor a10g-small in image python:3.12, for 30m each at most, $1.00 at most ($1.00 an hour "
        "each): 3 targets"
    )
    assert [line.partition(",")[0] for line in rest[:2]] == ["hf-ci: shard 1/2: Job job1", "hf-ci: shard 2/2: Job job2"]
    assert f"{hub.url}/jobs/user/job2" in rest[1] and "COMPLETED, 2 of 2 ended" in rest[-1]
    for spec in hub.jobs.values():
        assert (spec["flavor"], spec["dockerImage"], spec["timeoutSeconds"]) == ("a10g-small", "python:3.12", 1800)
        assert spec["secrets"] == {"HF_TOKEN": "hf_owner"}
        assert "hf_owner" not in json.dumps({**spec, "secrets": None})  # neither argv nor environment
    logs = "\n".join(text for machine in hub.running.values() for _, text in machine.lines)
    kept = [(tmp_path / name).read_text() for name in ("jobs.json", "kept/shard-1.json", "kept/shard-2.json")]
    assert "hf_owner" not in logs + done.stdout + done.stderr + "".join(kept)

    local = ask("run", "org:user", "--output", "json=local.json")
    there, here = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("jobs", "local"))
    assert [r["target"] for r in there["results"]] == TARGETS and there["results"][0]["revision"]
    assert without_timing(there["results"]) == without_timing({"target": r["target"], **r} for r in here["results"])
    assert there["notes"] == here["notes"] and "user/lora was left out" in there["notes"][0]
    assert done.returncode == local.returncode == 4  # half an upload

    again = ask("merge", "kept/shard-1.json", "--output", "json=again.json")
    command = "hf-ci run org:user --shard 2/2 --output json=shard-2.json"
    assert again.returncode == 4 and command in (tmp_path / "again.json").read_text()
    own = ask(*shlex.split(command)[1:])  # the command that is named makes what is missing
    whole = ask("merge", "kept/shard-1.json", "shard-2.json", "--output", "json=again.json")
    assert (own.returncode, whole.returncode) == (4, 4), whole.stderr
    again = json.loads((tmp_path / "again.json").read_text())
    assert without_timing(again["results"]) == without_timing(there["results"])


def test_adapters_of_a_shard_whose_job_dies_are_inconclusive(ask, hub, tmp_path):
    hub.machines.doomed = "--shard 1/2"
    done = ask("run", *QUICK, "--jobs", "2", *HERE, "--output", "json=all.json")
    assert done.returncode == 4, done.stderr
    assert "shard 1/2: Job job1 ended as ERROR (Job failed with exit code: -9): there is no report" in done.stderr
    report = json.loads((tmp_path / "all.json").read_text())
    lost, lora = report["results"]
    assert (lost["target"], lost["verdict"], lost["exit_code"]) == ("user/half", "inconclusive", 4)
    assert "hf-ci run user/half user/lora --shard 1/2 --output json=shard-1.json" in lost["reasons"][0]
    assert lora["target"] == "user/lora" and lora["revision"] and "LORA" in lora["reasons"][0]
    assert any("shard 1/2: Job job1" in note and "/jobs/user/job1" in note for note in report["notes"])


def test_all_jobs_may_die(ask, hub):
    hub.machines.doomed = "hf-ci"
    done = ask("run", *QUICK, "--jobs", "2", *HERE, "--format", "json")
    report = json.loads(done.stdout)
    assert done.returncode == 4 and {r["verdict"] for r in report["results"]} == {"inconclusive"}
    assert [r["target"] for r in report["results"]] == QUICK


def test_who_is_told_to_terminate_cancels_his_jobs(following, hub):
    following.send_signal(signal.SIGTERM)
    out, said = following.communicate(timeout=60)
    assert following.returncode == 130 and "interrupted; 2 Jobs were cancelled" in said and not out
    assert {machine.status()["stage"] for machine in hub.running.values()} == {"CANCELED"}
    assert all(machine.process.wait(10) for machine in hub.running.values())


def test_after_ctrl_c_a_job_that_could_not_be_cancelled_is_named(following, hub):
    hub.fail_next(1, 403, "job1/cancel")
    following.send_signal(signal.SIGINT)
    said = following.communicate(timeout=60)[1]
    assert following.returncode == 130
    assert "1 Jobs were cancelled; 1 may go on, these cancel them: hf jobs cancel user/job1" in said


# ---------------------------------------------------------------- before, and while they are started


def test_a_dry_run_shows_what_would_be_started_and_needs_no_token(ask, hub):
    done = ask("run", "org:user", "demo:coop", "--jobs", "2", "--dry-run", *HERE, token="")
    assert done.returncode == 0 and not hub.jobs, done.stderr
    for told in ("2 Jobs of flavor a10g-small", "shard 1/2: demo:coop, user/half", "secret: HF_TOKEN", "pip install"):
        assert told in done.stdout


def test_a_refusal_is_one_line_and_what_was_started_is_cancelled(ask, hub):
    hub.fail_next(1, 402, "POST /api/jobs/user")
    done = ask("run", *QUICK, "--jobs", "2", *HERE)
    said = done.stderr.splitlines()
    assert done.returncode == 4 and not hub.jobs and "402" in said[-1] and "paid account" in said[-1]
    assert "0 Jobs were cancelled" in said[-2] and not done.stdout

    hub.spoil_next("lose", 1, "POST /api/jobs/user")  # it was started, and the answer is lost
    done = ask("run", *QUICK, "--jobs", "2", *HERE)
    assert done.returncode == 4 and "1 Jobs were cancelled" in done.stderr
    assert [machine.status()["stage"] for machine in hub.running.values()] == ["CANCELED"]


def test_mistakes_cost_nothing(ask, hub, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "names.txt").write_text("cat\n")
    two = ("run", *TARGETS, "--jobs", "2")
    for words, code, told in (
        (("run", *TARGETS, "--jobs", "3", *HERE), 2, "--jobs 3: there are 2 targets"),
        ((*two, "--requirement", "hf-ci", "--flavor", "h900"), 2, "--flavor h900: the Hub has none such (it has cpu-"),
        ((*two, "--requirement", "hf-ci", "--timeout", "soon"), 2, "--timeout soon: expected a time"),
        ((*two, "--requirement", "git+https://me:pw@x.org/r"), 2, "--requirement holds a name or a password"),
        ((*two, "--shard", "1/2", *HERE), 2, "--jobs and --shard exclude each other"),
        ((*two, "--namespace", "org", *HERE), 4, "the Hub answers 403: You do not have the rights to run Jobs in org"),
        (("run", "user/good", "./folder", "--jobs", "2", *HERE), 2, "./folder is on this machine"),
        (("run", "org:nobody", "--jobs", "1", *HERE), 3, "none of its models in sight"),
        (("run", "org:a/b", "--jobs", "1", *HERE), 2, "expected org:NAME"),
        (("run", *TARGETS, "--dry-run"), 2, "--dry-run says nothing without --jobs"),
    ):
        done = ask(*words)
        assert done.returncode == code and told in done.stderr.splitlines()[-1], (words, done.stderr)
        assert not done.stdout and not hub.jobs
    done = ask(*two, *HERE, token="")
    assert done.returncode == 2 and "--jobs: no token" in done.stderr
    done = ask(*two, *HERE, token="hf_wrong")
    assert done.returncode == 4 and "401" in done.stderr and "hf_wrong" not in done.stderr
    (tmp_path / ".hf-ci.yaml").write_text("scan: {classes: names.txt}")
    done = ask(*two, *HERE)
    assert done.returncode == 2 and "--classes names a place on this machine" in done.stderr and not hub.jobs


# ---------------------------------------------------------------- in small


def test_where_hf_ci_comes_from_is_taken_from_its_own_installation(tmp_path, monkeypatch):
    folder = tmp_path / "hf_ci-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: hf-ci\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    place = {"url": "https://git.example/hf-ci", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}
    for told, requirement in (
        (place, f"git+https://git.example/hf-ci@{'ab' * 20}"),
        (place | {"url": "file:///home/me"}, None),
        ({"url": "file:///home/me", "dir_info": {}}, None),
    ):
        (folder / "direct_url.json").write_text(json.dumps(told))
        assert own_requirement() == requirement
    with pytest.raises(UsageError, match="publishes no package"):
        asked_jobs(2, "cpu-basic", "6h", None, None, None, None, False)
    assert asked_jobs(2, "cpu-basic", "1.5h", "me/hf-ci", None, None, None, False).seconds == 5400


def test_pip_does_not_see_the_token_and_an_image_of_ones_own_needs_none():
    (shard,) = parts(1)
    assert "env -u HF_TOKEN python -m pip install --quiet 'hf-ci @ x'" in script(shard, "hf-ci @ x")
    assert "pip" not in script(shard, None)


def test_the_wrong_version_ends_a_job_before_it_scans(tmp_path):
    (shard,) = parts(1)
    (tmp_path / "hf-ci").write_text("#!/bin/sh\necho hf-ci 99\ntouch scanned\n")
    (tmp_path / "hf-ci").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", LIST: "", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["sh", "-c", script(shard, None)], env=env, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "expected hf-ci" in done.stderr
        and BEGIN not in done.stdout
        and not list(tmp_path.rglob("run.yaml"))
    )


def parts(count):
    return [
        shard_of(TARGETS, i, count, ScanOptions(), (), frozenset(), None, ["org:user"]) for i in range(1, count + 1)
    ]


def log_of(shard, change=lambda document: document):
    results = tuple(failed(target, Inconclusive("the Hub was down")) for target in shard.own)
    bare = shard.model_copy(update={"asked": ()})
    document = json.loads(render(Report(results=results, shard=bare), "json", lasting=False))
    packed = base64.encodebytes(gzip.compress(json.dumps(change(document)).encode())).decode().split()
    return ["user/half ....inconclusive", BEGIN, *packed, END, ""]


def test_a_report_is_read_from_a_log_or_refused(tmp_path):
    first, second = parts(2)
    read = lambda lines: read_log(second, lines, tmp_path / "report.json", first)
    good = log_of(second)
    assert [r.target for r in read(good).results] == ["user/half"] and read(good).shard.asked == ("org:user",)
    assert read([BEGIN, "half of one", END, *good]) == read(good)  # the last one counts
    for lines, told in (
        ([], "there is no report in its log"),
        (good[:-2], "there is no report in its log"),
        ([line for line in good if line != good[3]], "damaged"),
        ([BEGIN, "no letters of base64!", END], "damaged"),
        ([BEGIN, base64.b64encode(b"no archive").decode(), END], "damaged"),
        (log_of(first), "is of shard 1/2"),
        (log_of(parts(3)[1]), "one of 3 shards"),
        (log_of(second, lambda d: d | {"results": []}), "says nothing of user/half"),
        (log_of(second, lambda d: d | {"tool": {"name": "hf-ci", "version": "99"}}), "made by hf-ci 99"),
        (log_of(second, lambda d: []), "not a JSON report"),
    ):
        with pytest.raises(UsageError, match=told):
            read(lines)


def test_an_organisation_may_bring_its_list(monkeypatch, tmp_path):
    """The Hub is not asked: there is none here."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = list_targets([Organisation(org="user", targets=("user/a", "user/b:x"))])
    assert [(each.target, each.optional) for each in found] == [("user/a", True), ("user/b:x", True)]
