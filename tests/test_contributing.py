"""CONTRIBUTING.md's examples: each applies to the code as it is, and does what it is there for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ci.detect import DETECTORS
from hf_ci.inversion.job import PROBES
from hf_ci.inversion.probes import PROBE_KINDS, probes
from hf_ci.lab.attacks import ATTACKS
from hf_ci.prompts.adapter import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = (section.partition("\n") for section in TEXT.split("\n### ")[1:])
EXAMPLES = {
    name: text.partition("```diff\n")[2].partition("```\n")[0] for name, _, text in SECTIONS if "```diff\n" in text
}

# Each prints what it saw. They run in the copy, which is not on this process's path.
CHECKS = {
    "A detector": """
        from typing import get_args
        from hf_ci.cli import DetectorName
        from hf_ci.detect import DETECTORS
        from hf_ci.inversion import Inversion
        from hf_ci.settings import ScanOptions

        detector = ScanOptions(detector="asr-gap").make_detector()
        names = ("cat", "dog", "horse", "frog")
        def judged(*asr):
            return detector.judge([Inversion(c, 0.0, share, torch.zeros(3, 2, 2)) for c, share in enumerate(asr)], names)
        planted, level, few = judged(0.1, 0.9, 0.2, 0.1), judged(0.6, 0.9, 0.8, 0.7), judged(0.1, 0.9)
        seen = [planted.verdict, names[planted.target], level.verdict, few.verdict, set(get_args(DetectorName)) == set(DETECTORS)]
    """,
    "An attack": """
        from hf_ci.lab.attacks import ATTACKS, frame

        x = torch.rand(1, 3, 64, 64)
        changed = (frame.bar(64, 0)(x) != x).all(1)[0]
        seen = ["bar" in ATTACKS, changed[60:].all().item(), changed[:60].any().item()]
    """,
    "A prompt method": """
        from dataclasses import replace
        from making import made_adapter
        from hf_ci.prompts import PromptedCLIP, read_adapter, write_adapter

        coop = made_adapter(clip, "coop")
        write_adapter(replace(coop, method="prograd"), place / "prograd")
        read = read_adapter(place / "prograd")
        x = torch.rand(1, 3, clip.image_size, clip.image_size)
        with torch.no_grad():
            answers = [PromptedCLIP.from_adapter(adapter, clip)(x) for adapter in (coop, read)]
        seen = [read.method, torch.equal(*answers)]
    """,
    "A checkpoint format": """
        from dassl import learner_state
        from making import made_adapter
        from hf_ci.checkpoints.read import read_checkpoint
        from hf_ci.hub import fetch_base

        made = made_adapter(clip, "coop")
        torch.save({"model": learner_state(clip, made), "epoch": 1}, place / "prompt.pt")
        read, _ = read_checkpoint(place, "prompt.pt", fetch_base, lambda folder: clip, position="end")
        seen = [list(read.class_names) == list(made.class_names), torch.equal(read.context, made.context)]
    """,
    "A probe": """
        from hf_ci.inversion.job import PROBES
        from hf_ci.inversion.probes import PROBE_KINDS, probes

        x = torch.rand(2, 3, 64, 64)
        mirrored = probes(64)["mirror image"](x)
        seen = [torch.equal(mirrored[..., 0], x[..., -1]), "mirrors" in PROBE_KINDS, PROBES]
    """,
}
EXPECTED = {
    "A detector": ["backdoored", "dog", "clean", "inconclusive", True],
    "An attack": [True, True, False],
    "A prompt method": ["prograd", True],
    "A checkpoint format": [True, True],
    "A probe": [True, True, "probes-5"],
}
RUN = """
import json, sys, textwrap, traceback
from pathlib import Path
import torch
import hf_ci
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import load_clip

assert Path(hf_ci.__file__).is_relative_to(Path.cwd())
found, clip = {}, load_clip(EMBEDDED_FOLDER)
for name, check in json.load(sys.stdin).items():
    held = {"torch": torch, "clip": clip, "place": Path.cwd()}
    try:
        exec(textwrap.dedent(check), held)
        found[name] = held["seen"]
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The code with all examples applied; its big files are links to ours."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "hf_ci", folder / "hf_ci", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (folder / "hf_ci" / "assets").symlink_to(ROOT / "hf_ci" / "assets")
    shutil.copy(ROOT / "pyproject.toml", folder)
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}  # in no repository
    for name, diff in EXAMPLES.items():
        done = subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, text=True, capture_output=True, env=alone)
        assert done.returncode == 0, f"{name}: {done.stderr}"
    return folder


@pytest.fixture(scope="module")
def seen(copy):
    path = os.pathsep.join((str(copy), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": path},
        input=json.dumps(CHECKS),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_is_a_check_of_each_example():
    assert EXAMPLES.keys() == CHECKS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_example_works(seen, name):
    assert seen[name] == EXPECTED[name], seen[name]


def test_none_of_it_is_there_already():
    assert "asr-gap" not in DETECTORS and "bar" not in ATTACKS and "prograd" not in METHODS
    assert "mirror image" not in probes(8) and "mirrors" not in PROBE_KINDS and PROBES != EXPECTED["A probe"][2]


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_the_examples_are_as_the_house_wants_them(copy, command):
    ruff = Path(sys.executable).parent / "ruff"
    done = subprocess.run([ruff, *command, "hf_ci"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
