"""The section, the badge and the report, written back through the real client to a loopback Hub."""

import json
import os
import subprocess
import sys
import threading

import pytest
from huggingface_hub import HfApi
from making import made_adapter

from hf_ci.dev.loopback import IDENTITY, STRANGER_TOKEN, LoopbackHub
from hf_ci.prompts import write_adapter

QUICK = ("--num-images", "32")
REPO = "user/adapter"


@pytest.fixture(scope="module")
def files(clip, tmp_path_factory):
    """An adapter's files, and those of another with the same names."""
    made = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("adapter") / "a"
        write_adapter(
            made_adapter(clip, "coop", seed=seed), folder, card="---\nlibrary_name: peft\n---\n# An adapter\n"
        )
        made.append({p.name: p.read_bytes() for p in folder.iterdir()})
    return made


@pytest.fixture
def hub(hub, hub_home, run, files):
    hub.add_repo(REPO, files[0])
    hub.command = commands(hub, run, hub_home)
    hub.api = HfApi(endpoint=hub.url, token="hf_owner")
    return hub


def commands(hub, run, home):
    def command(*args, **env):
        quick = {"HF_CI_NUM_IMAGES": "32"}  # a check scans with the same settings
        done = run(*args, env=hub.env(home) | quick | env)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return command


@pytest.fixture(scope="module")
def scanned(files, tmp_path_factory, shared_cache):
    """A report of the repo as every test finds it: shas repeat from hub to hub."""
    folder = tmp_path_factory.mktemp("scanned")
    with LoopbackHub() as hub:
        hub.add_repo(REPO, files[0])
        done = subprocess.run(
            [sys.executable, "-m", "hf_ci", "scan", REPO, *QUICK, "--format", "json"],
            capture_output=True,
            text=True,
            env=os.environ | hub.env(folder) | {"XDG_CACHE_HOME": str(shared_cache)},
        )
    assert done.returncode in (0, 1, 4), done.stderr
    return done.stdout


@pytest.fixture
def report(scanned, tmp_path):
    (tmp_path / "report.json").write_text(scanned)
    return tmp_path / "report.json"


def tree(hub, revision="main"):
    return hub.repo(REPO).find(revision).tree


def test_the_whole_story(hub, files, tmp_path):
    scanned = hub.repo(REPO).find("main").sha
    first = hub.command("scan", REPO, *QUICK, "--push", "pr")
    assert "refs/pr/1" in first.stderr and first.returncode in (0, 1, 4)
    written = tree(hub, "refs/pr/1")
    assert {"README.md", ".hf-ci/report.json", ".hf-ci/badge.svg"} <= set(written)
    assert hub.repo(REPO).find("refs/pr/1").parents == (scanned,)
    assert written["README.md"].startswith(files[0]["README.md"])
    assert tree(hub) == files[0]  # nothing on main before it is merged
    assert json.loads(written[".hf-ci/report.json"])["results"][0]["revision"] == scanned

    assert hub.command("card", REPO, "--check").returncode == 4  # main has no section yet
    hub.api.merge_pull_request(REPO, 1)
    assert hub.command("card", REPO, "--check").returncode == 0
    assert hub.command("badge", REPO, "--check").returncode == 0

    weights = {"adapter_model.safetensors": files[1]["adapter_model.safetensors"]}
    hub.commit(REPO, weights, message="Tune again")
    for command in ("card", "badge"):
        stale = hub.command(command, REPO, "--check")
        assert stale.returncode == 4 and "the adapter has changed since the scan" in stale.stderr
    again = hub.command("scan", REPO, *QUICK, "--push", "main")
    assert again.returncode in (0, 1, 4)
    assert hub.command("card", REPO, "--check").returncode == 0
    assert tree(hub)["adapter_model.safetensors"] == weights["adapter_model.safetensors"]


def test_a_second_push_updates_the_pull_request_that_is_open(hub, files, report):
    assert "refs/pr/1" in hub.command("card", REPO, "--report", report, "--push", "pr").stdout
    same = hub.command("card", REPO, "--report", report, "--push", "pr")
    assert "nothing to change on refs/pr/1" in same.stdout and len(hub.repo(REPO).discussions) == 1
    other = json.loads(report.read_text())
    other["results"][0]["reasons"] = ["another reason"]
    report.write_text(json.dumps(other))
    assert "refs/pr/1" in hub.command("card", REPO, "--report", report, "--push", "pr").stdout
    assert b"another reason" in tree(hub, "refs/pr/1")["README.md"]
    assert len(hub.repo(REPO).discussions) == 1
    assert any(
        "another reason" in event.get("data", {}).get("latest", {}).get("raw", "")
        for event in hub.repo(REPO).discussions["1"]["events"][1:]
    )


def test_a_branch_is_made_where_there_is_none(hub, report):
    assert hub.command("card", REPO, "--report", report, "--push", "safety/card").returncode == 0
    assert ".hf-ci/badge.svg" in tree(hub, "safety/card") and ".hf-ci/badge.svg" not in tree(hub)


