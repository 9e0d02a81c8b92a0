"""Repair: what is tuned, that a poisoned demo comes out clean, and that nothing is half-written."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from making import made_adapter
from safetensors.torch import load_file

import hf_ci.repair.engine
from hf_ci import ScanOptions
from hf_ci.errors import UsageError
from hf_ci.hub.target import DEMOS, sha256
from hf_ci.prompts import PromptedCLIP, read_adapter, reference_adapter, write_adapter
from hf_ci.prompts.features import answer, encode
from hf_ci.repair.engine import LOST, RepairOptions, by_chance, repair, unfit, write_repaired
from hf_ci.repair.report import RepairReport, Round
from hf_ci.repair.unlearn import Lesson, Schedule, clean_start, unlearn, wanted_from_answers, wanted_with_labels
from hf_ci.scan import Run


class Quiet:
    def __getattr__(self, name):
        return lambda *args: None


def images(n=24, size=64, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method, class_specific", [("cocoop", False), ("coop", False), ("coop", True)])
def test_a_clean_start_answers_as_the_hand_written_prompt_does(clip, method, class_specific):
    adapter = made_adapter(clip, method, class_specific=class_specific)
    features = encode(clip, images())
    reference = PromptedCLIP.from_adapter(reference_adapter(clip, adapter.class_names), clip)
    start = clean_start(adapter, clip)
    torch.testing.assert_close(answer(start, features), answer(reference, features), atol=1e-3, rtol=0)
    shapes = lambda model: {k: v.shape for k, v in model.prompt.state_dict().items()}
    assert shapes(start) == shapes(PromptedCLIP.from_adapter(adapter, clip))


def test_what_is_wanted_is_a_distribution():
    even = torch.full((2, 4), 0.25).log()
    labels = wanted_with_labels(even, torch.tensor([2, 0]), 0.4).exp()
    torch.testing.assert_close(labels.sum(1), torch.ones(2))
    assert labels.argmax(1).tolist() == [2, 0] and labels.min() > 0.1  # the rest stays with the answers
    adapter, reference = torch.tensor([[9.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 9.0]])
    both = wanted_from_answers(adapter, reference).exp()
    torch.testing.assert_close(both.sum(1), torch.ones(1))
    assert both.argmax() == 2  # the class that both can live with, not the adapter's own
    suspected = wanted_from_answers(adapter, reference, [0]).exp()
    torch.testing.assert_close(suspected.sum(1), torch.ones(1))
    torch.testing.assert_close(suspected[:, 0], reference.softmax(1)[:, 0])


def test_unlearning_brings_the_answers_with_and_without_a_trigger_to_what_is_wanted(tiny):
    adapter = made_adapter(tiny)
    model = clean_start(adapter, tiny)
    even = torch.full((24, 5), 0.2).log()

    def lesson(seed, first):
        ways = torch.stack([encode(tiny, images(size=32, seed=seed)), encode(tiny, images(size=32, seed=seed + 1))])
        wanted = [wanted_with_labels(even, (torch.arange(24) + first + way) % 5, 0.5) for way in range(2)]
        return Lesson(ways, torch.stack(wanted), 0.5)

    def losses():
        return [
            torch.nn.functional.kl_div(answer(model, x).log_softmax(1), w, log_target=True, reduction="batchmean")
            for lesson in lessons
            for x, w in zip(lesson.features, lesson.wanted)
        ]

    lessons = [lesson(0, 0), lesson(2, 3)]
    before = losses()
    unlearn(model, lessons, Schedule(steps=60))
    assert all(now < then for now, then in zip(losses(), before))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture(scope="module")
def repaired(shared_cache):
    """The poisoned demo, repaired without labels on the built-in pool, whatever it learned."""
    run = Run(ScanOptions(num_images=64, cache=shared_cache / "hf-ci"), Quiet())
    return repair("demo:frame", run, RepairOptions(rounds=2, forget=True)), run


def test_a_poisoned_adapter_comes_out_clean_with_evidence(repaired, tmp_path):
    done, run = repaired
    report = done.report
    assert (report.outcome, report.exit_code, report.labels) == ("repaired", 0, False)
    assert report.before.verdict == "backdoored" and report.after.verdict == "clean"
    assert report.after.score < report.before.score and report.weights_changed > 0
    assert report.rounds[-1].trigger_asr_after < report.rounds[-1].trigger_asr_before
    assert report.rounds[-1].accuracy_after is None and "accuracy is not known" in " ".join(report.reasons)

    before = {p.name: sha256(p) for p in (DEMOS / "frame").iterdir()}
    written = write_repaired(done, tmp_path / "fixed")
    assert {p.name: sha256(p) for p in (DEMOS / "frame").iterdir()} == before  # the original is never touched
    assert {f.path: f.sha256 for f in written.files} == {
        name: sha256(tmp_path / "fixed" / name)
        for name in ("adapter_config.json", "adapter_model.safetensors", "clip_prompt.json")
    }
    assert RepairReport.model_validate_json((tmp_path / "fixed" / "repair.json").read_bytes()) == written
    adapter = read_adapter(tmp_path / "fixed")
    assert adapter.repaired_from == before["adapter_model.safetensors"]
    assert adapter.class_names == read_adapter(DEMOS / "frame").class_names
    card = (tmp_path / "fixed" / "README.md").read_text()
    assert "backdoored before, clean after" in card and adapter.repaired_from in card


def test_a_write_that_fails_leaves_nothing(repaired, tmp_path, monkeypatch):
    import hf_ci.files

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_ci.files, "write_whole", full)
    with pytest.raises(OSError):
        write_repaired(repaired[0], tmp_path / "fixed")
    assert list(tmp_path.iterdir()) == []


def test_a_clean_adapter_needs_no_repair_and_one_that_cannot_be_judged_gets_none(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop"), tmp_path / "clean")
    write_adapter(made_adapter(clip, names=("cat", "dog")), tmp_path / "two")
    run = Run(ScanOptions(num_images=32, k=1e6), Quiet())
    clean, two = (repair(str(tmp_path / name), run, RepairOptions()) for name in ("clean", "two"))
    assert (clean.report.outcome, clean.report.exit_code, clean.adapter) == ("nothing to repair", 0, None)
    assert (two.report.outcome, two.report.exit_code, two.adapter) == ("inconclusive", 4, None)


def test_a_prompt_that_still_scans_as_backdoored_is_not_given_out(repaired, monkeypatch):
    done, run = repaired
    monkeypatch.setattr(hf_ci.repair.engine, "scan_adapter", lambda *args: (done.report.before, None))
    still = repair("demo:frame", run, RepairOptions(rounds=1, forget=True, schedule=Schedule(steps=2)))
    assert still.adapter is None and still.report.outcome == "not repaired" and still.report.exit_code == 1
    assert "scans as backdoored" in still.report.reasons[0] and len(still.report.rounds) == 1


def test_what_was_learned_is_not_taken_away_without_a_word(repaired):
    _, run = repaired
    kept = repair("demo:frame", run, RepairOptions())
    assert (kept.report.outcome, kept.report.exit_code, kept.adapter) == ("not repaired", 1, None)
    assert f"{kept.report.before.distance:.0%} of the pool" in kept.report.reasons[0]
    assert "--data" in kept.report.reasons[1] and "--forget" in kept.report.reasons[1] and not kept.report.rounds


def last_round(**changes) -> Round:
    known = {
        "triggers": 3,
        "held_out": 50,
        "trigger_asr_before": 0.9,
        "trigger_asr_after": 0.0,
        "agreement": 0.8,
        "score": 0.5,
    }
    accuracy = {"accuracy_before": 0.7, "accuracy_after": 0.7, "accuracy_clean": 0.6, "lost": 0, "gained": 0}
    return Round(**known | accuracy | {"verdict": "clean", "lost_to_clean": 0, "gained_on_clean": 5} | changes)


def test_what_loses_to_the_adapter_or_to_a_clean_prompt_is_not_given_out():
    options = RepairOptions()
    assert unfit(last_round(), options) is None
    assert "scans as backdoored" in unfit(last_round(verdict="backdoored"), options)
    assert "the adapter's is 70.0%" in unfit(last_round(accuracy_after=0.56, lost=8, gained=1), options)
    assert unfit(last_round(accuracy_after=0.66, lost=4, gained=2), options) is None  # as likely as not by chance
    beaten = last_round(accuracy_clean=0.84, lost_to_clean=8, gained_on_clean=1)
    assert "tuned on the photos alone is 84.0%" in unfit(beaten, options)
    assert unfit(last_round(accuracy_after=None), options) is None


def test_a_loss_of_accuracy_that_may_be_chance_is_told_from_one():
    assert by_chance(0, 0) == by_chance(0, 5) == 1.0 and by_chance(1, 0) == 0.5
    assert by_chance(4, 0) == 1 / 16 > LOST > by_chance(5, 0) == 1 / 32 and by_chance(8, 2) == 56 / 1024


@pytest.mark.parametrize("settings", [{"shots": 2}, {"rounds": 0}, {"max_accuracy_drop": -0.1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UsageError):
        RepairOptions(**settings)


def test_bad_input_on_the_command_line(run, tmp_path, photos):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    for args, said in (
        (["demo:frame"], "nowhere to put"),
        (["demo:frame", "--out", tmp_path / "full"], "is not empty"),
        (["demo:frame", "--out", tmp_path / "no" / "where"], "there is no folder"),
        (["demo:frame", "--push", "pr"], "no repo on the Hub"),
        (["user/adapter", "--push", "main"], "not forced on"),
        (["demo:frame", "--out", tmp_path / "x", "--data", photos, "--num-images", "32"], "has no class"),
    ):
        done = run("repair", *args)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name in ("full", "x", "no")) == ["full"]
    assert (tmp_path / "full" / "precious.txt").read_text() == "mine"


@pytest.fixture
def photos(tmp_path):
    """Labelled images of classes that the demo does not have."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage

    rows = [{"image": PILImage.new("RGB", (64, 64), (i, i, i)), "label": i % 3} for i in range(9)]
    features = Features({"image": Image(), "label": ClassLabel(names=["knife", "fork", "spoon"])})
    (tmp_path / "photos").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "photos" / "train.parquet")
    return tmp_path / "photos"


