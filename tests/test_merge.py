"""hf-ci run --shard and hf-ci merge: shares of a list, scanned apart, and one report of them."""

import json
import os
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.resources import files

import jsonschema
import pytest
import yaml
from making import ANIMALS, made_adapter

from hf_ci.config import Ignore
from hf_ci.errors import Inconclusive, UsageError
from hf_ci.merge import merged, parse_shard, shard_of
from hf_ci.prompts import write_adapter
from hf_ci.report import Report, ScannedFile, ScanResult, Tool, failed, read_report
from hf_ci.reports import FORMATS, render
from hf_ci.settings import ScanOptions

TARGETS = ("./a", "./b", "./c", "./d", "./e", "org/f", "org/g")
SHA = "ab" * 32


def part(index, count=3, targets=TARGETS, ignores=(), baseline=frozenset(), changed_since=None, **options):
    return shard_of(targets, index, count, ScanOptions(**options), ignores, baseline, changed_since)


def unknown(target):
    return failed(target, Inconclusive("the Hub was down"))


def report_of(shard, notes=(), **more):
    return Report(results=tuple(map(unknown, shard.own)), notes=(shard.note, *notes), shard=shard, **more)


def named(*reports):
    return [(f"{i}.json", report) for i, report in enumerate(reports, 1)]


def write(folder, **reports):
    for name, report in reports.items():
        (folder / f"{name}.json").write_text(render(report, "json", lasting=False))


def without_timing(results):
    return {r["target"]: r | {"timing": None} for r in results}


# ---------------------------------------------------------------- for real


@pytest.fixture(scope="module")
def place(clip, tmp_path_factory):
    """A working directory with an adapter, two broken ones, and the reports of all three shards of that list."""
    folder = tmp_path_factory.mktemp("place")
    write_adapter(made_adapter(clip, method="coop", names=ANIMALS[:4]), folder / "models" / "good")
    for name, file, content in (
        ("half", "adapter_model.safetensors", b"no tensors"),
        ("odd", "clip_prompt.json", b"{}"),
    ):
        shutil.copytree(folder / "models" / "good", folder / "models" / name)
        (folder / "models" / name / file).write_bytes(content)
    (folder / ".hf-ci.yaml").write_text(yaml.safe_dump({"scan": {"num-images": 32}, "adapters": ["models/*"]}))
    return folder


@pytest.fixture(scope="module")
def scanned(place, shared_cache):
    """The exit codes of the whole list and of both shards; the reports are whole.json, 1.json and 2.json."""

    def scan(name, *more):
        command = [sys.executable, "-m", "hf_ci", "run", "--format", "json", *more]
        env = os.environ | {"XDG_CACHE_HOME": str(shared_cache)}
        with (place / f"{name}.json").open("w") as report:
            return subprocess.run(command, cwd=place, env=env, stdout=report, timeout=300).returncode

    return {"whole": scan("whole"), 1: scan("1", "--shard", "1/2"), 2: scan("2", "--shard", "2/2")}


def test_shards_merge_to_the_report_and_exit_code_of_one_run(run, place, scanned):
    whole = json.loads((place / "whole.json").read_text())
    targets = ["./models/good", "./models/half", "./models/odd"]
    assert [r["target"] for r in whole["results"]] == targets and scanned["whole"] in (1, 4)
    for i, own in ((1, targets[::2]), (2, targets[1::2])):
        shard = json.loads((place / f"{i}.json").read_text())
        assert [r["target"] for r in shard["results"]] == own
        assert (shard["shard"]["index"], shard["shard"]["count"], shard["shard"]["targets"]) == (i, 2, targets)
    assert scanned[2] == 4 and scanned[1] == scanned["whole"]
    done = run("merge", "2.json", "1.json", "--format", "json", cwd=place)
    one = json.loads(done.stdout)
    assert [r["target"] for r in one["results"]] == targets
    assert without_timing(one["results"]) == without_timing(whole["results"])
    assert (one["notes"], one["shard"], one["tool"]) == (whole["notes"], None, whole["tool"])
    assert done.returncode == scanned["whole"] and done.stderr == ""


def test_what_was_not_scanned_is_inconclusive_in_every_format(run, place, scanned):
    outputs = [word for name in FORMATS for word in ("--output", f"{name}=all.{name}")]
    done = run("merge", "1.json", *outputs, cwd=place)
    assert done.returncode in (1, 4) and done.stdout.splitlines()[1].endswith("...inconclusive")
    command = "hf-ci run --shard 2/2 --output json=shard-2.json"
    assert command in " ".join(done.stdout.split())
    for name in FORMATS:
        text = (place / f"all.{name}").read_text()
        assert "models" in text and "half" in text and "shard 2" in text, name
    document = json.loads((place / "all.json").read_text())
    jsonschema.validate(document, json.loads(files("hf_ci").joinpath("schema/report.schema.json").read_text()))
    (lost,) = [r for r in document["results"] if r["target"] == "./models/half"]
    assert (lost["verdict"], lost["exit_code"], lost["about_weights"]) == ("inconclusive", 4, False)
    assert command in lost["reasons"][0] and any("shard 2/2" in n and command in n for n in document["notes"])
    suite = ET.parse(place / "all.junit").getroot()[0]
    assert suite.get("tests") == "3" and int(suite.get("errors")) >= 2


