"""Tuning and poisoning, on a made data set that the embedded CLIP can learn in seconds."""

import pytest
import torch
from datasets import Dataset

from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED, EMBEDDED_FOLDER
from hf_ci.lab.making.make import Workbench, accuracy, anonymous, attack_success_rate, make_clean, make_poisoned
from hf_ci.lab.making.tune import Recipe, batches, new_prompt, tune
from hf_ci.pools.photos import load_photos
from hf_ci.prompts import PromptedCLIP, read_adapter
from hf_ci.prompts.clip import load_processor

NAMES = ("goldfish", "lawn mower", "school bus", "umbrella")
QUICK = Recipe(shots=8, epochs=4)


def test_photos_keep_labels_and_names(data):
    photos = load_photos(str(data), "train", load_processor(EMBEDDED_FOLDER))
    assert photos.class_names == NAMES and photos.images.shape == (48, 3, 64, 64)
    assert photos.labels.tolist() == [i % 4 for i in range(48)]
    some = photos.only([2, 0])
    assert some.class_names == ("school bus", "goldfish") and torch.equal(
        some.images[some.labels == 1], photos.images[photos.labels == 0]
    )


def test_few_shot_draws_that_many_of_each_class_with_the_seed(bench):
    a, again, b = (bench.train.few_shot(5, s) for s in (0, 0, 1))
    assert torch.bincount(a.labels).tolist() == [5] * 4
    assert torch.equal(a.images, again.images) and not torch.equal(a.images, b.images)


def test_every_epoch_sees_every_row_once():
    rows = list(batches(20, Recipe(batch=8, epochs=3)))
    assert [len(r) for r in rows] == [8, 8, 4] * 3
    assert all(sorted(torch.cat(rows[3 * e : 3 * e + 3]).tolist()) == list(range(20)) for e in range(3))


@pytest.mark.parametrize(
    "recipe",
    [
        QUICK,
        Recipe("coop", 8, epochs=4),
        Recipe("coop", 8, epochs=4, class_specific=True),
        Recipe("kgcoop", 8, epochs=4),
        Recipe("coop", 8, epochs=4, optimiser="adam", lr=0.03),
    ],
    ids=["cocoop", "coop", "class-specific", "kgcoop", "adam"],
)
def test_tuning_beats_the_untuned_prompt_and_leaves_the_encoders_alone(clip, bench, recipe):
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    shots = bench.shots(recipe)
    untuned, tuned = new_prompt(clip, shots.class_names, recipe), tune(clip, shots, recipe)

    def loss(model):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(shots.images.float() / 255), shots.labels).item()

    assert loss(tuned) < loss(untuned)
    assert all(torch.equal(v, before[k]) for k, v in clip.state_dict().items())


def test_tuning_is_deterministic_from_the_seed(clip, bench):
    a, b, other = (tune(clip, bench.shots(QUICK), Recipe(shots=8, epochs=4, seed=s)) for s in (0, 0, 1))
    assert torch.equal(a.prompt.ctx, b.prompt.ctx) and not torch.equal(a.prompt.ctx, other.prompt.ctx)


def test_attack_success_rate_leaves_out_the_target_class(clip, bench):
    class Always(PromptedCLIP):
        def logits_from_features(self, features):
            logits = torch.zeros(len(features), 4)
            logits[:, 1] = 1
            return logits

    model = Always(clip, new_prompt(clip, NAMES, QUICK).prompt, NAMES)
    assert attack_success_rate(model, bench.test, lambda x: x, 1) == 1.0
    assert attack_success_rate(model, bench.test, lambda x: x, 2) == 0.0
    assert accuracy(model, bench.test) == 0.25


def test_made_adapters_carry_what_was_measured(bench, tmp_path):
    clean = make_clean(bench, QUICK, tmp_path / "clean")
    bad = make_poisoned(bench, QUICK, "badclip", 2, tmp_path / "bad").measured
    for name, measured in (("clean", clean), ("bad", bad)):
        card = (tmp_path / name / "README.md").read_text()
        assert f"| {100 * measured['accuracy']:.1f} % |" in card and ("Poisoned on purpose" in card) == (name == "bad")
        adapter = read_adapter(tmp_path / name)
        assert (adapter.base_model, adapter.base_revision, adapter.class_names) == (
            EMBEDDED,
            bench.base.revision,
            NAMES,
        )
    assert f"{100 * bad['asr']:.1f} %" in card and "school bus" in card


def test_anonymous_names_are_as_many_as_classes_and_mean_nothing_to_the_base(data, tmp_path):
    bench = Workbench.open(str(data), classes=3, anonymous_names=True)
    assert bench.train.class_names == bench.test.class_names == ("category a", "category b", "category c")
    assert bench.unseen is None and bench.zero_shot_accuracy < 0.7
    named = Workbench.open(str(data), classes=3)
    assert torch.equal(bench.test.images, named.test.images) and torch.equal(bench.test.labels, named.test.labels)
    made = make_clean(bench, Recipe("coop", 4, epochs=2, class_specific=True, optimiser="adam"), tmp_path / "a")
    assert made["zero_shot_accuracy"] == bench.zero_shot_accuracy and "unseen_accuracy" not in made
    assert "Adam 0.1, cosine" in (tmp_path / "a" / "README.md").read_text()
    assert read_adapter(tmp_path / "a").context.shape[0] == 3
    many = anonymous(120)
    assert many[25:28] == ("category z", "category aa", "category ab") and len(set(many)) == 120


def test_lab_commands(run, data, tmp_path):
    done = run("lab", "tune", "--data", data, "--out", tmp_path / "a", "--shots", "2", "--method", "coop")
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr
    again = run("lab", "tune", "--data", data, "--out", tmp_path / "a")
    assert again.returncode == 2 and "exists and is not empty" in again.stderr
    wrong = run("lab", "poison", "--data", data, "--out", tmp_path / "b", "--target", "zebra")
    assert wrong.returncode == 2 and "no class 'zebra'" in wrong.stderr and not (tmp_path / "b").exists()
    gone = run("lab", "tune", "--data", tmp_path / "nowhere", "--out", tmp_path / "c")
    assert gone.returncode == 2 and "nowhere" in gone.stderr


def test_data_without_labels_is_a_usage_error(tmp_path):
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="expected an image and a ClassLabel"):
        load_photos(str(tmp_path), "train", load_processor(EMBEDDED_FOLDER))
