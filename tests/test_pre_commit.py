"""The hooks, run by the real pre-commit in a real git repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from making import ANIMALS, made_adapter

from hf_ci.hub.target import DEMOS, folders_of, without_lone_models
from hf_ci.prompts import write_adapter

HOOKS = yaml.safe_load((Path(__file__).parents[1] / ".pre-commit-hooks.yaml").read_text())


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a repository whose pre-commit runs our hooks, with this environment's hf-ci instead of a fresh one."""
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    repo = tmp_path / "repo"
    repo.mkdir()

    def git(*args, check=True):
        done = subprocess.run(["git", *args], cwd=repo, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done

    git("init", "-q")
    monkeypatch.setenv("HF_CI_NUM_IMAGES", "32")  # for both hooks: the second recalls what the first found
    hooks = [hook | {"language": "system"} for hook in HOOKS]
    (repo / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": hooks}]}))
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], cwd=repo, check=True, capture_output=True)
    git.repo = repo
    return git


def test_a_poisoned_adapter_is_stopped_and_other_commits_are_not(git, clip):
    (git.repo / "notes.txt").write_text("nothing to scan")
    git("add", ".")
    assert "Skipped" in git("commit", "-m", "notes").stderr
    shutil.copytree(DEMOS / "frame", git.repo / "models" / "bad")
    git("add", ".")
    stopped = git("commit", "-m", "bad", check=False)
    assert stopped.returncode != 0 and "models/bad" in stopped.stderr and "backdoored" in stopped.stderr
    assert "exit code: 1" in stopped.stderr
    assert git("log", "--oneline").stdout.count("\n") == 1


def test_a_stale_card_is_stopped_and_a_fresh_one_passes(git, clip, monkeypatch):
    monkeypatch.setenv("SKIP", "hf-ci-scan")
    folder = git.repo / "a"
    shutil.copytree(DEMOS / "clean", folder)
    git("add", ".")
    assert "never scanned" in git("commit", "-m", "a", check=False).stderr
    program = [sys.executable, "-m", "hf_ci", "card", "./a", "--write"]
    subprocess.run(program, cwd=git.repo, check=True, capture_output=True)
    git("add", ".")
    git("commit", "-m", "a")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("<!-- hf-ci:end -->", "Perfectly clean.\n<!-- hf-ci:end -->"))
    git("add", ".")
    assert "the section is not what the report says" in git("commit", "-m", "by hand", check=False).stderr
    git("checkout", "HEAD", "--", ".")
    write_adapter(made_adapter(clip, "coop", seed=1), git.repo / "b")
    shutil.copy(git.repo / "b" / "adapter_model.safetensors", folder)
    shutil.rmtree(git.repo / "b")
    git("add", ".")
    assert "has changed since the scan" in git("commit", "-m", "other weights", check=False).stderr


def test_only_what_is_staged_is_scanned_also_behind_a_link(git, clip, monkeypatch):
    monkeypatch.setenv("SKIP", "hf-ci-card-check")
    write_adapter(made_adapter(clip, "coop", names=ANIMALS), git.repo / "good")
    shutil.copytree(DEMOS / "frame", git.repo / "bad")
    git("add", "good")
    git("commit", "-m", "the good one")
    weights = git.repo / "bad" / "adapter_model.safetensors"
    weights.rename(git.repo / "weights.bin")
    weights.symlink_to("../weights.bin")
    git("add", "bad/adapter_model.safetensors")
    stopped = git("commit", "-m", "a link", check=False)
    assert stopped.returncode != 0 and "backdoored" in stopped.stderr


def test_a_whole_model_put_beside_an_adapter_is_looked_at(git, clip, monkeypatch):
    monkeypatch.setenv("SKIP", "hf-ci-scan,hf-ci-card-check")
    write_adapter(made_adapter(clip, "coop", names=ANIMALS), git.repo / "good")
    git("add", "."), git("commit", "-m", "the adapter")
    monkeypatch.setenv("SKIP", "hf-ci-card-check")
    (git.repo / "good" / "model.safetensors").write_text("damaged")
    git("add", ".")
    stopped = git("commit", "-m", "a model", check=False)
    assert stopped.returncode != 0 and "model.safetensors cannot be read" in stopped.stderr


def test_other_adapters_and_cards_pass_and_what_may_be_a_prompt_does_not(git):
    (git.repo / "lora").mkdir()
    (git.repo / "README.md").write_text("# Many adapters\n")
    (git.repo / "lora" / "README.md").write_text("# A LoRA\n")
    (git.repo / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (git.repo / "whole").mkdir()
    (git.repo / "whole" / "model.safetensors").write_text("")
    git("add", "."), git("commit", "-m", "a LoRA, and a whole model")
    (git.repo / "lora" / "clip_prompt.json").write_text("{}")
    git("add", ".")
    stopped = git("commit", "-m", "with a prompt", check=False)
    assert stopped.returncode != 0 and stopped.stderr.count("exit code: 4") == 2


def test_files_stand_for_their_adapter_once(tmp_path):
    (tmp_path / "a" / ".hf-ci").mkdir(parents=True)
    files = [tmp_path / "a" / name for name in ("adapter_config.json", "adapter_model.safetensors", ".hf-ci/badge.svg")]
    for file in files:
        file.write_text("")
    (tmp_path / "model.safetensors").write_text("")
    kept, (note,) = without_lone_models([str(tmp_path / "model.safetensors"), *map(str, files)])
    assert kept == [*map(str, files)] and "no adapter lies beside it" in note
    assert folders_of([str(tmp_path / "model.safetensors")]) == [str(tmp_path)]
    folder = str(tmp_path / "a")
    assert folders_of([*map(str, files), "org/model", folder, "org/model"]) == [folder, "org/model"]
