"""Checkpoints as targets of a scan: files, folders, repos on a loopback Hub, and all of a repo at once."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from dassl import learner_state, save_checkpoint
from making import made_adapter

from hf_ci import ScanOptions, scan_targets
from hf_ci.errors import AdapterError, Inconclusive, NothingToScan
from hf_ci.hub import fetch_text
from hf_ci.hub.target import DEMOS
from hf_ci.listing import changed_since, expand, list_targets
from hf_ci.prompts import read_adapter
from hf_ci.reports import render

QUICK = ("--num-images", "32", "--format", "json")
END = ("--position", "end")  # of the class's name, which a checkpoint does not state


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def output(clip, tmp_path) -> Path:
    """Dassl's output folder of BadCLIP's training code: the poisoned demo as it would have saved it."""
    save_checkpoint(learner_state(clip, read_adapter(DEMOS / "frame")), tmp_path / "output" / "prompt_learner")
    save_checkpoint({"trigger": torch.zeros(1, 3, 64, 64)}, tmp_path / "output" / "trigger")
    return tmp_path / "output"


def test_a_poisoned_checkpoint_on_the_hub_is_scanned_converted_and_scanned_again(output, tmp_path, run, hub, hub_home):
    target = re.search(r"target class `([^`]+)`", (DEMOS / "frame" / "README.md").read_text())[1]
    env = hub.env(hub_home)
    hub.add_repo("user/bad", {f"seed1/{name}": data for name, data in tree(output).items()})
    scanned = run("scan", "user/bad:seed1", *END, *QUICK, "--output", "sarif=s.sarif", env=env)
    (found,) = json.loads(scanned.stdout)["results"]
    assert (scanned.returncode, found["verdict"], found["target_class"]["name"]) == (1, "backdoored", target)
    assert [f["path"] for f in found["files"]] == ["prompt_learner/model.pth.tar-10"]
    assert any("read from a pickle" in warning for warning in found["warnings"])
    assert any("trigger/model.pth.tar-10 lies beside it" in warning for warning in found["warnings"])
    (place,) = json.loads((tmp_path / "s.sarif").read_text())["runs"][0]["results"][0]["locations"]
    uri = place["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "user/bad/seed1/prompt_learner/model.pth.tar-10"

    file = "user/bad:seed1/prompt_learner/model.pth.tar-10"
    converted = run("convert", file, *END, "--out", "peft", env=env)
    assert converted.returncode == 0 and "coop" in converted.stdout, converted.stderr
    assert read_adapter(tmp_path / "peft").digest == read_adapter(DEMOS / "frame").digest
    again = run("scan", "./peft", *QUICK)
    (found,) = json.loads(again.stdout)["results"]
    assert (again.returncode, found["verdict"], found["target_class"]["name"]) == (1, "backdoored", target)
    assert found["timing"]["classes_from_cache"] == found["num_classes"]  # the same adapter, bit for bit


def test_a_file_its_folder_and_the_folder_around_are_the_same_checkpoint(output):
    inner = output / "prompt_learner"
    fetched = [fetch_text(str(place)) for place in (inner / "model.pth.tar-10", inner, output)]
    assert len({each.files[0][1] for each in fetched}) == 1
    assert [each.checkpoint for each in fetched] == ["model.pth.tar-10"] * 2 + ["prompt_learner/model.pth.tar-10"]
    assert all("trigger/model.pth.tar-10 lies beside it" in each.remarks[0] for each in fetched)


def test_one_of_several_checkpoints_is_never_chosen_silently(output, tmp_path):
    inner = output / "prompt_learner"
    shutil.copy(inner / "model.pth.tar-10", inner / "model-best.pth.tar")
    with pytest.raises(Inconclusive, match="found 2 below it: .*model-best.pth.tar, .*tar-10.*for all"):
        fetch_text(str(output))
    assert len(expand([f"{output}/**"])) == 2


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "model.pth").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(AdapterError, match="1.0 GiB, more than"):
        fetch_text(str(tmp_path))


def test_adapters_below_a_folder_are_listed_and_named_by_a_pattern(adapter_folder, tmp_path, monkeypatch):
    for name in ("a", "deep/b"):
        shutil.copytree(adapter_folder, tmp_path / "many" / name)
    torch.save({"ctx": torch.zeros(4, 8)}, tmp_path / "many" / "c.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NothingToScan, match="no adapter at the root of many; found 3 below it: a, deep/b, c.pt.*'many/\\*\\*'"
    ):
        fetch_text("many")
    assert expand(["many/**", "many/a"]) == ["./many/a", "./many/deep/b", "./many/c.pt", "many/a"]
    assert expand(["many/nothing*", "demo:clean"]) == ["many/nothing*", "demo:clean"]


def test_all_of_a_repo_are_scanned_each_with_a_result_of_its_own(tmp_path, run, hub, hub_home):
    torch.save(torch.randn(16, 512).half(), tmp_path / "ctx_clip_covid_s1.pt")
    context = (tmp_path / "ctx_clip_covid_s1.pt").read_bytes()
    files = {f"models/ctx_vectors/{name}.pt": context for name in ("covid", "kather")}
    env = hub.env(hub_home)
    hub.add_repo("user/baple", files | {"lora/adapter_config.json": b'{"peft_type": "LORA"}'})
    root = run("scan", "user/baple", env=env)
    assert root.returncode == 3
    assert "found 3 below it: lora, models/ctx_vectors/covid.pt" in " ".join(root.stdout.split())
    assert "'user/baple:*' for all" in " ".join(root.stdout.split())
    every = run("scan", "user/baple:models/*", "--format", "json", env=env)
    results = json.loads(every.stdout)["results"]
    assert [result["target"] for result in results] == [f"user/baple:{name}" for name in files]
    assert every.returncode == 4 and all("--base" in result["reasons"][0] for result in results)
    assert all(result["revision"] and result["files"] for result in results)


def test_what_a_checkpoint_lacks_is_said_in_the_report_and_its_pickle_stays_closed(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(learner_state(clip, made_adapter(clip, "coop")), tmp_path / "coop")
    torch.save({"ctx": torch.zeros(4, 8), "x": torch.nn.Linear(2, 2)}, tmp_path / "evil.pth")
    report = scan_targets(["./coop", "./evil.pth"], ScanOptions(num_images=32))
    coop, evil = report.results
    assert coop.exit_code == 4 and "--position end|middle|front" in coop.reasons[0]
    assert evil.exit_code == 4 and "wants 'torch.nn.modules.linear.Linear'" in evil.reasons[0]
    results = json.loads(render(report, "sarif", lasting=False))["runs"][0]["results"]
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results]
    assert places == ["coop/model.pth.tar-10", "evil.pth"]


def test_convert_refuses_what_needs_none_and_what_exists(adapter_folder, output, run):
    done = run("convert", adapter_folder, "--out", "new")
    assert done.returncode == 3 and "needs no conversion" in done.stderr
    done = run("convert", output, "--out", output)
    assert done.returncode == 2 and "not empty" in done.stderr


def test_a_changed_checkpoint_is_scanned_again_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for name in ("a", "b"):
        save_checkpoint({"ctx": torch.zeros(4, 8)}, tmp_path / name / "prompt_learner")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "two")):
        subprocess.run([*git, *command], check=True)
    listed = list_targets(["./a", "./b", "./b/prompt_learner/model.pth.tar-10"])
    assert changed_since(listed, "HEAD") == []
    save_checkpoint({"ctx": torch.ones(4, 8)}, tmp_path / "b" / "prompt_learner")
    save_checkpoint({"ctx": torch.ones(4, 8)}, tmp_path / "new" / "prompt_learner")
    found = [each.target for each in changed_since(listed, "HEAD")]
    assert found == ["./b", "./b/prompt_learner/model.pth.tar-10", "./new/prompt_learner/model.pth.tar-10"]