def test_a_dry_run_shows_the_change_and_makes_none(hub, report):
    done = hub.command("card", REPO, "--report", report, "--push", "main", "--dry-run")
    assert "+<!-- hf-ci:begin" in done.stdout and ".hf-ci/badge.svg" in done.stdout
    scanned = hub.command("scan", REPO, *QUICK, "--push", "pr", "--dry-run", "--format", "json")
    assert "+<!-- hf-ci:begin" in scanned.stderr and json.loads(scanned.stdout)["results"]
    assert ".hf-ci/badge.svg" not in tree(hub) and not hub.repo(REPO).discussions
    for command in ("scan", "card"):
        assert hub.command(command, REPO, "--dry-run").returncode == 2


def test_a_difference_keeps_its_lines_and_commands_nothing(hub, report):
    hub.commit(REPO, {"README.md": b"# Rewritten\n\n::error::forged\n"})
    shown = hub.command("card", REPO, "--report", report, "--push", "main", "--dry-run").stdout
    scanned = hub.command("scan", REPO, *QUICK, "--push", "pr", "--dry-run").stderr
    for text in (shown, scanned):
        assert " : :error::forged" in text.splitlines() and "+<!-- hf-ci:end -->" in text.splitlines()


def test_other_weights_on_main_are_refused_other_files_are_not(hub, files, report):
    hub.commit(REPO, {"notes.txt": b"new", "README.md": b"# Rewritten\n"})
    assert hub.command("card", REPO, "--report", report, "--push", "pr").returncode == 0
    assert tree(hub, "refs/pr/1")["README.md"].startswith(b"# Rewritten\n")
    hub.commit(REPO, {"adapter_model.safetensors": files[1]["adapter_model.safetensors"]})
    refused = hub.command("card", REPO, "--report", report, "--push", "main")
    assert refused.returncode == 4 and "not about the adapter" in refused.stderr
    moved = hub.command(
        "card",
        f"{REPO}@{json.loads(report.read_text())['results'][0]['revision']}",
        "--report",
        report,
        "--push",
        "main",
    )
    assert moved.returncode == 4 and "not the one that was scanned" in moved.stderr
    assert ".hf-ci/badge.svg" not in tree(hub)


@pytest.mark.parametrize(
    "fault",
    [
        lambda hub: hub.fail_next(2, 429, "/commit/", **{"Retry-After": "1"}),
        lambda hub: hub.fail_next(2, 503, "/commit/"),
        lambda hub: hub.spoil_next("lose", 1, "/commit/"),
        lambda hub: hub.spoil_next("drop", 1, "/commit/"),
    ],
)
def test_faults_that_pass_are_waited_out_and_nothing_is_done_twice(hub, report, fault):
    before = len(hub.repo(REPO).commits)
    fault(hub)
    done = hub.command("card", REPO, "--report", report, "--push", "pr")
    assert done.returncode == 0, done.stderr
    assert len(hub.repo(REPO).discussions) == 1 and len(hub.repo(REPO).commits) == before + 1


def test_missing_rights_name_what_is_needed_and_are_not_tried_again(hub, report):
    done = hub.command("card", REPO, "--report", report, "--push", "main", HF_TOKEN=STRANGER_TOKEN)
    assert done.returncode == 4 and "write access" in done.stderr and STRANGER_TOKEN not in done.stderr + done.stdout
    assert sum("/commit/" in path for _, path in hub.requests) == 1


def test_a_ci_job_writes_without_a_stored_token(hub, report):
    keyless = {
        "HF_TOKEN": "",
        "HF_OIDC_RESOURCE": REPO,
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{hub.url}/identity",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t",
    }
    done = hub.command("card", REPO, "--report", report, "--push", "main", **keyless)
    assert done.returncode == 0, done.stderr
    assert ".hf-ci/badge.svg" in tree(hub)
    assert not any(secret in done.stdout + done.stderr for secret in (IDENTITY, *hub.job_tokens))


def test_offline_nothing_is_pushed_and_it_says_so(hub, report):
    done = hub.command("card", REPO, "--report", report, "--push", "main", HF_HUB_OFFLINE="1")
    assert done.returncode == 4 and ".hf-ci/badge.svg" not in tree(hub)


WRITER = """
import sys
from huggingface_hub import HfApi
from hf_ci.hub.target import fetch_target, parse_target
from hf_ci.hub.write import Proposal, push
from threading import Thread
done, fetched = [], fetch_target(parse_target(sys.argv[1]))
def one(i):
    build = lambda card: {"README.md": (card or b"") + b"line %d\\n" % i}
    done.append(push(fetched, Proposal(f"line {i}", "", "test", build), "main"))
threads = [Thread(target=one, args=(i,)) for i in range(int(sys.argv[2]), int(sys.argv[3]))]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(done) == len(threads)
"""


def test_a_hundred_concurrent_writers_lose_nothing(hub, hub_home):
    env = os.environ | hub.env(hub_home)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, REPO, str(start), str(start + 25)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for start in (0, 25, 50, 75)
    ]
    for writer in writers:
        assert not writer.communicate(timeout=240)[1].count("Traceback")
        assert writer.returncode == 0
    lines = tree(hub)["README.md"].decode().splitlines()
    assert sorted(line for line in lines if line.startswith("line ")) == sorted(f"line {i}" for i in range(100))
    assert threading.active_count() < 50
