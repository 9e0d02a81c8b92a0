"""Fixtures: a clean environment, the embedded CLIP, an adapter on disk, and the program as a subprocess."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share the cores; more threads would fight over them

import subprocess
import sys
from pathlib import Path

import pytest
from making import made_adapter
from program import Program

from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import FrozenCLIP, load_clip, write_adapter


def pytest_collection_modifyitems(items):
    """What takes longest goes first, so that no process waits for another at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/test_readme.py"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path_factory, shared_cache):
    for name in [n for n in os.environ if n.startswith("HF_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "hf-home"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """One user's cache for all tests, in every process: what one has inverted, another need not."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path_factory) -> Path:
    """For what is about the cache itself, or must be computed on the spot."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def clip() -> FrozenCLIP:
    return load_clip(EMBEDDED_FOLDER)


@pytest.fixture
def adapter_folder(clip, tmp_path) -> Path:
    write_adapter(made_adapter(clip, "coop"), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def loaded():
    """The program with its libraries loaded, once a test asks for it."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.end()


@pytest.fixture
def run(tmp_path, loaded):
    """Run the program as a user would; returns the finished process."""
    if not loaded:
        loaded.append(Program(os.environ))

    def run(*args: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: int = 300):
        words, env, cwd = [*map(str, args)], os.environ | (env or {}), cwd or tmp_path
        if loaded[0].suits(env):
            return loaded[0](words, env, cwd, timeout)
        command = [sys.executable, "-m", "hf_ci", *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)

    return run
