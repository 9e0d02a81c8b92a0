"""hf-ci run: patterns of folders, organisations on the Hub, what changed since a commit."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from making import made_adapter

from hf_ci.config import Organisation
from hf_ci.dev.loopback import LoopbackHub
from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.listing import Listed, changed, list_targets
from hf_ci.prompts import write_adapter

QUICK = {"num-images": 32, "precision": "fp32"}


def configure(folder, **sections):
    (folder / ".hf-ci.yaml").write_text(yaml.safe_dump({"scan": QUICK} | sections))


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def adapter(clip, tmp_path):
    def adapter(name, **more):
        write_adapter(made_adapter(clip, **more), tmp_path / name)
        return tmp_path / name

    return adapter


@pytest.fixture
def git(tmp_path):
    def git(*command):
        me = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *me, *command], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    return git


def test_all_are_scanned_past_failures_with_a_line_each_and_one_code(run, adapter, tmp_path):
    adapter("models/a")
    shutil.copytree(adapter("models/b"), tmp_path / "models" / "broken")
    (tmp_path / "models" / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "models" / "notes").mkdir()
    configure(tmp_path, adapters=["models/*", "models/a", "nowhere/*"])
    done = run("run", "--output", "json=report.json")
    lines = done.stdout.splitlines()
    assert [re.sub(r"\.{3,}", " ", line) for line in lines[:4]] == [
        "models/a clean",
        "models/b clean",
        "models/broken inconclusive",
        "nowhere/* inconclusive",
    ]
    assert {len(line) for line in lines[:4]} == {79}
    assert lines[-1] == "4 adapters: 2 clean, 2 inconclusive" and done.returncode == 4
    report = json.loads((tmp_path / "report.json").read_text())
    broken = next(r for r in report["results"] if r["target"] == "models/broken")
    accepted = {"fingerprint": broken["fingerprint"], "reason": "half an upload", "until": "2999-01-01"}
    configure(tmp_path, adapters=["models/*"], ignore=[accepted])
    done = run("run", "--output", "sarif=report.sarif")
    assert done.returncode == 0 and "inconclusive (ignored)" in done.stdout and "half an upload" in done.stdout
    (finding,) = json.loads((tmp_path / "report.sarif").read_text())["runs"][0]["results"]
    assert finding["suppressions"][0]["justification"] == "ignored until 2999-01-01: half an upload"


def test_nothing_configured_is_a_usage_error(run, tmp_path):
    done = run("run")
    assert done.returncode == 2 and "no adapters to scan" in done.stderr and "hf-ci init" in done.stderr


def test_patterns_find_adapters_and_one_without_any_stays(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter("x/deep/one")
    adapter("two")
    found = list_targets(["two", "*", "x/**", "y*"])
    assert [listed.target for listed in found] == ["two", "x/deep/one", "y*"]


def test_changed_since_a_commit(adapter, git, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, touched = adapter("old"), adapter("touched")
    git("add", "."), git("commit", "-qm", "first")
    (touched / "adapter_model.safetensors").write_bytes(b"other weights")
    (old / "README.md").write_text("a card is no weights")
    adapter("new")
    assert [name for name in ("old", "touched", "new", "org/model") if changed(name, "HEAD")] == ["touched", "new"]
    git("add", "."), git("commit", "-qm", "second")
    assert [name for name in ("old", "touched", "new") if changed(name, "HEAD~1")] == ["touched", "new"]
    assert not changed("touched", "HEAD")
    with pytest.raises(UsageError, match="no-such-ref"):
        changed("old", "no-such-ref")


def test_changed_since_leaves_out_and_says_so(run, adapter, git, tmp_path):
    adapter("old")
    configure(tmp_path, adapters=["old", "org/model"])
    git("add", "."), git("commit", "-qm", "first")
    done = run("run", "--changed-since", "HEAD")
    assert done.returncode == 0 and "2 adapters were left out" in done.stdout and "0 adapters" in done.stdout


def test_a_night_over_two_hundred_adapters(run, clip, tmp_path):
    """They share two base models and a dozen weights, most repos being copies; five are broken, one holds no prompt."""
    adapters = []
    for seed in range(12):
        folder = tmp_path / "made" / str(seed)
        made = made_adapter(clip, method="coop", names=("cat", "dog", "horse"), seed=seed)
        write_adapter(made, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"bases/{'ab'[seed % 2]}"
        (folder / "adapter_config.json").write_text(json.dumps(config))
        adapters.append(files_of(folder))
    broken = [
        adapters[0] | {"adapter_model.safetensors": b"damaged"},
        adapters[1] | {"adapter_config.json": b"{"},
        {name: data for name, data in adapters[2].items() if name != "adapter_model.safetensors"},
        adapters[3] | {"clip_prompt.json": b"{}"},
        adapters[4] | {"adapter_config.json": adapters[4]["adapter_config.json"].replace(b"bases/a", b"bases/none")},
    ]
    lora = {"adapter_config.json": b'{"peft_type": "LORA", "task_type": "CAUSAL_LM"}'}
    base = files_of(Path(EMBEDDED_FOLDER))
    configure(tmp_path, adapters=[{"org": "user", "exclude": ["*-draft"]}])
    with LoopbackHub() as hub:
        for name in "ab":
            hub.add_repo(f"bases/{name}", base)
        for i in range(200):
            hub.add_repo(f"user/adapter-{i:03}", broken[i // 40] if i % 40 == 7 else adapters[i % 12])
        hub.add_repo("user/lora", lora)
        hub.add_repo("user/unfinished-draft", broken[0])
        started = time.perf_counter()
        done = run("run", "--format", "json", env=hub.env(tmp_path / "home"), timeout=500)
        seconds = time.perf_counter() - started
        weights = [path for _, path in hub.requests if path.startswith("/bases/") and "model.safetensors" in path]
    report = json.loads(done.stdout)
    verdicts = [result["verdict"] for result in report["results"]]
    assert len(verdicts) == 200 and done.returncode in (1, 4)
    assert [i for i, v in enumerate(reversed(verdicts)) if v == "inconclusive"] == [7, 47, 87, 127, 167]
    (note,) = report["notes"]
    assert note.startswith("user/lora was left out") and "LORA" in note
    assert len([path for path in weights if "/resolve/" in path]) <= 4  # each base: a HEAD and a GET
    assert seconds < 240


def test_an_organisations_adapters_in_subfolders(monkeypatch, run, tmp_path):
    """Asked for through the real client, which reads its endpoint once, at import: so in a process of its own."""
    with LoopbackHub() as hub:
        hub.add_repo("user/both", {"adapter_config.json": b"{}", "pets/adapter_config.json": b"{}"})
        hub.add_repo("user/none", {"README.md": b"#"})
        hub.add_repo("other/one", {"adapter_config.json": b"{}"})
        configure(tmp_path, adapters=[{"org": "user", "match": "bo*"}])
        done = run("run", "--format", "json", env=hub.env(tmp_path / "home"))
    assert [note.split()[0] for note in json.loads(done.stdout)["notes"]] == ["user/both", "user/both:pets"]
    assert done.returncode == 3


def test_listed_is_what_it_says():
    assert list_targets(["a/b", "a/b"]) == [Listed("a/b")]
    assert Organisation(org="x").match == "*"
