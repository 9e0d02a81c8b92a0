"""The configuration, and findings that are accepted for a while."""

import hashlib
import json
from datetime import date
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from hf_ci.config import SAMPLE, Ignore, find_config, schema
from hf_ci.errors import UsageError
from hf_ci.files import WEIGHTS
from hf_ci.report import ClassScore, NamedClass, Report, ScannedFile, ScanResult
from hf_ci.suppress import read_baseline, suppress


def result(target, verdict, code):
    files = (ScannedFile(path=WEIGHTS, sha256=hashlib.sha256(target.encode()).hexdigest()),)
    return ScanResult(target=target, files=files, verdict=verdict, reasons=("why",), exit_code=code)


REPORT = Report(results=(result("a", "backdoored", 1), result("b", "inconclusive", 4), result("c", "clean", 0)))
BAD, UNKNOWN, _ = (result.fingerprint for result in REPORT.results)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ignore(finding, until):
    return Ignore(fingerprint=finding, reason="a talk", until=until)


def test_every_setting_has_its_origin_flag_before_environment_before_file(run, tmp_path):
    Path(".hf-ci.yaml").write_text("scan: {num-images: 70, seed: 5, pool: photos}\nadapters: [org/model]\n")
    shown = run("config", env={"HF_CI_SEED": "8"}).stdout
    assert "num-images: 70  # .hf-ci.yaml" in shown and "seed: 8  # environment" in shown
    assert (
        'pool: "photos"  # .hf-ci.yaml' in shown
        and "k:   # default" in shown
        and yaml.safe_load(shown)["adapters"] == ["org/model"]
    )
    refused = run("scan", "demo:clean", "--num-images", "3", env={"HF_CI_NUM_IMAGES": "4"})
    assert refused.returncode == 2 and "--num-images 3: expected at least 32" in refused.stderr


def test_no_setting_leaves_its_line(run):
    shown = run("config", env={"HF_CI_POOL": "x\n::error::forged", "HF_CI_BASE": "##[error]forged"}).stdout
    assert not any(line.lstrip().startswith("::") for line in shown.splitlines()) and "##[" not in shown
    assert yaml.safe_load(shown)["scan"]["pool"] == "x\n::error::forged"


def test_pyproject_serves_where_there_is_no_file_of_ours():
    assert find_config().origin is None
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert find_config().origin is None
    Path("pyproject.toml").write_text("[tool.hf-ci]\nadapters = ['a/b']\n[tool.hf-ci.scan]\nnum-images = 64\n")
    found = find_config()
    assert (found.origin, found.config.adapters, found.config.scan.num_images) == ("pyproject.toml", ("a/b",), 64)
    Path(".hf-ci.yaml").write_text("adapters: [c/d]")
    assert find_config().config.adapters == ("c/d",)


