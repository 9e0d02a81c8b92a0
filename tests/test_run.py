"""hf-ci run: patterns of folders, organisations on the Hub, what changed since a commit."""

import json
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from making import ANIMALS, made_adapter

from hf_ci.config import Organisation
from hf_ci.errors import UsageError
from hf_ci.hub.target import DEMOS
from hf_ci.listing import Listed, changed_since, list_targets
from hf_ci.prompts import write_adapter

QUICK = {"num-images": 32}


def configure(folder, **sections):
    (folder / ".hf-ci.yaml").write_text(yaml.safe_dump({"scan": QUICK} | sections))


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def adapter(clip, tmp_path):
    def adapter(name, **more):
        write_adapter(made_adapter(clip, **{"method": "coop"} | more), tmp_path / name)
        return tmp_path / name

    return adapter


@pytest.fixture
def git(tmp_path):
    def git(*command, within=tmp_path):
        me = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *me, *command], cwd=within, check=True, capture_output=True)

    git("init", "-q")
    return git


def test_all_are_scanned_past_failures_with_a_line_each_and_one_code(run, adapter, tmp_path):
    adapter("models/a")
    shutil.copytree(adapter("models/b"), tmp_path / "models" / "broken")
    (tmp_path / "models" / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "models" / "notes").mkdir()
    configure(tmp_path, adapters=["models/*", "./models/a", "nowhere/*"])
    done = run("run", "--output", "json=report.json")
    lines = done.stdout.splitlines()
    assert [re.sub(r"\.{3,}", " ", line) for line in lines[:4]] == [
        "./models/a clean",
        "./models/b clean",
        "./models/broken inconclusive",
        "nowhere/* inconclusive",
    ]
    assert {len(line) for line in lines[:4]} == {79}
    assert lines[-1] == "4 scanned: 2 clean, 2 inconclusive" and done.returncode == 4
    assert run("run", "--quiet").stdout.splitlines() == [*lines[:4], lines[-1]]
    report = json.loads((tmp_path / "report.json").read_text())
    broken = next(r for r in report["results"] if r["target"] == "./models/broken")
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
    found = list_targets(["./two", "*", "x/**", "y*"])
    assert [listed.target for listed in found] == ["./two", "./x/deep/one", "y*"]


def changed(*targets, ref="HEAD"):
    return [found.target for found in changed_since([Listed(target) for target in targets], ref)]


def test_changed_since_a_commit(adapter, git, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, touched = adapter("old"), adapter("deep/er/touched")
    git("add", "."), git("commit", "-qm", "first")
    (touched / "adapter_model.safetensors").write_bytes(b"other weights")
    (old / "README.md").write_text("a card is no weights")
    adapter("new")
    listed = ("old", "./deep/er/touched", "new", "org/model", "demo:clean")
    assert changed(*listed) == ["./deep/er/touched", "new"]
    git("add", "."), git("commit", "-qm", "second")
    assert changed(*listed, ref="HEAD~1") == ["./deep/er/touched", "new"]
    assert changed(*listed) == []
    monkeypatch.chdir(tmp_path / "deep")
    assert changed("er/touched", "../new", ref="HEAD~1") == ["er/touched", "../new"]
    for ref in ("no-such-ref", "--output=x"):
        with pytest.raises(UsageError, match=ref):
            changed("old", ref=ref)
    assert not list(tmp_path.rglob("x"))


def test_what_git_cannot_tell_of_counts_as_changed(adapter, git, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter("plain"), adapter("elsewhere/target")
    nested = adapter("nested/one")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "its own"]):
        git(*command, within=nested.parent)
    (tmp_path / "link").symlink_to("elsewhere")
    within = adapter("within")
    (within / "adapter_model.safetensors").unlink()
    (within / "adapter_model.safetensors").symlink_to("../plain/adapter_model.safetensors")
    git("add", "."), git("commit", "-qm", "first")
    listed = ["plain", "./link/target", "within", "./nested/one", "/tmp", "gone", "./gone", "models/*"]
    assert changed(*listed) == ["./link/target", "within", "./nested/one", "/tmp", "gone", "./gone", "models/*"]


def test_an_unlisted_adapter_behind_a_link_counts_as_changed(adapter, git, tmp_path, monkeypatch):
    """The link is what it was, its target need not be."""
    monkeypatch.chdir(tmp_path)
    weights = adapter("linked") / "adapter_model.safetensors"
    weights.rename(tmp_path / "weights.bin")
    weights.symlink_to("../weights.bin")
    git("add", "."), git("commit", "-qm", "first")
    (tmp_path / "weights.bin").write_bytes(b"others")
    assert changed() == ["./linked"]


