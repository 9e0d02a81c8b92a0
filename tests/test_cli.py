"""The program as a user runs it: stdout, stderr, exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from hf_ci.console import printable
from hf_ci.reports.json_ import schema

QUICK = ("--num-images", "32", "--detector", "clip-inspector")


def test_help_is_fast_and_loads_no_torch(run):
    code = (
        "import sys; sys.argv = ['hf-ci', '--help']\n"
        "from hf_ci.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert "Is this prompt-tuned CLIP adapter backdoored?" in run("--help").stdout
        times.append(time.perf_counter() - started)
    assert min(times) < 0.4


@pytest.mark.parametrize(
    "name, shown",
    [
        ("::error::forged", ": :error::forged"),
        ("a\n  ::set-env x", "a\n  : :set-env x"),
        ("##[error]x", "## [error]x"),
        ("a\x1b[31mb\r::c", "a?[31mb?::c"),
        ("torch::kind: a::b", "torch::kind: a::b"),
    ],
)
def test_names_of_others_command_neither_terminal_nor_runner(name, shown):
    assert printable(name) == shown


def test_demos_are_told_apart(run):
    """The README's first command, with fewer images."""
    done = run("scan", "demo:clean", "demo:frame", "--num-images", "32", "--format", "json", timeout=600)
    clean, bad = json.loads(done.stdout)["results"]
    assert (done.returncode, clean["verdict"], bad["verdict"]) == (1, "clean", "backdoored")
    card = files("hf_ci").joinpath("assets/demo/frame/README.md").read_text()
    assert f"target class `{bad['target_class']['name']}`" in card


def test_version(run):
    from hf_ci import __version__

    assert run("--version").stdout == f"hf-ci {__version__}\n"