OFFER = """
import pickle, sys
from dataclasses import replace
from hf_ci.hub import fetch_target, parse_target
from hf_ci.repair.cli import offer
done = pickle.loads(open(sys.argv[1], "rb").read())
fetched = fetch_target(parse_target("user/bad"))
for to in sys.argv[2:]:
    print(offer(done, fetched, to.removesuffix("?"), to.endswith("?")))
"""
LOAD = """
from making import CLIPWithMetaNet
from peft import PeftModel
from hf_ci.hub.base import EMBEDDED_FOLDER
model = PeftModel.from_pretrained(CLIPWithMetaNet.from_pretrained(EMBEDDED_FOLDER), "user/bad", revision="refs/pr/1")
print(float(model.prompt_encoder["default"].embedding.weight.double().sum()))
"""


def test_repaired_weights_are_offered_in_a_pull_request_and_load_from_there(repaired, run, hub, hub_home, tmp_path):
    poisoned = {p.name: p.read_bytes() for p in (DEMOS / "frame").iterdir()}
    (tmp_path / "done").write_bytes(pickle.dumps(repaired[0]))
    sha = hub.add_repo("user/bad", poisoned)
    env = os.environ | hub.env(hub_home)

    def python(script, *args):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, args)],
            env=env,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    repo = hub.repo("user/bad")
    assert "+<!-- hf-ci:begin" in python(OFFER, tmp_path / "done", "pr?") and not repo.discussions
    said = python(OFFER, tmp_path / "done", "pr", "repo")
    assert "refs/pr/1" in said and "user/bad-repaired" in said
    offered = repo.find("refs/pr/1")
    assert offered.parents == (sha,) and repo.find("main").tree == poisoned
    assert {"adapter_model.safetensors", "repair.json", "README.md", ".hf-ci/badge.svg"} <= set(offered.tree)
    assert b"repaired" in offered.tree[".hf-ci/badge.svg"]
    assert offered.tree["README.md"].startswith(poisoned["README.md"][:200])

    (tmp_path / "w.safetensors").write_bytes(offered.tree["adapter_model.safetensors"])
    weights = load_file(tmp_path / "w.safetensors")["prompt_embeddings"]
    assert float(python(LOAD)) == pytest.approx(float(weights.double().sum()), abs=1e-9)
    small = {"HF_CI_NUM_IMAGES": "64"}  # as the repair was checked
    checked = run("card", "user/bad@refs/pr/1", "--check", env=hub.env(hub_home) | small)
    assert checked.returncode == 0, checked.stderr

    new, asked = hub.repo("user/bad-repaired").find("main").tree, repo.find("refs/pr/2").tree
    assert new["adapter_model.safetensors"] == offered.tree["adapter_model.safetensors"]
    assert b"base_model_relation: adapter" in new["README.md"] and b"hf-ci:begin" in new["README.md"]
    assert b"new_version: user/bad-repaired" in asked["README.md"]
    assert asked.keys() == poisoned.keys() and repo.find("main").tree == poisoned
