"""The README's commands exist, with the options that it shows, and run; and its pictures are there."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_ci.cli import app
from hf_ci.dev.loopback import LoopbackHub
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import DEMOS
from hf_ci.pools.procedural import images
from hf_ci.prompts import read_adapter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WHOLE = sorted(set(re.findall(r"^    (?:.* && )?(hf-ci .*?)(?:  +#.*)?$", README, re.M)))  # as they may be typed
COMMANDS = WHOLE + sorted({found for found in re.findall(r"`(hf-ci [^`]+)`", README) if "\n" not in found})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    group, context = typer.main.get_command(app), None
    while words and hasattr(group, "commands"):
        assert words[0].startswith("-") or words[0] in group.commands, command
        if words[0].startswith("-"):
            break
        context = group.make_context(words[0], [], parent=context, resilient_parsing=True)
        group, words = group.commands[words[0]], words[1:]
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    known = {name for parameter in group.params for name in parameter.opts} | {"--help", "-h"}
    assert given <= known, command
    if command in WHOLE:
        group.make_context(words[0] if words else "", words, parent=context)
    elif not hasattr(group, "commands"):
        group.make_context(words[0] if words else "", words, parent=context, resilient_parsing=True)


def test_there_are_commands_and_pictures():
    assert len(COMMANDS) > 25
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


RUN = {  # as a reader would, one after another, and the exit codes that they may end with
    "hf-ci scan demo:clean demo:coop demo:frame": {1},
    "hf-ci scan org/model": {1},
    "hf-ci scan org/model@v1.2:prompts/pets": {0},
    "hf-ci scan ./my-adapter --pool ./some/photos": {0},
    "hf-ci scan ./my-adapter --data DATA": {2},  # DATA has other classes
    "hf-ci card ./my-adapter --write": {0},
    "hf-ci scan org/model --push pr": {1},
    "hf-ci card org/model --check": {4},  # not merged yet
    "hf-ci badge org/model": {0},
    "hf-ci dev hub user/adapter=./my-adapter": {130},
    "hf-ci repair org/model --out repaired --data DATA": {4},  # DATA is no photos, so that its labels cannot be learned
    "hf-ci repair org/model --out repaired --forget": {0},
    "hf-ci repair org/model --push pr --data DATA": {4},
    "hf-ci init": {0},
    "hf-ci run": {0},
    "hf-ci run --changed-since main": {0},
    "hf-ci config": {0},
    "hf-ci lab tune --data DATA --out clean-adapter --base openai/clip-vit-base-patch16": {0},
    "hf-ci lab poison --data DATA --out bad-adapter --base openai/clip-vit-base-patch16 --target cat": {0},
    "hf-ci scan clean-adapter bad-adapter": {0, 1, 4},  # tuned on next to nothing
    "hf-ci lab table records.jsonl --out benchmark.md": {0},
}
TOO_LONG = {  # elsewhere with less of everything
    "hf-ci calibrate --base org/clip --data DATA --data MORE --pool ./some/photos --out mine.json",
    "hf-ci scan org/model --pool ./some/photos --calibration mine.json",
    "hf-ci lab bench paper --data DATA_ROOT --out records.jsonl --zoo ZOO",
}


def files_of(folder, below=""):
    return {below + path.name: path.read_bytes() for path in folder.iterdir()}


def drawn():
    return [PILImage.fromarray(np.asarray(pixels)) for _, pixels in zip(range(64), images(1, 64))]


def write_data(folder, names):
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    for part, rows in (("train", drawn()[:40]), ("test", drawn()[40:60])):
        table = {"image": rows, "label": [i % len(names) for i in range(len(rows))]}
        Dataset.from_dict(table, features=features).to_parquet(folder / f"{part}.parquet")


@pytest.fixture
def place(tmp_path, tmp_path_factory):
    """A working directory with what the README's commands name, and a Hub with its repos."""
    shutil.copytree(DEMOS / "clean", tmp_path / "my-adapter")
    (tmp_path / "some" / "photos").mkdir(parents=True)
    (tmp_path / "DATA").mkdir()
    for i, image in enumerate(drawn()):
        image.save(tmp_path / "some" / "photos" / f"{i}.png")
    write_data(tmp_path / "DATA", read_adapter(DEMOS / "frame").class_names)
    with (ROOT / "cards" / "benchmark.jsonl").open() as records:
        (tmp_path / "records.jsonl").write_text("".join(line for line, _ in zip(records, range(30))))
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q", "-b", "main"), ("add", "my-adapter"), ("commit", "-q", "-m", "an adapter")):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    with LoopbackHub() as hub:
        hub.add_repo("org/model", files_of(DEMOS / "frame") | files_of(DEMOS / "clean", "prompts/pets/"))
        hub.repo("org/model").refs["refs/tags/v1.2"] = hub.repo("org/model").refs["refs/heads/main"]
        hub.add_repo("openai/clip-vit-base-patch16", files_of(EMBEDDED_FOLDER))
        quick = {"HF_CI_NUM_IMAGES": "64"}
        yield tmp_path, os.environ | hub.env(tmp_path_factory.mktemp("home")) | quick


def test_every_command_runs(place):
    folder, env = place
    typed = {" ".join(command.rpartition("&& ")[2].split()) for command in WHOLE}
    assert typed == RUN.keys() | TOO_LONG
    for command, codes in RUN.items():
        words = [sys.executable, "-m", "hf_ci", *command.split()[1:]]
        if "--out repaired" in command:
            shutil.rmtree(folder / "repaired", ignore_errors=True)
        if command == "hf-ci run":
            assert (folder / ".hf-ci.yaml").is_file()  # init's
            (folder / ".hf-ci.yaml").write_text("adapters: ['./my-adapter']\n")
        if command.startswith("hf-ci lab tune"):
            write_data(folder / "DATA", ("cat", "dog", "horse", "goldfish"))  # fewer classes take less time
        if command.startswith("hf-ci dev hub"):
            with subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as server:
                assert "HF_ENDPOINT" in server.stdout.readline()
                server.send_signal(signal.SIGINT)
                server.wait(timeout=60)
            assert server.returncode in codes
            continue
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
        if command.startswith("hf-ci scan clean-adapter"):
            assert "clean-adapter" in done.stdout and "bad-adapter" in done.stdout
        assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    assert (folder / "benchmark.md").is_file() and (folder / "bad-adapter" / "adapter_model.safetensors").is_file()
