"""The package as a whole: its names, its floors as ARCHITECTURE.md has them, its container image."""

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_ci

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def test_public_names():
    assert set(hf_ci.__all__) == {"__version__", "scan_targets", "ScanOptions", "Report", "ScanResult", "HfCiError"}
    assert all(getattr(hf_ci, name) for name in hf_ci.__all__)


def test_the_scanner_does_not_import_the_lab():
    code = "import hf_ci.scan, hf_ci.reports, sys; print([m for m in sys.modules if m.startswith('hf_ci.lab')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_on_the_command_line_are_those_of_the_code():
    """They are written out there, so that --help need not import torch."""
    from typing import get_args

    from hf_ci import cli
    from hf_ci.console import FormatName
    from hf_ci.detect import DETECTORS
    from hf_ci.lab import options as lab
    from hf_ci.lab.attacks import ATTACKS
    from hf_ci.reports import FORMATS

    assert set(get_args(FormatName)) == set(FORMATS)
    assert set(get_args(cli.DetectorName)) == set(DETECTORS) and cli.DEFAULT_DETECTOR in DETECTORS
    assert set(get_args(lab.AttackName)) == set(ATTACKS)
    assert hf_ci.ScanOptions().detector == cli.DEFAULT_DETECTOR


# ---------------------------------------------------------------- ARCHITECTURE.md

ROWS = re.findall(r"^\| (.*?) \| .* \| (yes|no) \|$", ARCHITECTURE.partition("## Floors")[2], re.M)
FLOOR = {room: number for number, (rooms, _) in enumerate(ROWS) for room in re.findall(r"`(\w+)`", rooms)}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "hf_ci").rglob("*.py"))
}
ASKS_WHEN_CALLED = ("hf_ci.settings", "hf_ci.detect")


def floor_of(module: str) -> int:
    """The row that a module stands in; the package itself, which loads nothing, below all."""
    parts = module.split(".")[1:]
    if not parts:
        return -1
    assert parts[0] in FLOOR, f"ARCHITECTURE.md has no floor for hf_ci/{parts[0]}"
    return FLOOR["cli"] if parts[-1] == "cli" else FLOOR[parts[0]]


def imports(path: Path) -> list[str]:
    """Of our own modules, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_ci":
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found += [name if name in MODULES else node.module for name in inner]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "hf_ci"]
    return found


def test_every_room_has_a_floor_and_every_floor_is_there():
    assert {name.split(".")[1] for name in MODULES if "." in name} == FLOOR.keys()


def test_no_floor_imports_from_one_below_it():
    pairs = {(module, name) for module, path in MODULES.items() for name in imports(path)}
    wrong = {(module, name) for module, name in pairs if floor_of(name) > floor_of(module)}
    assert len(pairs) > 200
    assert {(module, ".".join(name.split(".")[:2])) for module, name in wrong} == {ASKS_WHEN_CALLED}


def test_floors_without_torch_load_none():
    free = [
        name for name in MODULES if name != "hf_ci.__main__" and (floor_of(name) < 0 or ROWS[floor_of(name)][1] == "no")
    ]
    assert len(free) > 30
    code = f"import importlib, sys\nfor name in {free}:\n    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_commands_print():
    def prints(path):
        return [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write")
        ]

    where = {module for module, path in MODULES.items() if prints(path)}
    allowed = {FLOOR["console"], FLOOR["lab"], FLOOR["cli"]}
    assert "hf_ci.console" in where
    assert not {module for module in where if floor_of(module) not in allowed}


def test_what_architecture_names_is_there():
    named = re.findall(r"`(\w+)\(?\)?`\s+in\s+`(hf_ci/[\w/]+\.py)`", ARCHITECTURE)
    assert len(named) > 20
    for name, file in named:
        assert re.search(rf"^(?:    )?(?:def|class) {name}\b", (ROOT / file).read_text(), re.M), f"{name} in {file}"
    for path in re.findall(r"`(hf_ci/[\w/.]+)`", ARCHITECTURE):
        assert (ROOT / path).exists(), path


# ---------------------------------------------------------------- how it is installed

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SOURCES = [source for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M) for source in line.split()[:-1]]


def test_the_image_installs_as_the_readme_says():
    (line,) = re.findall(r"^RUN (pip install .*)$", DOCKERFILE, re.M)
    assert re.search(rf"^    {re.escape(line)} &&", (ROOT / "README.md").read_text(), re.M), line


def test_the_image_is_offline_and_of_an_ordinary_user():
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "HF_HUB_OFFLINE=1" in last and 'ENTRYPOINT ["hf-ci"]' in last
    (user,) = re.findall(r"^USER (\d+)$", last, re.M)
    assert int(user) > 0


def test_what_the_image_copies_is_let_through_and_is_enough_to_build(tmp_path):
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    for source in SOURCES:
        assert (ROOT / source).exists() and f"!{source}" in ignored
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored[1:] if pattern[0] != "!")
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and list((tmp_path / "dist").glob("*.whl")), done.stdout + done.stderr


def test_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    released = re.search(rf"^## \[{re.escape(hf_ci.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.M)
    coming = f"this will be {hf_ci.__version__}" in text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert released or coming


def test_ci_installs_what_the_project_asks_for():
    """Pinned with hashes; a dependency that is new, or newer, wants `make lock`."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.version import Version

    pinned = {}
    lock = (ROOT / "requirements-ci.txt").read_text()
    for entry in re.split(r"\n(?=\w)", lock):
        if found := re.match(r"([\w.-]+)(?:\[.*\])?==([^ \\;]+)", entry):
            assert "--hash=sha256:" in entry, found[1]
            pinned.setdefault(canonical(found[1]), []).append(Version(found[2]))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, build = settings["project"], settings["build-system"]["requires"]
    beside = [line for line in (ROOT / "requirements-ci.in").read_text().splitlines() if line[:1] not in ("", "#")]
    exact = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")]
    for text in project["dependencies"] + project["optional-dependencies"]["test"] + build + beside + exact:
        wanted = Requirement(text)
        versions = pinned.get(canonical(wanted.name), [])
        assert versions and all(version in wanted.specifier for version in versions), f"{text}: {versions}"


LOCKED = ("pip install --require-hashes -r requirements-ci.txt", "pip install --no-deps --no-build-isolation .")


def test_ci_installs_nothing_that_is_not_pinned():
    """Before every merge, that is: the weekly job is there for what is newest."""
    installs = []
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            lines = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
            found = [line for line in lines if re.search(r"\b(install|uvx?|pipx|npx)\b|\.ci/run", line)]
            if job.get("if") == "github.event_name == 'schedule'":
                assert (path.name, name, found) == ("test.yml", "newest", [".ci/run"])
            else:
                installs += found
    assert len(installs) >= 5 and set(installs) == set(LOCKED)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_knows_the_habits():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    habits = {line.split()[0] for line in listed.splitlines()}
    assert {"setup", "test", "quick", "lint", "docs", "figures", "image"} <= habits

    def line_of(habit):
        return subprocess.run(["make", "-n", habit], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert all(line_of(habit) for habit in habits)
    files = re.findall(r"tests/\S+", line_of("quick"))
    assert files and all((ROOT / file).exists() for file in files)
    assert line_of("setup").strip() == "pip install -c constraints.txt -e '.[test]'"
