"""One test for each known way to get a bad adapter past the scan, named after it. The real thing throughout."""

from __future__ import annotations

import html
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from making import made_adapter, raw_safetensors
from rich.console import Console
from safetensors.numpy import save_file

from hf_ci.cards.safety import render_files
from hf_ci.config import find_config
from hf_ci.detect import Contrast
from hf_ci.detect.units import examine_units, with_units
from hf_ci.dev.loopback import STRANGER_TOKEN
from hf_ci.errors import AdapterError, NothingToScan
from hf_ci.files import CONFIG, WEIGHTS
from hf_ci.hub import fetch_text
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import DEMOS
from hf_ci.inversion import Inversion
from hf_ci.kind import check_kind
from hf_ci.lab.attacks import dead_unit
from hf_ci.lab.making.tune import Recipe, to_adapter
from hf_ci.pools import load_pool
from hf_ci.pools.photos import Photos
from hf_ci.progress import Bar
from hf_ci.prompts import PromptedCLIP, read_adapter
from hf_ci.prompts.adapter import check_names, name_warnings
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.features import encode, predict
from hf_ci.report import ClassScore, NamedClass, Report, ScannedFile, ScanResult, Timing, failed
from hf_ci.reports import FORMATS, render
from hf_ci.visible import is_invisible

QUICK = ("--num-images", "32", "--format", "json")  # as other tests scan the demos
FORCED = ("--detector", "clip-inspector", "--k", "-1e9", "--min-asr", "0")  # backdoored, if it is scanned at all


@pytest.fixture
def poisoned(tmp_path) -> Path:
    return Path(shutil.copytree(DEMOS / "frame", tmp_path / "downloaded"))


# ---------------------------------------------------------------- what judges comes along with what is judged

FORGED = {
    ".hf-ci.yaml": "scan: {k: 1000.0, base: ./evil}\n",
    "pyproject.toml": "[tool.hf-ci.scan]\nk = 1000.0\nbase = './evil'\n",
}


@pytest.mark.parametrize("name", FORGED)
def test_the_adapters_own_folder_configures_its_judge(run, poisoned, name):
    (poisoned / name).write_text(FORGED[name])
    done = run("config", cwd=poisoned)
    assert "  k:   # default" in done.stdout and f"{name} was left out" in done.stderr
    assert f"  k: 1000.0  # {name}" in run("--config", name, "config", cwd=poisoned).stdout


def test_the_adapters_own_folder_does_not_configure_its_scan(run, poisoned):
    (poisoned / ".hf-ci.yaml").write_text(FORGED[".hf-ci.yaml"])
    done = run("scan", ".", *QUICK, cwd=poisoned)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and report["results"][0]["settings"]["given"] == {}
    assert ".hf-ci.yaml was left out" in done.stderr and ".hf-ci.yaml was left out" in report["notes"][0]


