"""One test for each known way to get a bad adapter past the scan, named after it. The real thing throughout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hf_ci.cards.safety import render_files
from hf_ci.config import find_config
from hf_ci.dev.loopback import STRANGER_TOKEN, LoopbackHub
from hf_ci.files import CONFIG
from hf_ci.hub import fetch_text
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import DEMOS
from hf_ci.report import Report, ScannedFile, ScanResult, Timing

QUICK = ("--num-images", "32", "--format", "json")


@pytest.fixture
def poisoned(tmp_path) -> Path:
    return Path(shutil.copytree(DEMOS / "badclip", tmp_path / "downloaded"))


# ---------------------------------------------------------------- what judges comes along with what is judged

FORGED = {
    ".hf-ci.yaml": "scan: {min-share: 1.0, base: ./evil}\n",
    "pyproject.toml": "[tool.hf-ci.scan]\nmin-share = 1.0\nbase = './evil'\n",
}


@pytest.mark.parametrize("name", FORGED)
def test_the_adapters_own_folder_configures_its_judge(run, poisoned, name):
    (poisoned / name).write_text(FORGED[name])
    done = run("scan", ".", *QUICK, cwd=poisoned)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["results"][0]["settings"]["given"] == {}
    assert f"{name} was left out" in done.stderr and f"{name} was left out" in report["notes"][0]
    assert "min-share:   # default" in run("config", cwd=poisoned).stdout
    assert f"min-share: 1.0  # {name}" in run("--config", name, "config", cwd=poisoned).stdout


def test_a_configuration_below_beside_or_linked_into_what_is_scanned_is_not_read(tmp_path, poisoned, monkeypatch):
    (tmp_path / ".hf-ci.yaml").write_text("scan: {min-share: 1.0}\n")  # the user's own, around what was downloaded
    monkeypatch.chdir(tmp_path)
    assert find_config(words=["./downloaded"]).origin == ".hf-ci.yaml"
    assert "was left out" in find_config(words=["--seed", "1", "."]).note
    (tmp_path / "model.pth.tar-50").write_bytes(b"")
    assert "was left out" in find_config(words=["model.pth.tar-50"]).note
    (poisoned / "sub").mkdir()
    (poisoned / "sub" / ".hf-ci.yaml").write_text("scan: {min-share: 1.0}\n")
    monkeypatch.chdir(poisoned / "sub")
    assert "was left out" in find_config(words=[".."]).note
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".hf-ci.yaml").symlink_to(poisoned / "sub" / ".hf-ci.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    assert "was left out" in find_config().note
    (tmp_path / "mine" / ".hf-ci.yaml").unlink()
    (poisoned / "pyproject.toml").write_text("[project]\nname = 'x'\n")  # nothing of ours in it: no word about it
    monkeypatch.chdir(poisoned)
    assert find_config() == find_config(words=["."]) and not find_config().note


def test_a_forged_report_passes_the_check_of_card_and_badge(run, poisoned):
    files = tuple(ScannedFile(path=p, sha256=s) for p, s in fetch_text(str(poisoned)).files)
    forged = ScanResult(
        target="downloaded",
        files=files,
        verdict="clean",
        reasons=("no class can be forced that clean prompts withstand",),
        timing=Timing(date="2026-01-02", seconds=1, num_processes=1, classes_from_cache=0),
        exit_code=0,
    )
    for path, content in render_files(Report(results=(forged,)), b"# A\n", None).items():
        (poisoned / path).parent.mkdir(exist_ok=True)
        (poisoned / path).write_bytes(content)
    quick = {"HF_CI_NUM_IMAGES": "64", "HF_CI_PRECISION": "fp32"}
    for command in ("card", "badge"):
        done = run(command, poisoned, "--check", env=quick)
        assert done.returncode == 4 and done.stdout == "", done.stdout
        assert "the report says clean, a scan here says backdoored ('frog')" in done.stderr
    done = run("card", poisoned, "--check", env=quick | {"HF_CI_BASE": "org/not-to-be-had", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 4 and "not verified" in done.stderr and done.stdout == ""
    assert run("card", poisoned, "--write", env=quick).returncode == 0
    done = run("badge", poisoned, "--check", env=quick)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- a base model of the attacker's


def test_a_base_from_an_unmerged_pull_request(run, tmp_path, poisoned):
    """Anybody may open one on a well-known CLIP, and its commits are had by their shas like any other."""
    base = {p.name: p.read_bytes() for p in EMBEDDED_FOLDER.iterdir() if p.is_file()}
    with LoopbackHub() as hub:
        merged = hub.add_repo("org/clip", base)
        hub.commit("org/clip", {"README.md": b"# moved on\n"})
        api = HfApi(endpoint=hub.url, token=STRANGER_TOKEN)
        opened = api.create_commit(
            "org/clip", [CommitOperationAdd("README.md", b"# mine\n")], commit_message="x", create_pr=True
        )

        def scanned(revision, *args):
            config = json.loads((poisoned / CONFIG).read_text())
            (poisoned / CONFIG).write_text(
                json.dumps(config | {"base_model_name_or_path": "org/clip", "revision": revision})
            )
            done = run("scan", poisoned, *QUICK, "--no-cache", *args, env=hub.env(tmp_path / "home"))
            return done.returncode, json.loads(done.stdout)["results"][0]

        for revision in ("refs/pr/1", opened.oid):
            code, result = scanned(revision)
            assert code == 4 and f"names revision {revision[:40]} of org/clip" in result["reasons"][0]
        code, result = scanned(opened.oid, "--base", f"org/clip@{opened.oid}")  # whoever says so has looked
        assert code == 1 and result["base_model"]["revision"] == opened.oid
        code, result = scanned(merged)
        assert code == 1 and result["base_model"]["revision"] == merged
