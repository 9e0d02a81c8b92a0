"""hf-ci dev hub: a Hub for trying things out, seen through the real clients."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import made_adapter

from hf_ci.prompts import write_adapter


@pytest.fixture
def served(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop"), tmp_path / "a", card="---\nlicense: mit\n---\n# A\n")
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
    done = run("scan", "user/adapter", "--num-images", "32", "--push", "main", env=variables)
    assert done.returncode in (0, 1, 4) and "Traceback" not in done.stderr, done.stderr
    hf = Path(sys.executable).with_name("hf")
    assert hf.is_file()
    fetched = subprocess.run(
        [hf, "download", "user/adapter", "--local-dir", tmp_path / "down"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert fetched.returncode == 0, fetched.stderr
    assert b"hf-ci:begin" in (tmp_path / "down" / "README.md").read_bytes()
    assert run("card", str(tmp_path / "down"), "--check", env={"HF_CI_NUM_IMAGES": "32"}).returncode == 0


def test_ctrl_c_ends_it(served):
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130 and "Traceback" not in process.stderr.read()


def test_a_folder_that_is_not_there_is_said(run):
    done = run("dev", "hub", "user/adapter=/no/such/folder")
    assert done.returncode == 2 and "expected ORG/MODEL=FOLDER" in done.stderr


@pytest.mark.skipif(not shutil.which("olah-cli"), reason="olah is not installed")
def test_a_mirror_made_by_others_reads_the_same_from_it(served, tmp_path):
    """olah, a Hub mirror written by others, in front of ours: a second judge of what is served to readers."""
    _, variables = served
    upstream = variables["HF_ENDPOINT"].removeprefix("http://")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        netloc = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--host", "127.0.0.1", "--port", netloc.partition(":")[2], "--repos-path", tmp_path / "repos"]
    flags += ["--log-path", tmp_path / "logs", "--hf-scheme", "http", "--mirror-scheme", "http"]
    flags += ["--hf-netloc", upstream, "--hf-lfs-netloc", upstream]
    flags += ["--mirror-netloc", netloc, "--mirror-lfs-netloc", netloc]
    mirror = subprocess.Popen(
        ["olah-cli", *map(str, flags)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(netloc.partition(":")[2]))) == 0:
                    break
            time.sleep(0.2)
        hf = Path(sys.executable).with_name("hf")
        for name, endpoint in (("direct", variables["HF_ENDPOINT"]), ("mirrored", f"http://{netloc}")):
            env = os.environ | variables | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / f"home-{name}")}
            done = subprocess.run(
                [hf, "download", "user/adapter", "--local-dir", tmp_path / name],
                env=env,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
    finally:
        mirror.kill()
        mirror.communicate()
    read = [
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()} for name in ("direct", "mirrored")
    ]
    assert read[0] == read[1] and "adapter_model.safetensors" in read[0]