def test_merge_needs_no_torch(place, scanned):
    command = [sys.executable, "-X", "importtime", "-m", "hf_ci", "merge", "1.json", "2.json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hf_ci.merge" in modules and "torch" not in modules


def test_of_more_shards_than_targets_those_that_are_empty_pass(run, place):
    done = run("run", "--shard", "4/4", "--output", "json=empty.json", cwd=place)
    assert done.returncode == 0 and "Note: shard 4/4: 0 of the list's 3 targets" in done.stdout
    assert json.loads((place / "empty.json").read_text())["shard"]["targets"][0] == "./models/good"
    done = run("merge", "empty.json", "--format", "json", cwd=place)
    assert done.returncode == 4 and {r["verdict"] for r in json.loads(done.stdout)["results"]} == {"inconclusive"}


def test_what_is_no_prompt_is_left_out_of_the_merged_report_with_its_note(run, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    done = run("run", "--changed-since", "HEAD", "--shard", "1/2", "--output", "json=1.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "1.json").read_text())["shard"]["left_out"] == ["./lora"]
    done = run("merge", "1.json", "--format", "json")  # nothing belongs to the second shard
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["results"] == []
    assert [note for note in report["notes"] if note.startswith("./lora was left out")] == report["notes"][-1:]


# ---------------------------------------------------------------- which targets belong to a shard


def test_shards_share_out_the_list_in_whichever_order_it_was_found():
    shuffled = random.Random(0).sample(TARGETS, len(TARGETS))
    assert [part(i, targets=shuffled) for i in (1, 2, 3)] == [part(i) for i in (1, 2, 3)]
    for count in range(1, 10):
        shares = [part(i, count).own for i in range(1, count + 1)]
        assert sorted(target for share in shares for target in share) == sorted(TARGETS)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert part(1).list_sha256 == part(2, 5).list_sha256 != part(1, targets=TARGETS[1:]).list_sha256


@pytest.mark.parametrize(
    "text", ["", "3", "0/3", "4/3", "-1/3", "1/0", "1/3/4", "a/b", " 1/3", "1/3\n", "²/3", "01/3x"]
)
def test_a_shard_is_one_of_so_many(text):
    assert parse_shard("3/64") == (3, 64)
    with pytest.raises(UsageError, match="expected I/N"):
        parse_shard(text)


def test_a_wrong_shard_is_told_before_the_list_is_looked_at(run, place):
    for text in ("4/3", ""):
        done = run("run", "--shard", text, cwd=place)
        assert done.returncode == 2 and done.stdout == "" and "expected I/N" in done.stderr


# ---------------------------------------------------------------- what is refused


def refused(*reports):
    with pytest.raises(UsageError) as caught:
        merged(named(*reports))
    return str(caught.value)


def test_shards_of_different_runs_are_refused(tmp_path):
    first = report_of(part(1))
    more = refused(first, report_of(part(2, targets=(*TARGETS, "org/new", "org/newer"))))
    assert more.startswith("2.json: of another list than 1.json: org/new is in 2.json alone, and so are 1 more")
    assert "./a is in 1.json alone" in refused(first, report_of(part(2, targets=TARGETS[1:])))
    assert refused(first, report_of(part(2, 4))).startswith("2.json: one of 4 shards, 1.json one of 3")
    assert "2.json: made by hf-ci 0.0, 1.json by hf-ci" in refused(first, report_of(part(2), tool=Tool(version="0.0")))
    assert "num-images is 64, there 256" in refused(first, report_of(part(2, num_images=64)))
    assert 'changed-since is "main", there null' in refused(first, report_of(part(2, changed_since="main")))
    ignore = Ignore(fingerprint=SHA, reason="a talk", until="2999-01-01")
    assert "ignore is" in refused(first, report_of(part(2, ignores=[ignore])))
    assert "baseline is" in refused(first, report_of(part(2, baseline=frozenset({SHA}))))
    (tmp_path / "one.txt").write_text("cat\ndog\n"), (tmp_path / "other.txt").write_text("cat\nfrog\n")
    shutil.copy(tmp_path / "one.txt", tmp_path / "copy.txt")
    one, copy, other = (tmp_path / f"{name}.txt" for name in ("one", "copy", "other"))
    assert "classes is" in refused(report_of(part(1, classes=one)), report_of(part(2, classes=other)))
    assert len(merged(named(report_of(part(1, classes=one)), report_of(part(2, classes=copy)))).results) == 7
    with pytest.raises(UsageError, match="--classes .*nowhere.txt"):
        part(1, classes=tmp_path / "nowhere.txt")


def test_where_a_shard_was_scanned_does_not_matter(tmp_path):
    here = report_of(part(1, device="cuda:0", cache=tmp_path, num_processes=2, timeout=60))
    there = report_of(part(2, device="cuda:1", save_trigger=tmp_path))
    assert [r.target for r in merged(named(there, here)).results] == list(TARGETS)


def test_the_command_for_a_missing_shard_has_all_that_decides():
    more = {"changed_since": "a branch", "baseline": frozenset({SHA})}
    report = merged(named(report_of(part(1, **more)), report_of(part(3, **more))))
    command = "hf-ci run --shard 2/3 --changed-since 'a branch' --baseline FILE --output json=shard-2.json"
    assert [r.target for r in report.results] == list(TARGETS) and report.exit_code == 4
    assert all(command in r.reasons[0] for r in report.results if r.target in part(2).own)
    assert report.notes == (f"no report of shard 2/3: 2 targets were not scanned; {command} scans them",)


def test_a_shard_is_given_once_and_whole():
    first, second = report_of(part(1)), report_of(part(2))
    assert refused(first, second, first).startswith("3.json: shard 1/3 was given already, as 1.json")
    cut = second.model_copy(update={"results": second.results[:1]})
    assert refused(first, cut).startswith("2.json: it says nothing of ./e, which is of its shard")
    assert "hf-ci run --shard 2/3" in refused(first, cut)
    doubled = second.model_copy(update={"results": second.results * 2})
    assert refused(first, doubled).startswith("2.json: it holds ./b twice")
    foreign = second.model_copy(update={"results": (*second.results, unknown("./c"))})
    assert refused(first, foreign).startswith("2.json: ./c is not of shard 2/3")
    assert refused(first, Report(results=second.results)).startswith("2.json: a report of no shard")


def test_files_that_are_no_whole_reports_are_named(run, tmp_path):
    write(tmp_path, good=report_of(part(1)))
    text = (tmp_path / "good.json").read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "list.json").write_text("[1, 2]")
    document = json.loads(text)
    document["shard"]["index"] = 9
    (tmp_path / "index.json").write_text(json.dumps(document))
    for name in ("half", "deep", "bytes", "list", "index", "nowhere"):
        with pytest.raises(UsageError, match=f"^{name}.json: "):
            read_report(tmp_path / f"{name}.json", f"{name}.json", "")
    done = run("merge", "good.json", "half.json", "--output", "json=all.json")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "all.json").exists()
    assert len(done.stderr.splitlines()) == 1 and "half.json: not a JSON report of hf-ci, or half of one" in done.stderr


def test_a_report_reads_as_it_was_written(tmp_path):
    """Whatever a folder is called, and also one that knows nothing of shards yet."""
    report = report_of(part(1, 2, targets=("./a\udc80", "./\u202eb", "./c d")))
    write(tmp_path, odd=report)
    assert read_report(tmp_path / "odd.json", "", "") == report
    document = json.loads(render(Report(results=(unknown("./a"),)), "json", lasting=False))
    del document["shard"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert read_report(tmp_path / "old.json", "", "").shard is None


# ---------------------------------------------------------------- accepted findings


def finding(target, letter):
    return ScanResult(
        target=target,
        verdict="inconclusive",
        reasons=("half an upload",),
        exit_code=4,
        files=(ScannedFile(path="adapter_model.safetensors", sha256=letter * 64),),
    )


def test_findings_are_accepted_as_in_one_run(run, tmp_path):
    ignored, open_ = finding("./a", "a"), finding("./b", "b")
    shards = [part(i, 2, targets=("./a", "./b")) for i in (1, 2)]
    write(tmp_path, one=Report(results=(ignored,), shard=shards[0]), two=Report(results=(open_,), shard=shards[1]))
    assert run("merge", "one.json", "two.json").returncode == 4

    def accept(*results):
        ignores = [{"fingerprint": r.fingerprint, "reason": "a talk", "until": "2999-01-01"} for r in results]
        (tmp_path / ".hf-ci.yaml").write_text(yaml.safe_dump({"ignore": ignores}))

    accept(ignored, open_)
    done = run("merge", "one.json", "two.json", "--format", "json")
    assert done.returncode == 0
    assert [r["suppressed"]["reason"] for r in json.loads(done.stdout)["results"]] == ["a talk"] * 2
    done = run("merge", "one.json", "--format", "json")  # what was not scanned cannot be accepted
    kept, lost = json.loads(done.stdout)["results"]
    assert done.returncode == 4 and kept["suppressed"] and lost["suppressed"] is None
    accept(ignored, open_, finding("./c", "c"))
    done = run("merge", "one.json", "two.json", "--format", "json")
    assert any("matches no finding" in note for note in json.loads(done.stdout)["notes"])
