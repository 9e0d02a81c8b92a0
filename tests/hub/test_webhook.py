"""A push to the Hub, the webhook, the Job, and the pull request that it opens."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_ci.errors import UsageError
from hf_ci.files import FILES
from hf_ci.hub.target import DEMOS, sha256
from hf_ci.report import Report, ScannedFile, ScanResult
from hf_ci.webhook import Push, pushed

QUICK = {"HF_CI_NUM_IMAGES": "32"}


def forged(folder) -> str:
    files = tuple(ScannedFile(path=name, sha256=sha256(folder / name)) for name in FILES)
    clean = ScanResult(target="user/adapter", files=files, verdict="clean", reasons=("trust me",), exit_code=0)
    return Report(results=(clean,)).model_dump_json()


def wait_for(runs, *said):
    """The finished Job that said all of this."""
    deadline = time.time() + 240
    while time.time() < deadline:
        for job in list(runs):
            if all(text in job.stdout + job.stderr for text in said):
                return job
        time.sleep(0.2)
    raise AssertionError([job.stdout + job.stderr for job in runs])


def test_a_poisoned_push_ends_in_a_pull_request_and_our_own_commits_in_nothing(
    run, tmp_path, monkeypatch, hub, hub_home
):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    env = hub.env(hub_home)
    for name, value in env.items():
        if name != "HF_TOKEN":  # the Job's comes with the webhook
            monkeypatch.setenv(name, value)
    hub.runs_jobs = True
    made = run("webhook", "--watch", "user", "--requirement", "hf-ci", env=env | QUICK)
    assert made.returncode == 0 and "webhook1 starts job job1" in made.stdout, made.stderr
    assert "hf_owner" not in made.stdout + made.stderr + json.dumps(hub.jobs)
    api = HfApi(endpoint=hub.url, token="hf_owner")
    shutil.copytree(DEMOS / "frame", tmp_path / "bad")
    shutil.copytree(DEMOS / "coop", tmp_path / "bad" / "second")
    (tmp_path / "bad" / ".hf-ci").mkdir()  # whoever pushes may have written a report that suits him
    (tmp_path / "bad" / ".hf-ci" / "report.json").write_text(forged(tmp_path / "bad"))
    hub.add_repo("user/adapter", {"README.md": b"# Nothing yet\n"})
    upload = [shutil.which("hf"), "upload", "user/adapter", str(tmp_path / "bad"), "."]
    subprocess.run(upload, env=os.environ | env, check=True, capture_output=True)
    tuned = hub.repo("user/adapter").find("main").sha

    job = wait_for(hub.job_runs, "backdoored", "refs/pr/2")
    assert job.returncode == 1 and "backdoored" in job.stdout and "refs/pr/1" in job.stderr, job.stderr
    first, second = (hub.repo("user/adapter").find(f"refs/pr/{n}") for n in (1, 2))
    assert first.parents == second.parents == (tuned,)
    assert b"backdoored" in first.tree[".hf-ci/badge.svg"] and b"clean" in second.tree["second/.hf-ci/badge.svg"]
    assert "user/adapter@" in job.stdout and ":second" in job.stdout and "clean" in job.stdout
    assert any("backdoored" in discussion.title for discussion in api.get_repo_discussions("user/adapter"))

    own = wait_for(hub.job_runs, "has not moved")  # the pull requests are pushes, too
    assert own.returncode == 0
    api.merge_pull_request("user/adapter", 1)  # main moves, by our files alone
    merged = wait_for(hub.job_runs, "changed no adapter")
    assert merged.returncode == 0 and len(hub.job_runs) == 4
    assert len(list(api.get_repo_discussions("user/adapter"))) == 2

    lora = {"adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "org/llama"}'}
    hub.add_repo("user/lora", {"README.md": b"# A LoRA\n"})
    for name, content in lora.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="user/lora")
    other = wait_for(hub.job_runs, "user/lora", "LORA")
    assert other.returncode == 0 and not list(api.get_repo_discussions("user/lora"))
    assert not [path for _, path in hub.requests if "org/llama" in path]
    install = hub.jobs["job1"]["command"]
    assert "env -u HF_TOKEN python -m pip" in " ".join(install)


PUSH = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "a/b", "headSha": "c" * 40},
    "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "b" * 40, "newSha": "c" * 40}],
}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"repo": {"type": "dataset", "name": "a/b", "headSha": "c"}}, "a/b is a dataset"),
        ({"event": {"action": "update", "scope": "repo.config"}, "updatedRefs": None}, "has not moved"),
        ({"event": {"action": "create", "scope": "discussion.comment"}}, "changes no files"),
        ({"event": {"action": "delete", "scope": "repo"}}, "changes no files"),
        ({"updatedRefs": [{"ref": "refs/pr/1"}]}, "has not moved"),
    ],
)
def test_what_is_no_push_to_main_is_left_alone(change, reason):
    assert pushed(json.dumps(PUSH)) == Push("a/b", "c" * 40, "b" * 40)
    assert reason in pushed(json.dumps(PUSH | change))


@pytest.mark.parametrize("payload", ["", "[]", '{"event": 1}', '{"event": {}, "repo": {}}'])
def test_a_payload_that_is_none_is_an_error(payload):
    with pytest.raises(UsageError, match="WEBHOOK_PAYLOAD"):
        pushed(payload)


def test_without_a_payload_there_is_nothing_to_do(run):
    done = run("webhook")
    assert done.returncode == 0 and "no webhook started this" in done.stderr
    done = run("webhook", "--watch", "x")
    assert done.returncode == 2 and "--watch needs --requirement" in done.stderr
    done = run("webhook", "--watch", "x", "--requirement", "hf-ci")
    assert done.returncode == 2 and "no token" in done.stderr


def test_a_place_on_this_machine_is_not_sent_along(run, tmp_path):
    (tmp_path / "photos").mkdir()
    for here in (
        {"HF_CI_POOL": "photos", "HF_CI_CLASSES": "names.txt"},
        {"HF_CI_POOL": "photos/*.parquet"},
        {"HF_CI_BASE": "./clip"},
        {"HF_CI_BASE": "/data/clip", "HF_CI_POOL": "user/photos"},
    ):
        done = run("webhook", "--watch", "x", "--requirement", "hf-ci", env=here | {"HF_TOKEN": "hf_x"})
        named = sorted(name for name in here if here[name] != "user/photos")
        assert done.returncode == 2 and f"{', '.join(named)} names a place on this machine" in done.stderr