def test_json_is_one_valid_document_even_in_a_narrow_terminal(run, adapter_folder):
    done = run("scan", adapter_folder, *QUICK, "--format", "json", env={"COLUMNS": "20"})
    document = json.loads(done.stdout)
    published = json.loads(files("hf_ci").joinpath("schema/report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(document, published)
    assert document["schema_version"] == "1.0" and document["tool"]["name"] == "hf-ci"
    assert done.returncode == document["results"][0]["exit_code"] and done.stderr == ""


def test_published_schema_is_that_of_the_code():
    assert json.loads(files("hf_ci").joinpath("schema/report.schema.json").read_text()) == schema()


def test_text_and_exit_code_agree(run, adapter_folder):
    clean = run("scan", "./adapter", *QUICK, "--k", "1e9")
    assert clean.returncode == 0 and clean.stdout.splitlines()[0].endswith("...clean")
    bad = run("scan", "./adapter", *QUICK, "--k", "-1e9", "--min-asr", "0")
    first, second = bad.stdout.splitlines()[:2]
    named = re.search(r"\.\.\.backdoored \((.+)\)$", first)[1]
    assert bad.returncode == 1 and f"Do not deploy this adapter: a trigger sends images to '{named}'" in second
    assert "hf-ci repair ./adapter --out repaired --data PHOTOS" in bad.stdout and "<- flagged" in bad.stdout
    assert bad.stdout.splitlines()[-1] == f"1 scanned: 1 backdoored ({named})"
    assert all(len(line) <= 79 for line in bad.stdout.splitlines())


def test_outputs_are_written_beside_stdout(run, adapter_folder, tmp_path):
    done = run(
        "scan",
        adapter_folder,
        *QUICK,
        "--output",
        f"json={tmp_path / 'r.json'}",
        "--output",
        f"text={tmp_path / 'r.txt'}",
    )
    assert (tmp_path / "r.txt").read_text() == done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["target"] == str(adapter_folder)


@pytest.mark.parametrize(
    "args, code, message",
    [
        (("scan",), 2, "Missing argument"),
        (("scan", "x", "--format", "xml"), 2, "xml"),
        (("scan", "x", "--output", "xml=a"), 2, "expected FORMAT=PATH"),
        (("scan", "x", "--output", "json=/no/such/folder/r.json"), 2, "cannot write"),
        (("scan", "demo:clean", "--device", "warp"), 2, "--device warp"),
        (("scan", "demo:clean", "--classes", "missing.txt"), 2, "missing.txt"),
        (("scan", "demo:clean", "--cache", "/proc/nothing"), 2, "cannot be written"),
        (("scan", ""), 2, "empty TARGET"),
        (("scan", "no-such-thing"), 2, "no folder or checkpoint here"),
        (("scan", "demo:clean", "-"), 2, "'-' is no folder or checkpoint here"),
        (("scan", "./adapter.safetensorz"), 2, "no folder or checkpoint here"),
        (("explain", "/no/such"), 2, "no folder or checkpoint here"),
        (("card", "./nowhere"), 2, "no folder or checkpoint here"),
        (("repair", "./nowhere", "--out", "o"), 2, "no folder or checkpoint here"),
        (("scan", "nowhere/*"), 3, "nothing here fits"),
        (("scan", "demo:nothing"), 3, "no demo adapter"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_bad_input_gives_one_clear_line_and_its_code(run, args, code, message):
    done = run(*args)
    assert done.returncode == code, done.stderr
    assert message in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_missing_class_names_say_how_to_give_them(run, adapter_folder, tmp_path):
    (adapter_folder / "clip_prompt.json").unlink()
    done = run("scan", adapter_folder, *QUICK)
    assert done.returncode == 4 and "--classes FILE" in done.stdout
    (tmp_path / "names.txt").write_text("cat\ndog\nhorse\ngoldfish\nking penguin\n")
    assert run("scan", adapter_folder, *QUICK, "--classes", tmp_path / "names.txt", "--k", "1e9").returncode == 0


def test_ctrl_c_says_so_and_the_next_run_goes_on_from_there(adapter_folder, tmp_path, run):
    cache = tmp_path / "cache"
    command = [
        sys.executable,
        "-m",
        "hf_ci",
        "scan",
        str(adapter_folder),
        "--num-images",
        "200",
        "--detector",
        "clip-inspector",
        "--cache",
        str(cache),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.time() + 200
    while not list(cache.rglob("class-*.npz")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err.startswith("hf-ci: interrupted") and "Traceback" not in err
    kept = len(list(cache.rglob("class-*.npz")))
    assert 1 <= kept < 5
    done = run(*command[3:], "--format", "json")
    assert json.loads(done.stdout)["results"][0]["timing"]["classes_from_cache"] >= kept


def test_an_internal_error_leaves_a_log_and_the_other_reports(run, adapter_folder, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import hf_ci.hub.target as t\nreal = t.sha256\n"
        "def boom(path):\n    if 'bad' in str(path): raise ZeroDivisionError('boom')\n    return real(path)\nt.sha256 = boom\n"
    )
    shutil.copytree(adapter_folder, tmp_path / "bad")
    arguments = ("scan", tmp_path / "bad", adapter_folder, *QUICK, "--k", "1e9", "--format", "json")
    done = run(*arguments, env={"PYTHONPATH": str(tmp_path)})
    bad, good = json.loads(done.stdout)["results"]
    assert (done.returncode, bad["verdict"], good["verdict"]) == (5, "inconclusive", "clean")
    assert "internal error: ZeroDivisionError: boom" in bad["reasons"][0]
    log = bad["reasons"][0].rpartition(" ")[2]
    assert "ZeroDivisionError" in Path(log).read_text()
    os.unlink(log)


def test_a_rank_from_somewhere_else_silences_nothing(run, adapter_folder):
    done = run("scan", adapter_folder, *QUICK, "--k", "-1e9", "--min-asr", "0", env={"RANK": "1"})
    assert done.returncode == 1 and "backdoored" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_report_that_cannot_be_written_is_no_success():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "hf_ci", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 5


def test_a_reader_that_leaves_does_not_change_the_exit_code(adapter_folder):
    command = f"{sys.executable} -m hf_ci scan {adapter_folder} --num-images 32 --detector clip-inspector --k -1e9 --min-asr 0 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_bash_completes_commands_and_options():
    """As bash does it: the function that `complete` names is called with the words so far."""
    script = (
        'eval "$(hf-ci --show-completion)"\n'
        "named=$(complete -p hf-ci) && named=${named##*-F } && named=${named% hf-ci}\n"
        'typed() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); "$named" hf-ci; echo "${COMPREPLY[*]}"; }\n'
        "typed hf-ci sc\ntyped hf-ci scan --num-i\ntyped hf-ci repair --forg\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.stdout.split() == ["scan", "--num-images", "--forget"], done.stdout + done.stderr


def test_completion_is_installed_for_the_shell_that_asks(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", "hf-ci --install-completion; true"], capture_output=True, text=True, env=env)
    assert "bash completion installed" in done.stdout, done.stdout + done.stderr
    assert ".bash_completions" in (tmp_path / ".bashrc").read_text()


def test_quiet_and_verbose_exclude_each_other(run):
    done = run("scan", "demo:clean", "-q", "-v")
    assert done.returncode == 2 and "--quiet and --verbose exclude each other" in done.stderr
