"""hf-ci dev hub: a Hub for trying things out, seen through the real clients."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from making import made_adapter

from hf_ci.prompts import write_adapter


@pytest.fixture
def served(clip, tmp_path):
    write_adapter(made_adapter(clip), tmp_path / "a", card="---\nlicense: mit\n---\n# A\n")
    command = [sys.executable, "-u", "-m", "hf_ci", "dev", "hub", f"user/adapter={tmp_path / 'a'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    variables = {}
    while "HF_UPDATE_DOWNLOAD_COUNTS" not in variables:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        name, _, value = line.removeprefix("export ").strip().partition("=")
        variables[name] = value
    yield process, variables
    process.kill()
    process.communicate()


def test_the_variables_it_prints_lead_our_program_and_the_hub_s_own_to_it(served, run, tmp_path):
    _, variables = served
    done = run("scan", "user/adapter", "--num-images", "32", "--no-cache", "--push", "main", env=variables)
    assert done.returncode in (0, 1, 4) and "Traceback" not in done.stderr, done.stderr
    hf = Path(sys.executable).with_name("hf")
    assert hf.is_file()
    fetched = subprocess.run(
        [hf, "download", "user/adapter", "--local-dir", tmp_path / "down"],
        env=os.environ | variables, capture_output=True, text=True,
    )
    assert fetched.returncode == 0, fetched.stderr
    assert b"hf-ci:begin" in (tmp_path / "down" / "README.md").read_bytes()
    assert run("card", str(tmp_path / "down"), "--check").returncode == 0


def test_ctrl_c_ends_it(served):
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130 and "Traceback" not in process.stderr.read()


def test_a_folder_that_is_not_there_is_said(run):
    done = run("dev", "hub", "user/adapter=/no/such/folder")
    assert done.returncode == 2 and "expected ORG/MODEL=FOLDER" in done.stderr