@pytest.mark.parametrize("ref", ["HEAD~1..HEAD", "HEAD..HEAD~1", "^HEAD"])
def test_two_commits_are_no_commit_to_compare_with(ref, adapter, git, tmp_path, monkeypatch):
    """git would compare them with each other, and not look at what lies here."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        adapter(name), git("add", "."), git("commit", "-qm", name)
    with pytest.raises(UsageError, match=re.escape(ref)):
        changed(ref=ref)


def test_without_git_nothing_is_compared(run, tmp_path):
    (tmp_path / "a").mkdir()
    configure(tmp_path, adapters=["./a"])
    done = run("run", "--changed-since", "HEAD", env={"PATH": str(tmp_path)})
    assert done.returncode == 2 and "git cannot be run" in done.stderr


def test_what_has_changed_is_scanned_listed_or_not(adapter, git, run, tmp_path):
    adapter("old")
    configure(tmp_path, adapters=["old"])
    git("add", "."), git("commit", "-qm", "first")
    adapter("hidden/new")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    done = run("run", "--changed-since", "HEAD", "--format", "json")
    report = json.loads(done.stdout)
    assert [r["target"] for r in report["results"]] == ["./hidden/new"] and done.returncode == 0
    assert "./hidden/new has changed and is in no entry of adapters" in report["notes"]
    assert any(note.startswith("./lora was left out") for note in report["notes"])


def test_what_may_be_a_prompt_is_never_left_out(adapter, git, run, hub, hub_home, tmp_path):
    """A field of the config that a loader ignores would otherwise take a poisoned adapter out of the run."""
    configure(tmp_path, adapters=["nothing/*"])
    git("add", "."), git("commit", "-qm", "first")
    shutil.copytree(DEMOS / "frame", tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / "adapter_config.json").read_text()) | {"task_type": "TOKEN_CLS"}
    (tmp_path / "bad" / "adapter_config.json").write_text(json.dumps(config))
    done = run("run", "--changed-since", "HEAD", "--format", "json")
    found = {r["target"]: r["exit_code"] for r in json.loads(done.stdout)["results"]}
    assert done.returncode == 4 and found["./bad"] == 4
    hub.add_repo("user/bad", files_of(tmp_path / "bad"))
    configure(tmp_path, adapters=[{"org": "user"}])
    done = run("run", "--format", "json", env=hub.env(hub_home))
    assert done.returncode == 4 and json.loads(done.stdout)["results"][0]["target"] == "user/bad"


def test_a_bare_repository_in_an_adapters_folder_runs_nothing(adapter, git, run, tmp_path):
    """git takes a folder with HEAD, objects and refs for a repository, and runs what its config names as fsmonitor."""
    adapter("old"), configure(tmp_path, adapters=["./trap"])
    git("add", "."), git("commit", "-qm", "first")
    trap = adapter("trap")
    subprocess.run(["git", "init", "-q", "--bare", "."], cwd=trap, check=True)
    config = "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = .\n"
    (trap / "config").write_text(f'{config}\tfsmonitor = "touch {tmp_path}/pwned; false"\n')
    subprocess.run(["git", "status"], cwd=trap, capture_output=True)
    assert (tmp_path / "pwned").exists()  # the trap works
    (tmp_path / "pwned").unlink()
    done = run("run", "--changed-since", "HEAD")
    assert "./trap" in done.stdout and done.returncode == 0 and not (tmp_path / "pwned").exists()


def test_changed_since_leaves_out_and_says_so(run, adapter, git, tmp_path):
    adapter("old")
    configure(tmp_path, adapters=["old", "org/model"])
    git("add", "."), git("commit", "-qm", "first")
    done = run("run", "--changed-since", "HEAD")
    assert done.returncode == 0 and "1 adapters were left out" in done.stdout and "0 scanned" in done.stdout
    assert "Note: org/model was left out: it is on the Hub, and not compared with HEAD" in done.stdout


def test_a_night_over_two_hundred_adapters(run, tiny, base, hub, hub_home, tmp_path):
    """They share two base models and six weights, most repos being copies; five are broken, one holds no prompt."""
    adapters = []
    for seed in range(6):
        folder = tmp_path / "made" / str(seed)
        made = made_adapter(tiny, method="coop", names=ANIMALS[:4], seed=seed)
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
    quick = QUICK | {"detector": "clip-inspector", "k": 1e9}  # the verdicts are no point here
    configure(tmp_path, scan=quick, adapters=[{"org": "user", "exclude": ["*-draft"]}])
    for name in "ab":
        hub.add_repo(f"bases/{name}", files_of(base))
    for i in range(200):
        hub.add_repo(f"user/adapter-{i:03}", broken[i // 40] if i % 40 == 7 else adapters[i % 6])
    hub.add_repo("user/lora", lora)
    hub.add_repo("user/unfinished-draft", broken[0])
    started = time.perf_counter()
    done = run("run", "--format", "json", env=hub.env(hub_home), timeout=500)
    seconds = time.perf_counter() - started
    weights = [path for _, path in hub.requests if path.startswith("/bases/") and "model.safetensors" in path]
    report = json.loads(done.stdout)
    verdicts = [result["verdict"] for result in report["results"]]
    assert len(verdicts) == 200
    assert done.returncode == 4 and set(verdicts) == {"clean", "inconclusive"}
    assert [i for i, v in enumerate(reversed(verdicts)) if v == "inconclusive"] == [7, 47, 87, 127, 167]
    (note,) = report["notes"]
    assert note.startswith("user/lora was left out") and "LORA" in note
    assert len([path for path in weights if "/resolve/" in path]) <= 4  # each base: a HEAD and a GET
    assert seconds < 240


def test_an_organisations_adapters_in_subfolders(monkeypatch, run, hub, hub_home, tmp_path):
    """Asked for through the real client, which reads its endpoint once, at import: so in a process of its own."""
    hub.add_repo("user/both", {"adapter_config.json": b"{}", "pets/adapter_config.json": b"{}"})
    hub.add_repo("user/none", {"README.md": b"#"})
    hub.add_repo("other/one", {"adapter_config.json": b"{}"})
    configure(tmp_path, adapters=[{"org": "user", "match": "bo*"}])
    done = run("run", "--format", "json", env=hub.env(hub_home))
    assert [note.split()[0] for note in json.loads(done.stdout)["notes"]] == ["user/both", "user/both:pets"]
    assert done.returncode == 3


def test_an_organisation_that_yields_nothing_or_cannot_be_asked_is_no_clean_run(run, adapter, hub, hub_home, tmp_path):
    adapter("good")
    hub.add_repo("user/none", {"README.md": b"#"})
    configure(tmp_path, adapters=[{"org": "user"}, {"org": "nobody"}, "./good"])
    done = run("run", "--format", "json", env=hub.env(hub_home))
    found = json.loads(done.stdout)["results"]
    assert [(r["target"], r["exit_code"]) for r in found] == [("org: user", 3), ("org: nobody", 3), ("./good", 0)]
    assert done.returncode == 4
    hub.add_repo("user/a", {"odd@name/adapter_config.json": b"{}"})
    done = run("run", "--format", "json", env=hub.env(hub_home))
    odd = json.loads(done.stdout)["results"][0]
    assert odd["target"] == "user/a:odd@name" and odd["exit_code"] == 3
    configure(tmp_path, adapters=[{"org": "user"}, "./good"])
    gone = hub.env(hub_home) | {"HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody is there; the client waits
    done = run("run", "--format", "json", env=gone)
    found = json.loads(done.stdout)["results"]
    assert [r["verdict"] for r in found] == ["inconclusive", "clean"] and done.returncode == 4


def test_an_organisation_is_the_hubs_and_what_it_does_not_tell_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "hidden").mkdir(parents=True)
    files = [SimpleNamespace(rfilename="adapter_config.json")]
    models = [SimpleNamespace(id="org/hidden", siblings=files), SimpleNamespace(id="org/silent", siblings=None)]
    monkeypatch.setattr("hf_ci.listing.api", lambda: SimpleNamespace(list_models=lambda **_: models))
    hidden, silent = list_targets([Organisation(org="org")])
    assert hidden == Listed("hf://org/hidden", optional=True)
    assert silent.target == "org/silent" and "does not say which files" in str(silent.failure)


def test_torchrun_prints_a_run_once(adapter, tmp_path):
    adapter("a")
    configure(tmp_path, adapters=["./a"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launcher, "-m", "hf_ci", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("./a...") == 1 and done.stdout.count("1 scanned:") == 1, done.stderr


def test_a_target_is_listed_once_and_has_to_be_one_if_it_is_named(monkeypatch):
    monkeypatch.setattr("hf_ci.listing.organisation", lambda entry: iter([Listed("a/b", optional=True)]))
    for entries in ((Organisation(org="a"), "a/b"), ("a/b", Organisation(org="a")), ("a/b", "a/b")):
        assert list_targets(entries) == [Listed("a/b")]
