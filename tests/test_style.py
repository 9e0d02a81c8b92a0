"""The code is as the rules of ruff and mypy in pyproject.toml want it, and our own habits hold it there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff_finds_nothing(command):
    done = subprocess.run([BIN / "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_nothing():
    """Some twenty seconds of one core, a second where .mypy_cache holds what an earlier run found."""
    done = subprocess.run([BIN / "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_finds_nothing_in_what_updates_and_hooks():
    """Workflows are in tests/test_action.py."""
    files = [".github/dependabot.yml", ".pre-commit-config.yaml", ".pre-commit-hooks.yaml"]
    command = [BIN / "zizmor", "--offline", "--strict-collection", "--persona=auditor", "--no-progress", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "No findings" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def commit(tmp_path):
    """Commits files to a repository that has our hooks; what pre-commit said, and whether it let them pass."""
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    me = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PRE_COMMIT_HOME": str(tmp_path.with_suffix(".home"))}

    def call(*command):
        return subprocess.run(command, cwd=tmp_path, env=os.environ | me | path, capture_output=True, text=True)

    def commit(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        assert call("git", "add", ".").returncode == 0
        done = call("git", "commit", "-m", "a change")
        return done.returncode == 0, done.stdout + done.stderr

    assert call("git", "init", "-q").returncode == 0
    installed = call(sys.executable, "-m", "pre_commit", "install")
    assert installed.returncode == 0, installed.stderr
    return commit


def test_our_own_hooks_let_good_files_pass_and_stop_others(commit):
    passed, said = commit(good='"""Good."""\n\nx = 1\n')
    assert passed, said
    for bad, found in (
        ("import os\nx = undefined\n", "F821"),  # what ruff cannot mend
        ("x = {  'a':1 }\n", "1 file reformatted"),
        ('"""\nblank at the end: \n"""\n', "trailing whitespace"),
    ):
        passed, said = commit(bad=bad)
        assert not passed and found in said, said


def test_forms_are_such():
    """GitHub shows a broken form to nobody, and says so to nobody."""
    assert {path.stem for path in FORMS} == {"bug", "false-alarm", "missed-backdoor", "idea", "config"}
    for path in FORMS:
        form = yaml.safe_load(path.read_text())
        if path.stem == "config":
            assert form == {"blank_issues_enabled": False}
            continue
        assert {"name", "description", "title", "labels", "body"} == form.keys()
        asked = [part for part in form["body"] if part["type"] != "markdown"]
        ids = [part["id"] for part in asked]
        assert asked and len(set(ids)) == len(ids)
        for part in form["body"]:
            assert part["type"] in ("markdown", "textarea", "input", "dropdown")
            assert part.keys() <= {"type", "id", "attributes", "validations"}
            assert part["attributes"].get("value" if part["type"] == "markdown" else "label")
            options = part["attributes"].get("options", [])
            assert bool(options) == (part["type"] == "dropdown") and all(isinstance(option, str) for option in options)