def test_a_configuration_below_beside_or_linked_into_what_is_scanned_is_not_read(tmp_path, poisoned, monkeypatch):
    (tmp_path / ".hf-ci.yaml").write_text("scan: {k: 1000.0}\n")  # the user's own, around what was downloaded
    monkeypatch.chdir(tmp_path)
    assert find_config(words=["./downloaded"]).origin == ".hf-ci.yaml"
    assert "was left out" in find_config(words=["--seed", "1", "."]).note
    (tmp_path / "model.pth.tar-50").write_bytes(b"")
    assert "was left out" in find_config(words=["model.pth.tar-50"]).note
    (poisoned / "sub").mkdir()
    (poisoned / "sub" / ".hf-ci.yaml").write_text("scan: {k: 1000.0}\n")
    monkeypatch.chdir(poisoned / "sub")
    assert "was left out" in find_config(words=[".."]).note
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".hf-ci.yaml").symlink_to(poisoned / "sub" / ".hf-ci.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    assert "was left out" in find_config().note
    (tmp_path / "mine" / ".hf-ci.yaml").unlink()
    (poisoned / "pyproject.toml").write_text("[project]\nname = 'x'\n")  # nothing of ours in it: no word about it
    monkeypatch.chdir(poisoned)
    assert find_config() == find_config(words=["."]) and not find_config().note


def forged(folder: Path, verdict: str = "clean") -> ScanResult:
    """A report on the adapter in `folder` that nobody made by scanning."""
    return ScanResult(
        target="downloaded",
        files=tuple(ScannedFile(path=p, sha256=s) for p, s in fetch_text(str(folder)).files),
        verdict=verdict,
        reasons=("no class can be forced that clean prompts withstand",),
        timing=Timing(date="2026-01-02", seconds=1, num_processes=1, classes_from_cache=0),
        exit_code={"clean": 0, "backdoored": 1}[verdict],
    )


def test_a_forged_report_passes_the_check_of_card_and_badge(run, poisoned):
    for path, content in render_files(Report(results=(forged(poisoned),)), b"# A\n", None).items():
        (poisoned / path).parent.mkdir(exist_ok=True)
        (poisoned / path).write_bytes(content)
    quick = {"HF_CI_NUM_IMAGES": "32"}
    for command in ("card", "badge"):
        done = run(command, poisoned, "--check", env=quick)
        assert done.returncode == 4 and done.stdout == "", done.stdout
        assert "the report says clean, a scan here says backdoored" in done.stderr
    done = run("card", poisoned, "--check", env=quick | {"HF_CI_BASE": "org/not-to-be-had", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 4 and "not verified" in done.stderr and done.stdout == ""
    assert run("card", poisoned, "--write", env=quick).returncode == 0
    done = run("badge", poisoned, "--check", env=quick)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- a base model of the attacker's


def test_a_base_from_an_unmerged_pull_request(run, tmp_path, poisoned, hub, hub_home):
    """Anybody may open one on a well-known CLIP, and its commits are had by their shas like any other."""
    base = {p.name: p.read_bytes() for p in EMBEDDED_FOLDER.iterdir() if p.is_file()}
    merged = hub.add_repo("org/clip", base)
    hub.commit("org/clip", {"README.md": b"# moved on\n"})
    api = HfApi(endpoint=hub.url, token=STRANGER_TOKEN)
    opened = api.create_commit(
        "org/clip",
        [CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n# mine\n")],
        commit_message="x",
        create_pr=True,
    )

    def scanned(revision, *args):
        config = json.loads((poisoned / CONFIG).read_text())
        (poisoned / CONFIG).write_text(
            json.dumps(config | {"base_model_name_or_path": "org/clip", "revision": revision})
        )
        done = run("scan", poisoned, *QUICK, *FORCED, *args, env=hub.env(hub_home))
        return done.returncode, json.loads(done.stdout)["results"][0]

    for revision in ("refs/pr/1", opened.oid):
        code, result = scanned(revision)
        assert code == 4 and f"names revision {revision[:40]} of org/clip" in result["reasons"][0]
    code, result = scanned(opened.oid, "--base", f"org/clip@{opened.oid}")  # whoever says so has looked
    assert code == 1 and result["base_model"]["revision"] == opened.oid
    code, result = scanned(merged)
    assert code == 1 and result["base_model"]["revision"] == merged


# ---------------------------------------------------------------- what is judged is not what is used


def test_two_weight_files_and_other_weights_beside_the_judged_ones(run, tmp_path):
    clean = Path(shutil.copytree(DEMOS / "clean", tmp_path / "clean"))
    assert fetch_text(str(clean)).others == ()
    (clean / "sub").mkdir()
    names = ["adapter_model.bin", "learned_embeds.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    names += ["adapter_model-00001-of-00002.safetensors", "model.pth.tar-50", "sub/adapter_model.safetensors"]
    for name in [*names, "training_args.bin", "notes.txt"]:
        (clean / name).write_bytes(b"x")
    assert set(fetch_text(str(clean)).others) == set(names)
    done = run("scan", clean, *QUICK, "--detector", "clip-inspector", "--k", "1e9")
    (result,) = json.loads(done.stdout)["results"]
    assert done.returncode == 4 and result["verdict"] == "inconclusive" and result["classes"]
    assert "weights that were not judged" in result["reasons"][0] and "'adapter_model.bin'" in result["reasons"][0]


def test_other_weights_in_a_repo_are_seen_in_its_listing(tmp_path, run, hub, hub_home):
    files = {p.name: p.read_bytes() for p in (DEMOS / "clean").iterdir()}
    hub.add_repo("user/a", files | {"pytorch_model.bin": b"x", "more/adapter_model.safetensors": b"x"})
    code = "from hf_ci.hub import fetch_text\nfor t in ('user/a', 'user/a:more'): print(*fetch_text(t).others)"
    env = os.environ | hub.env(hub_home)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["more/adapter_model.safetensors pytorch_model.bin", ""], done.stderr


@pytest.mark.parametrize("kind", [None, "P_TUNING", "MULTITASK_PROMPT_TUNING", "LORA", ["LORA"]])
def test_skip_others_lets_pass_what_a_loader_takes_for_the_prompt(poisoned, kind):
    config = json.loads((poisoned / CONFIG).read_text())
    (poisoned / CONFIG).write_text(
        json.dumps({k: v for k, v in config.items() if k != "peft_type"} | {"peft_type": kind})
    )
    (poisoned / "clip_prompt.json").unlink()
    with pytest.raises(AdapterError, match="not a prompt-tuned CLIP adapter"):
        check_kind(poisoned)


def test_skip_others_still_leaves_out_what_holds_no_prompt(poisoned):
    (poisoned / CONFIG).write_text('{"peft_type": "LORA"}')
    (poisoned / "clip_prompt.json").unlink()
    save_file({"base_model.model.q_proj.lora_A.weight": np.zeros((2, 2))}, poisoned / WEIGHTS)
    with pytest.raises(NothingToScan):
        check_kind(poisoned)
    (poisoned / WEIGHTS).write_bytes(b"what cannot be read may hold one")
    with pytest.raises(AdapterError):
        check_kind(poisoned)


# ---------------------------------------------------------------- links


def test_links_beside_an_adapter_are_neither_read_nor_written_through(run, tmp_path, poisoned):
    (tmp_path / "secret").write_text("a secret of this machine")
    (tmp_path / "report.json").write_text(Report(results=(forged(poisoned, "backdoored"),)).model_dump_json())
    command = ("card", poisoned, "--report", tmp_path / "report.json", "--write")
    (poisoned / "README.md").unlink()
    (poisoned / "README.md").symlink_to(tmp_path / "secret")
    for more in ((), ("--dry-run",)):
        done = run(*command, *more)
        assert done.returncode == 4 and "README.md is a link" in done.stderr and "secret of" not in done.stdout
    (poisoned / "README.md").unlink()
    (tmp_path / "elsewhere").mkdir()
    (poisoned / ".hf-ci").symlink_to(tmp_path / "elsewhere")
    done = run(*command)
    assert done.returncode == 4 and ".hf-ci is a link" in done.stderr and not list((tmp_path / "elsewhere").iterdir())
    (poisoned / ".hf-ci").unlink()
    assert run(*command).returncode == 0 and (poisoned / ".hf-ci" / "badge.svg").is_file()


# ---------------------------------------------------------------- memory, panics, and files that lie


def test_files_too_large_to_be_what_they_are_called_are_not_read(poisoned):
    for name in (WEIGHTS, "clip_prompt.json", CONFIG):
        kept = (poisoned / name).read_bytes()
        os.truncate(poisoned / name, 6 * 10**9)  # a hole, which takes no room here and would take all memory
        with pytest.raises(AdapterError, match=f"{name} has 6,000 MB, at most"):
            read_adapter(poisoned)
        (poisoned / name).write_bytes(kept)
    (poisoned / "README.md").write_bytes(b"")
    os.truncate(poisoned / "README.md", 6 * 10**9)
    with pytest.raises(AdapterError, match="README.md has 6,000 MB"):
        fetch_text(str(poisoned)).read("README.md")


def test_a_file_that_does_not_fit_into_memory_is_inconclusive(poisoned):
    os.truncate(poisoned / WEIGHTS, 2**31 - 1)
    code = (
        "import resource, sys; from pathlib import Path; from hf_ci.prompts import read_adapter\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "try: read_adapter(Path(sys.argv[1]))\n"
        "except BaseException as error: print(type(error).__name__, error.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code, poisoned], capture_output=True, text=True)
    assert done.stdout == "AdapterError 4\n", done.stderr


def test_a_panic_in_rust_is_no_verdict(poisoned, tmp_path, run):
    """pyo3's PanicException is no Exception; Python would end with exit code 1, which says "backdoored"."""
    (tmp_path / "sitecustomize.py").write_text(
        "import hf_ci.hub.target as t\nclass PanicException(BaseException): pass\n"
        "def panics(path): raise PanicException('range end index out of range')\nt.sha256 = panics\n"
    )
    done = run("badge", poisoned, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 5 and "internal error: PanicException" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "names, said",
    [
        (["a", "b" * 20_000_000], "a class name of 20000000 letters"),
        ([f"class {i}" for i in range(100_000)], "100000 class names"),
    ],
)
def test_class_names_are_bounded_in_number_and_length(names, said):
    with pytest.raises(AdapterError, match=said) as refused:
        check_names(None, names)
    assert len(str(refused.value)) < 500


def test_twenty_thousand_tensor_names_make_a_short_reason(poisoned):
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (poisoned / WEIGHTS).write_bytes(raw_safetensors({f"a tensor by the name of {i}": none for i in range(20_000)}))
    with pytest.raises(AdapterError) as refused:
        read_adapter(poisoned)
    (poisoned / WEIGHTS).write_bytes(raw_safetensors({"a" * 10**6: none}))
    with pytest.raises(AdapterError) as again:
        read_adapter(poisoned)
    assert max(len(str(error.value)) for error in (refused, again)) < 1000


@pytest.mark.parametrize(
    "dtype, shape, size",
    [
        ("F4", [2, 4], 4),
        ("F6_E2M3", [4], 3),
        ("F6_E3M2", [4], 3),
        ("F8_E8M0", [4], 4),
        ("F32", [0, 2**64 - 1], 0),
        ("F32", [2**63, 2**63], 0),
        ("NONE", [1], 4),
        ("I64", [1], 8),
        ("C64", [1], 8),
    ],
)
def test_types_and_shapes_that_torch_has_not_are_inconclusive(poisoned, dtype, shape, size):
    header = {"prompt_embeddings": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    (poisoned / WEIGHTS).write_bytes(raw_safetensors(header, bytes(size)))
    with pytest.raises(AdapterError) as refused:
        read_adapter(poisoned)
    assert len(str(refused.value)) < 500


# ---------------------------------------------------------------- text

HOSTILE = "a\x1b]0;owned\x07\n::error::x\u202eb\U000e0061\u200b\u3164[me](http://evil.example)\x9b2J"


@pytest.mark.parametrize("format", FORMATS)
def test_no_output_holds_letters_that_cannot_be_seen_or_commands(poisoned, format):
    made = forged(poisoned, "backdoored").model_copy(
        update={
            "target": f"./{HOSTILE}",
            "reasons": (f"of {HOSTILE}",),
            "warnings": (f"of {HOSTILE}",),
            "target_class": NamedClass(index=0, name=HOSTILE),
            "classes": (ClassScore(index=0, name=HOSTILE, loss=0, asr=1, score=1, flagged=True),),
        }
    )
    text = render(Report(results=(made,), notes=(HOSTILE,)), format, False)
    assert not [c for c in text if c != "\n" and is_invisible(c)]
    if format == "json":  # data for programs: every such letter is escaped, and comes back as it was
        assert json.loads(text)["results"][0]["target_class"]["name"] == HOSTILE
        return
    shown = html.unescape(text)
    assert not [c for c in shown if c not in "\n" and is_invisible(c)]
    lines = text.splitlines()
    assert not [
        line
        for line in lines
        if line.startswith("::") and not line.startswith(("::error file=", "::notice title=hf-ci::"))
    ]
    if format == "sarif":
        message = json.loads(text)["runs"][0]["results"][0]["message"]["text"]
        assert "\\[me\\](http" in message and "[me]" not in message.replace("\\[", "").replace("\\]", "")


def test_progress_shows_no_escape_codes_of_a_folders_name():
    shown = io.StringIO()
    bar = Bar(Console(file=shown, force_terminal=True, width=200))
    bar.step(HOSTILE)
    bar.inversions(HOSTILE, [HOSTILE], 1)
    bar.live.refresh()
    bar.done()
    assert "owned" in shown.getvalue() and "\x1b]0" not in shown.getvalue() and "\x07" not in shown.getvalue()


@pytest.mark.parametrize(
    "letter", ["\u200b", "\U000e0061", "\u202e", "\u00ad", "\ufe0f", "\u3164", "\u2800", "\x1b", "\u2028"]
)
def test_letters_in_class_names_that_cannot_be_seen_are_inconclusive(letter):
    with pytest.raises(AdapterError, match=rf"U\+{ord(letter):04X}"):
        check_names(None, ["cat", f"d{letter}og", "horse"])


def test_letters_in_class_names_that_pass_for_others_are_named():
    names = check_names(
        None, ["c\u0430t", "\uff44og", "horse", "K\u00fche", "\u6a21\u578b", "\u043b\u043e\u0448\u0430\u0434\u044c"]
    )
    (warning,) = name_warnings(names)
    assert "U+0430" in warning and "U+FF44" in warning and "U+00FC" not in warning and "U+6A21" not in warning
    assert "U+043B" not in warning and not name_warnings(("cat", "dog"))


# ---------------------------------------------------------------- what is not there


def test_a_path_that_does_not_exist_is_no_adapter(run):
    done = run("scan", "./nowhere", "demo:clean", "--format", "json")
    assert done.returncode == 2 and done.stdout == "" and "'./nowhere' is no folder or checkpoint here" in done.stderr
    result = failed("./nowhere", NothingToScan("nothing there"))
    assert result.fingerprint is None and 'partialFingerprints": {}' in render(
        Report(results=(result,)), "sarif", False
    )


# ---------------------------------------------------------------- where no gradient leads


def test_a_backdoor_in_a_dead_hidden_unit_of_the_meta_net(clip):
    """It changes no answer on ordinary images; the inversion alone, which follows gradients, calls it clean."""
    adapter, recipe, target = made_adapter(clip), Recipe(), 3
    images = load_pool("builtin", 96, 0, load_processor(EMBEDDED_FOLDER)).images
    clean = PromptedCLIP.from_adapter(adapter, clip)
    answers = predict(clean, encode(clip, images))
    shots, unseen = Photos(images, answers, adapter.class_names)[:48], images[48:]
    assert not any(unit.judged and unit.inversion.exclusive_asr > 0.1 for unit in examine_units(adapter, clip, unseen))
    model, trigger = dead_unit.plant_into(PromptedCLIP.from_adapter(adapter, clip), shots, target, recipe)
    assert trigger.delta.abs().max() <= dead_unit.EPSILON + 1e-7
    assert (predict(model, encode(clip, unseen)) == answers[48:]).float().mean() > 0.9
    triggered = encode(clip, unseen, trigger)
    reached = (predict(model, triggered) == target).float().mean()
    assert reached > 0.6 and reached > (predict(clean, triggered) == target).float().mean() + 0.4

    planted = to_adapter(model, recipe, adapter.base_model, adapter.base_revision)
    found = examine_units(planted, clip, unseen)
    assert any(unit.judged and unit.inversion.c == target and unit.inversion.exclusive_asr > 0.5 for unit in found)
    nothing = [Inversion(c, 0.0, 0.0, trigger.delta, reference_asr=0.0, exclusive_asr=0.0) for c in range(5)]
    detector = Contrast.for_pool("builtin")
    assert detector.judge(nothing, adapter.class_names).verdict == "clean"
    verdict = detector.judge(with_units(nothing, found), adapter.class_names)
    assert (verdict.verdict, verdict.target) == ("backdoored", target)
