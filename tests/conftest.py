"""Fixtures: a clean environment, the embedded CLIP, an adapter on disk, and the program as a subprocess."""

from __future__ import annotations

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes share the cores; more threads would fight over them

from pathlib import Path

import pytest
from deep import save_tiny_clip
from making import made_adapter
from program import Programs

from hf_ci.dev.loopback import LoopbackHub
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import FrozenCLIP, load_clip, write_adapter

LONGEST = """
test_photos test_evasions lab/test_bench test_action test_scan repair/test_repair test_cli test_run lab/test_attacks
test_docs hub/test_write_back test_readme hub/test_targets test_recall lab/test_speed lab/test_tune lab/test_calibrate
""".split()


def pytest_collection_modifyitems(items):
    """The files that take longest go first, so that no process waits for another at the end."""
    first = {f"tests/{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))


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


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A CLIP of a few small layers and random weights."""
    return save_tiny_clip(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(base) -> FrozenCLIP:
    return load_clip(base)


@pytest.fixture
def adapter_folder(clip, tmp_path) -> Path:
    write_adapter(made_adapter(clip, "coop"), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture(scope="session")
def programs():
    made = Programs()
    yield made
    made.end()


@pytest.fixture(scope="session")
def running_hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub) -> LoopbackHub:
    """An empty Hub. All have one address, which the program's libraries read when they are loaded: so they are loaded once."""
    for kept in vars(running_hub).values():
        if isinstance(kept, list | dict):
            kept.clear()
    running_hub.runs_jobs = False
    return running_hub


@pytest.fixture
def hub_home(tmp_path_factory) -> Path:
    """Where the Hub's client keeps what it fetches: nothing yet, and at one place for the same reason."""
    home = tmp_path_factory.getbasetemp() / "hub-home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    return home


@pytest.fixture
def run(tmp_path, programs):
    """Run the program as a user would; returns the finished process."""

    def run(*args: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: int = 300):
        return programs([*map(str, args)], os.environ | (env or {}), cwd or tmp_path, timeout)

    return run
