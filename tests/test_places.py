"""What is named and is not there is told at once: nothing is loaded for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_ci import ScanOptions
from hf_ci.errors import UsageError
from hf_ci.hub.target import DEMOS
from hf_ci.places import check_places

PROGRAM = (
    "import sys, json\n"
    "from hf_ci.cli import main\n"
    "sys.argv = ['hf-ci', *json.loads(sys.argv[1])]\n"
    "try: main()\n"
    "except SystemExit as done: print(done.code, 'torch' in sys.modules)\n"
)


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """A working directory with what is at fault in it."""
    for name in ("empty", "zoo/adapter", "photos", "base"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "file").touch()
    for name, spoiled in (("config", "adapter_config.json"), ("names", "clip_prompt.json")):
        (tmp_path / name).mkdir()
        for file in (DEMOS / "clean").iterdir():
            (tmp_path / name / file.name).write_bytes(b"{" if file.name == spoiled else file.read_bytes())
    (tmp_path / "list.yaml").write_text(
        "scan:\n  seed: 0\nadapters:\n  # zoo/adapter\n  - demo:clean\n  - zoo/adapter\n"
    )
    (tmp_path / "gone.yaml").write_text("adapters: ['demo:clean', './gone']\n")
    return tmp_path


@pytest.mark.parametrize(
    "command, code, message",
    [
        ("scan -", 2, "'-' is no folder or checkpoint here"),
        ("scan demo:clean ./nowhere", 2, "'./nowhere' is no folder"),
        ("scan ./adapter.safetensorz", 2, "is no folder"),
        (
            "scan zoo/adapter",
            2,
            "'zoo/adapter' is a folder here and may be a repo on the Hub (write ./zoo/adapter or hf",
        ),
        ("scan zoo/adapter/", 3, "no adapter found"),
        ("scan empty", 3, "no adapter found"),
        ("scan ./config", 4, "adapter_config.json is not readable JSON"),
        ("scan ./names", 4, "clip_prompt.json is not readable JSON"),
        ("scan demo:clean --base zoo/adapter", 2, "'zoo/adapter' is a folder here and may be a repo"),
        ("scan demo:clean --base ./nowhere", 2, "--base ./nowhere: no such folder"),
        ("scan demo:clean --base ./base", 2, "--base ./base: there is no model.safetensors"),
        ("scan demo:clean --pool photos", 2, "'photos' is a folder here and may be a repo on the Hub"),
        ("scan demo:clean --pool ./nowhere", 2, "--pool ./nowhere: no such file or folder"),
        ("scan demo:clean --pool ./empty", 2, "--pool ./empty: the folder holds no images, and no parquet files"),
        ("scan demo:clean --data ./nowhere", 2, "--data ./nowhere: no such file or folder"),
        ("scan demo:clean --classes nowhere.txt", 2, "No such file or directory"),
        ("scan demo:clean --calibration nowhere.json", 2, "--calibration nowhere.json: No such file"),
        ("scan demo:clean --device warp", 2, "--device warp: no such device"),
        ("scan demo:clean --cache file", 2, "--cache file: cannot be written"),
        ("scan demo:clean --save-trigger file/in", 2, "--save-trigger file/in: cannot be written"),
        ("scan demo:clean --output json=nowhere/r.json", 2, "cannot write in"),
        ("--config list.yaml run", 2, "list.yaml, line 6: 'zoo/adapter' is a folder here and may be a repo"),
        ("--config gone.yaml run", 2, "gone.yaml, line 1: './gone' is no folder"),
        ("card ./nowhere", 2, "'./nowhere' is no folder"),
        ("badge ./nowhere", 2, "'./nowhere' is no folder"),
        ("explain ./nowhere", 2, "'./nowhere' is no folder"),
        ("convert ./nowhere --out new", 2, "'./nowhere' is no folder"),
        ("repair ./nowhere --out new", 2, "'./nowhere' is no folder"),
        ("repair demo:frame --out new --data ./nowhere", 2, "--data ./nowhere: no such file or folder"),
        ("calibrate --base ./nowhere --data photos --out c.json", 2, "--base ./nowhere: no such folder"),
        ("calibrate --base hf-ci-clip-64 --data ./nowhere --out c.json", 2, "--data ./nowhere: no such file or folder"),
    ],
)
def test_it_is_told_without_torch(command, code, message, spoilt):
    words = [sys.executable, "-c", PROGRAM, json.dumps(command.split())]
    done = subprocess.run(words, cwd=spoilt, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{code} False", done.stdout + done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert message in said and "Traceback" not in said and not (spoilt / "new").exists()
    assert code != 2 or done.stderr.count("\n") == 1


def test_what_is_there_or_may_be_on_the_hub_is_not_refused(spoilt, monkeypatch):
    monkeypatch.chdir(spoilt)
    for fine in (
        {"base": "openai/clip-vit-base-patch16@main"},
        {"base": "hf-ci-clip-64"},
        {"base": "hf://zoo/adapter"},
        {"pool": "cifar10", "data": "user/photos"},
        {"pool": "./photos", "data": "photos"},
        {"pool": "photos/", "device": "cuda:1"},
        {"cache": Path("new/cache")},
    ):
        check_places(ScanOptions(**fine))
    assert (spoilt / "new" / "cache").is_dir()


def test_a_device_that_no_machine_has_is_refused_where_options_are_made():
    with pytest.raises(UsageError, match="--device cuda0: no such device .use cpu, cuda, cuda:N"):
        ScanOptions(device="cuda0")
