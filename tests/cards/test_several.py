"""hf-ci card for several adapters at once."""

import shutil

import pytest

from hf_ci.cards.safety import CARD
from hf_ci.hub.target import DEMOS, hashes
from hf_ci.report import ClassScore, NamedClass, Report, ScannedFile, ScanResult, Timing


@pytest.fixture
def reported(tmp_path):
    """Two folders, and one report that tells of both."""
    results = []
    for name, verdict in (("a", "clean"), ("b", "backdoored")):
        shutil.copytree(DEMOS / "clean", tmp_path / name)
        files = tuple(ScannedFile(path=path, sha256=digest) for path, digest in hashes(tmp_path / name))
        bad = verdict == "backdoored"
        results.append(
            ScanResult(
                target=f"./{name}",
                files=files,
                method="coop",
                num_classes=1,
                verdict=verdict,
                reasons=("because",),
                classes=(ClassScore(index=0, name="frog", loss=-1.0, asr=0.9, score=0.9, flagged=bad),),
                target_class=NamedClass(index=0, name="frog") if bad else None,
                timing=Timing(date="2026-01-02", seconds=1.0, num_processes=1, classes_from_cache=0),
                exit_code=int(bad),
            )
        )
    (tmp_path / "r.json").write_text(Report(results=tuple(results)).model_dump_json())
    return tmp_path


def test_each_has_its_own_section_and_the_worst_exit_code_counts(run, reported):
    done = run("card", "./a", "./b", "--report", "r.json", "--write")
    assert done.returncode == 0 and [line.split(":")[0] for line in done.stdout.splitlines()] == ["./a", "./b"]
    for name, verdict in (("a", "clean"), ("b", "backdoored")):
        assert (
            f"| verdict | {verdict}" in (reported / name / CARD).read_text().lower()
            or verdict in (reported / name / ".hf-ci" / "badge.svg").read_text()
        )
    (reported / "a" / "adapter_config.json").write_text("{}")  # no longer what the report is about
    shutil.rmtree(reported / "b" / ".hf-ci")
    done = run("card", "./a", "./b", "--report", "r.json", "--write")
    assert done.returncode == 4 and "./a: the report is not about the adapter" in done.stderr
    assert done.stdout.startswith("./b: ") and (reported / "b" / ".hf-ci" / "badge.svg").is_file()


def test_none_is_written_where_one_of_them_cannot_be_meant(run, reported):
    for other in ("./nowhere", "demo:clean"):
        done = run("card", "./a", other, "--report", "r.json", "--write")
        assert done.returncode == 2 and not (reported / "a" / ".hf-ci").exists()