@pytest.mark.parametrize(
    "text, message",
    [
        ("scan: {num-image: 3}", "scan.num-image: unknown key, did you mean 'num-images'?"),
        ("adapter: []", "adapter: unknown key, did you mean 'adapters'?"),
        ("adapters: [{org: x, matches: y}]", "adapters.0.matches: unknown key, did you mean 'match'?"),
        ("scan: {cache: here}", "scan.cache: unknown key"),
        ("scan: {num-images: many}", "scan.num-images: Input should be a valid integer"),
        ("ignore: [{fingerprint: x, reason: '', until: soon}]", "ignore.0.until"),
        (f"ignore: [{{fingerprint: {BAD}, reason: known}}]", "ignore.0.until: Field required"),
        ("adapters: [''", "while parsing"),
        ("adapters: [./bad]\nadapters: [./good]", "a second key 'adapters'"),
        ("scan: {seed: 1, pool: x, seed: 2}", "a second key 'seed'"),
        ("- a", "the file: Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    Path(".hf-ci.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        find_config()
    assert ".hf-ci.yaml: " in str(error.value) and message in str(error.value)


def test_a_configuration_that_is_not_there_is_an_error():
    with pytest.raises(UsageError, match="no.yaml"):
        find_config(Path("no.yaml"))


def test_init_writes_a_sample_that_is_valid_and_never_overwrites(run):
    assert run("init").returncode == 0
    assert Path(".hf-ci.yaml").read_text() == SAMPLE
    assert find_config().config.scan.num_images == 256
    Path(".hf-ci.yaml").write_text("mine")
    refused = run("init")
    assert refused.returncode == 2 and Path(".hf-ci.yaml").read_text() == "mine"


def test_published_schema_is_that_of_the_code_and_accepts_the_sample():
    published = json.loads(files("hf_ci").joinpath("schema/config.schema.json").read_text())
    assert published == schema()
    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(yaml.safe_load(SAMPLE), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"scan": {"num-image": 3}}, published)


def test_an_ignore_holds_until_its_last_day_and_says_when_it_is_over():
    for today, code in ((date(2030, 1, 31), 4), (date(2030, 2, 1), 1)):
        found = suppress(REPORT, [ignore(BAD, "2030-01-31")], today=today)
        assert found.exit_code == code and found.results[0].verdict == "backdoored"
        assert (found.results[0].suppressed is None) == (code == 1)
        assert any("expired on 2030-01-31" in note for note in found.notes) == (code == 1)
    both = [ignore(BAD, "2030-01-31"), ignore(UNKNOWN, "2030-01-31")]
    assert suppress(REPORT, both, today=date(2030, 1, 1)).exit_code == 0


def test_an_ignore_without_a_finding_is_reported_when_everything_was_scanned():
    stale = [ignore("0" * 64, "2030-01-31")]
    assert suppress(REPORT, stale, today=date(2030, 1, 1)).notes == ()
    judged = REPORT.model_copy(update={"results": (REPORT.results[0], REPORT.results[2])})
    (note,) = suppress(judged, stale, whole=True, today=date(2030, 1, 1)).notes
    assert note == "ignore 000000000000 (a talk) matches no finding: remove it"


def test_an_ignore_is_called_unused_only_where_nothing_can_still_turn_out_to_be_its_finding():
    stale, today = [ignore("0" * 64, "2030-01-31")], date(2030, 1, 1)
    assert len(suppress(REPORT, stale, whole=True, today=today).notes) == 1  # what is unsure has other weights
    down = result("d", "inconclusive", 4).model_copy(update={"about_weights": False})
    assert suppress(Report(results=(*REPORT.results, down)), stale, whole=True, today=today).notes == ()
    scored = ClassScore(index=0, name="frog", loss=0, asr=1, score=1, flagged=False)
    unsure = result("a", "inconclusive", 4).model_copy(update={"classes": (scored,)})
    was = unsure.model_copy(update={"verdict": "backdoored", "target_class": NamedClass(index=0, name="frog")})
    assert (
        suppress(Report(results=(unsure,)), [ignore(was.fingerprint, "2030-01-31")], whole=True, today=today).notes
        == ()
    )


def test_an_expired_ignore_may_be_renewed():
    renewed = [ignore(BAD, "2030-12-31"), ignore(BAD, "2030-01-31")]
    found = suppress(REPORT, renewed, today=date(2030, 2, 1))
    assert found.results[0].suppressed.until == "2030-12-31" and found.notes == ()


@pytest.mark.parametrize(
    "failure",
    [
        result("a", "inconclusive", 5).model_copy(update={"about_weights": False}),
        result("a", "inconclusive", 4).model_copy(update={"about_weights": False}),
        result("a", "inconclusive", 4).model_copy(update={"files": ()}),
    ],
)
def test_a_failure_is_never_accepted(failure):
    report = Report(results=(failure,))
    Path("old.json").write_text(report.model_dump_json())
    found = suppress(report, [ignore(failure.fingerprint, "2999-01-01")], read_baseline(Path("old.json")))
    assert found.results[0].suppressed is None and found.exit_code == failure.exit_code


def test_a_baseline_knows_its_backdoors_and_nothing_else():
    Path("old.json").write_text(REPORT.model_dump_json())
    found = suppress(REPORT, baseline=read_baseline(Path("old.json")))
    assert found.exit_code == 4 and [r.suppressed is not None for r in found.results] == [True, False, False]
    Path("bad.json").write_text('{"runs": []}')
    for name in ("bad.json", "none.json"):
        with pytest.raises(UsageError, match=name):
            read_baseline(Path(name))
