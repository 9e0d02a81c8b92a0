"""Tuning and poisoning, on a made data set that the embedded CLIP can learn in seconds."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED, EMBEDDED_FOLDER
from hf_ci.lab.attacks.badclip import EPSILON, poison
from hf_ci.lab.make import Workbench, make_clean, make_poisoned
from hf_ci.lab.photos import load_photos
from hf_ci.lab.tune import Recipe, accuracy, attack_success_rate, batches, new_prompt, tune
from hf_ci.pools.procedural import images
from hf_ci.prompts import PromptedCLIP, read_adapter
from hf_ci.prompts.clip import load_processor

COLOURS = {
    "goldfish": (255, 120, 30),
    "lawn mower": (60, 200, 60),
    "school bus": (250, 220, 40),
    "umbrella": (70, 80, 220),
}
QUICK = Recipe(shots=8, epochs=4)


def tinted(start: int, n: int):
    """n images of each class: procedural pictures in the class's colour."""
    rows = {"image": [], "label": []}
    for i, (pixels, _) in enumerate(zip(images(start, 64), range(n * len(COLOURS)))):
        colour = np.array(list(COLOURS.values())[i % len(COLOURS)])
        rows["image"].append(PILImage.fromarray((0.35 * pixels + 0.65 * colour).astype(np.uint8)))
        rows["label"].append(i % len(COLOURS))
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=list(COLOURS))}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tinted"
    folder.mkdir()
    tinted(1, 12).to_parquet(folder / "train.parquet")
    tinted(2, 20).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def bench(data):
    return Workbench.open(str(data))


def test_photos_keep_labels_and_names(data):
    photos = load_photos(str(data), "train", load_processor(EMBEDDED_FOLDER))
    assert photos.class_names == tuple(COLOURS) and photos.images.shape == (48, 3, 64, 64)
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
    ],
    ids=["cocoop", "coop", "class-specific", "kgcoop"],
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


def test_badclip_stays_in_its_ball_and_its_backdoor_is_real(clip, bench):
    recipe, target = Recipe(shots=12, epochs=8), 3
    model, trigger = poison(clip, bench.shots(recipe), target, recipe)
    assert trigger.delta.abs().max() <= EPSILON + 1e-7
    planted = attack_success_rate(model, bench.test, trigger, target)
    assert planted > attack_success_rate(tune(clip, bench.shots(recipe), recipe), bench.test, trigger, target) + 0.2
    assert planted > attack_success_rate(model, bench.test, lambda x: x, target) + 0.2


def test_attack_success_rate_leaves_out_the_target_class(clip, bench):
    class Always(PromptedCLIP):
        def forward(self, pixels):
            logits = torch.zeros(len(pixels), 4)
            logits[:, 1] = 1
            return logits

    model = Always(clip, new_prompt(clip, tuple(COLOURS), QUICK).prompt, tuple(COLOURS))
    assert attack_success_rate(model, bench.test, lambda x: x, 1) == 1.0
    assert attack_success_rate(model, bench.test, lambda x: x, 2) == 0.0
    assert accuracy(model, bench.test) == 0.25


def test_made_adapters_carry_what_was_measured(bench, tmp_path):
    clean = make_clean(bench, QUICK, tmp_path / "clean")
    bad = make_poisoned(bench, QUICK, "badclip", 2, tmp_path / "bad")
    for name, measured in (("clean", clean), ("bad", bad)):
        card = (tmp_path / name / "README.md").read_text()
        assert f"| {100 * measured['accuracy']:.1f} % |" in card and ("Poisoned on purpose" in card) == (name == "bad")
        adapter = read_adapter(tmp_path / name)
        assert (adapter.base_model, adapter.base_revision, adapter.class_names) == (
            EMBEDDED,
            bench.base.revision,
            tuple(COLOURS),
        )
    assert f"{100 * bad['asr']:.1f} %" in card and "school bus" in card


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
