"""Methods with prompts in the encoders' layers: tuned, poisoned, scanned, and what a table says of them; on a tiny CLIP."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from deep import DEPTHS, made_state
from making import ANIMALS

from hf_ci.errors import UsageError
from hf_ci.lab.benchmarks.bench import read_spec, run_bench
from hf_ci.lab.benchmarks.records import read_records
from hf_ci.lab.benchmarks.rejudge import rejudge
from hf_ci.lab.cards.benchmark import benchmark
from hf_ci.lab.cards.methods import method_rows
from hf_ci.lab.making.deep import DEEP, StayNear
from hf_ci.lab.making.make import Workbench, accuracy, make_clean, make_poisoned
from hf_ci.lab.making.tune import Recipe, Sight, Sights, new_prompt, to_adapter, tune
from hf_ci.lab.options import MethodName
from hf_ci.prompts import PromptedCLIP, read_adapter
from hf_ci.prompts.features import encode
from hf_ci.prompts.methods import METHODS
from hf_ci.prompts.methods.base import untuned

QUICK = Recipe("maple", shots=4, epochs=6, batch=8, optimiser="adam", lr=0.02)
TARGET = 1


@pytest.fixture(scope="module")
def bench(data, base):
    return Workbench.open(str(data), str(base))


def test_every_method_can_be_asked_for():
    deep = {method.name for method in METHODS.values() if not method.measured}
    assert set(DEEP.values()) == deep == set(DEPTHS)
    assert set(get_args(MethodName)) == (METHODS.keys() - deep) | DEEP.keys()


@pytest.mark.parametrize("method", DEPTHS)
def test_tensors_are_those_of_the_authors_checkpoints(tiny, method):
    state = {k.removeprefix("prompt_learner."): v for k, v in made_state(tiny, method, ANIMALS).items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in METHODS[method].taken(state).items()}
    text, image = DEPTHS[method]
    assert METHODS[method].shapes((text, 2, tiny.token_dim), (image, 3, 48)) == theirs
    drawn = untuned(theirs, torch.Generator().manual_seed(0))
    assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == theirs
    assert all(0 < tensor.abs().max() < 0.2 for tensor in drawn.values())


@pytest.mark.parametrize("name", DEEP)
def test_what_is_tuned_learns_and_is_read_back(bench, tmp_path, name):
    recipe = replace(QUICK, method=name)
    before = {k: v.clone() for k, v in bench.clip.state_dict().items()}
    shots = bench.shots(recipe)
    start = new_prompt(bench.clip, shots.class_names, recipe)
    measured = make_clean(bench, recipe, tmp_path / "a")
    assert all(torch.equal(v, before[k]) for k, v in bench.clip.state_dict().items())
    adapter = read_adapter(tmp_path / "a")
    assert adapter.method == DEEP[name] and METHODS[DEEP[name]].title in (tmp_path / "a" / "README.md").read_text()
    deep_text, deep_image = {"vpt-shallow": (0, 1), "vpt-deep": (0, 3)}.get(name, (1, 2))
    assert (len(adapter.layers.text), len(adapter.layers.image)) == (deep_text, deep_image)
    assert torch.equal(adapter.context, start.prompt.ctx.detach()) == name.startswith("vpt")
    tuned = PromptedCLIP.from_adapter(adapter, bench.clip)
    assert accuracy(tuned, bench.test) == pytest.approx(measured["accuracy"])

    def loss(model):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(shots.images.float() / 255), shots.labels).item()

    assert loss(tuned) < loss(start)
    assert all((adapter.deep[k] != v).any() for k, v in start.prompt.deep.items())


def test_the_same_seed_tunes_the_same(bench):
    recipe = replace(QUICK, epochs=1)
    a, b, other = (
        to_adapter(tune(bench.clip, bench.shots(r), r), r, "", None) for r in (recipe, recipe, replace(recipe, seed=1))
    )
    assert a.digest == b.digest != other.digest


@pytest.mark.parametrize("name, attack", [("maple", "learned-8"), ("vpt-deep", "frame"), ("ivlp", "blended")])
def test_a_backdoor_reaches_into_the_layers(bench, tmp_path, name, attack):
    recipe = replace(QUICK, method=name, shots=12, poison_rate=0.5)
    made = make_poisoned(bench, recipe, attack, TARGET, tmp_path / "bad")
    adapter = read_adapter(tmp_path / "bad")
    assert adapter.method == DEEP[name] and adapter.layers.image
    assert made.measured["asr"] > made.measured["asr_on_clean"] + 0.1, made.measured


def test_what_is_seen_is_the_prompted_encoders_and_gradients_reach_the_prompt(bench):
    model = new_prompt(bench.clip, bench.train.class_names, QUICK)
    images, darker = bench.train.images[:6], lambda x: x / 2
    seen, rows = Sights(Sight(model, images[:4]), Sight(model, images[4:], darker)), torch.tensor([5, 0])
    pixels = torch.stack([images[5].float() / 510, images[0].float() / 255])
    found = seen(rows)
    torch.testing.assert_close(found, model.image_features(pixels))
    assert not torch.allclose(found, seen.frozen[rows], atol=1e-3)
    torch.testing.assert_close(seen.frozen[4:], encode(bench.clip, images[4:], darker))
    found.sum().backward()
    assert all(tensor.grad is not None for name, tensor in model.prompt.deep.items() if name.startswith("proj"))


def test_the_text_of_vpt_is_its_own(bench):
    with pytest.raises(UsageError, match="the text of VPT is 'a photo of a'"):
        new_prompt(bench.clip, bench.train.class_names, replace(QUICK, method="vpt-deep", words="an image of"))


def test_promptsrc_keeps_the_mean_of_its_epochs(bench):
    model = new_prompt(bench.clip, bench.train.class_names, replace(QUICK, method="promptsrc"))
    near = StayNear(model, epochs=20, steps=2)
    for step in range(40):
        with torch.no_grad():
            model.prompt.ctx.fill_(step)
        near.stepped()
    near.finish()
    weights = [torch.exp(torch.tensor(-((epoch - 15.0) ** 2) / 2)).item() for epoch in range(1, 21)]
    mean = sum(weight * (2 * epoch + 1) for epoch, weight in enumerate(weights)) / sum(weights)
    assert model.prompt.ctx.detach().unique().item() == pytest.approx(mean, abs=1e-3)


def test_promptsrc_is_held_near_the_base_model(bench):
    model = new_prompt(bench.clip, bench.train.class_names, replace(QUICK, method="promptsrc"))
    near, seen = StayNear(model, 1, 1), Sight(model, bench.train.images[:4])
    own = near.loss(seen.frozen, near.texts, seen.frozen).item()
    assert own == pytest.approx(0, abs=1e-5)
    features = seen(torch.arange(4))
    assert near.loss(features, near.texts, seen.frozen) > 1e-3
    assert near.loss(features, near.texts.roll(1, 1), None) > 1e-3


# ---------------------------------------------------------------- scanned

SPEC = """
pool = "builtin"
num_images = 32
precision = "fp32"
base = "{base}"
[recipe]
shots = 4
epochs = 2
batch = 8
optimiser = "adam"
poison_rate = 0.5
[sets]
tinted = 4
[[group]]
name = "methods"
attacks = ["clean"]
methods = ["vpt-shallow"]
seeds = [601]
detectors = ["contrast"]
photos = [0, 4]
[[group]]
name = "methods, poisoned"
attacks = ["frame"]
methods = ["vpt-shallow"]
seeds = [601]
detectors = ["contrast"]
"""


@pytest.fixture(scope="module")
def records(data, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    (folder / "spec.toml").write_text(SPEC.format(base=base))
    done = run_bench(read_spec(folder / "spec.toml"), data.parent, folder / "a.jsonl", folder / "zoo", num_processes=1)
    return list(done)


def test_a_record_keeps_the_score_and_who_has_it(records):
    assert {(r["model"]["attack"], r["shots"]) for r in records} == {("clean", 0), ("clean", 4), ("frame", 0)}
    for record in records:
        result = record["result"]
        assert (record["model"]["method"], result["method"]) == ("vpt-shallow", "vpt")
        assert (result["verdict"], result["exit_code"], result["target_class"]) == ("inconclusive", 4, None)
        assert result["score"] == max(c["score"] for c in result["classes"]) and len(result["classes"]) == 4
    assert next(r for r in records if r["model"]["attack"] == "frame")["model"]["target"] is not None


def test_photos_are_a_reference_with_an_encoder_of_its_own(records):
    by_shots = {r["shots"]: r["result"] for r in records if r["model"]["attack"] == "clean"}
    photos = by_shots[4]["photos"]
    assert photos["used"] and photos["accuracy"]["tuned"]["right"] > 8 and photos["accuracy"]["tuned"]["photos"] == 16
    # each image goes through the adapter's encoder, the base model's, and those of three clean prompts: five, not two
    assert by_shots[4]["cost"]["image_forward"] > 2 * by_shots[0]["cost"]["image_forward"]


def test_judged_anew_they_are_inconclusive_still(records):
    assert [r["result"]["verdict"] for r in rejudge(records)] == ["inconclusive"] * len(records)


def test_the_table_says_what_scores_are_worth(records):
    made = json.loads(json.dumps(records))
    for record in made:
        bad = record["model"]["attack"] == "frame"
        record["model"] |= {"asr": 0.9} if bad else {}
        record["result"]["score"] = 3.0 if bad else 1.0
        for c in record["result"]["classes"]:
            c |= {"score": 3.0 * (c["index"] == record["model"]["target"]), "flagged": bad and c["index"] < 1}
    rows = method_rows(made)
    assert [(row.name, row.shots) for row in rows] == [
        ("VPT, shallow", 0),
        ("VPT, shallow", 4),
        ("all of them", 0),
        ("all of them", 4),
    ]
    assert [(row.clean.models, row.poisoned.models, row.auroc) for row in rows[1::2]] == [(1, 0, None)] * 2
    for row in rows[::2]:
        assert (row.clean.models, row.poisoned.models, row.auroc, row.failed) == (1, 1, 1.0, 0)
        assert (row.would_alarm.some, row.would_find.some, row.right.some) == (0, 1, 1)
    weak = [r | {"model": r["model"] | ({"asr": 0.1} if r["model"]["attack"] == "frame" else {})} for r in made]
    assert all((row.poisoned.models, row.auroc, row.failed) == (0, None, 1) for row in method_rows(weak)[::2])


def test_a_card_has_the_table_where_there_are_records(records):
    plain = [r for r in records if (r["model"]["attack"], r["shots"]) == ("clean", 0)]
    assert "Prompts in the encoders' layers" not in benchmark(plain)
    card = benchmark(plain, records)
    assert "Prompts in the encoders' layers" in card and "| VPT, shallow | none | 1 | " in card


def test_the_shipped_specification_has_seeds_of_its_own():
    groups = read_spec("methods").groups
    models = [model for group in groups for model in group.models]
    others = [m for name in ("paper", "far", "second-base", "dev") for g in read_spec(name).groups for m in g.models]
    assert {m.recipe.method for m in models} == DEEP.keys() and len(models) == len(set(models))
    assert not {m.recipe.seed for m in models} & {m.recipe.seed for m in others}
    assert all(group.shots == (0, 16) for group in groups)
    shipped = read_records(Path(__file__).parents[2] / "cards" / "methods.jsonl")
    assert {r["model"]["id"] for r in shipped} <= {m.id for m in models}
