"""Methods with prompts in the encoders' layers: their forward passes, and their adapters on disk."""

import json
from dataclasses import replace

import pytest
import torch
from deep import DEPTHS, made_state
from making import ANIMALS, made_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel

from hf_ci.errors import AdapterError
from hf_ci.inversion import Job, run_job
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.probes import Probed
from hf_ci.photos import ask
from hf_ci.pools.photos import Photos
from hf_ci.prompts import Adapter, BesideReferences, PromptedCLIP, hand_written, load_clip, read_adapter, write_adapter
from hf_ci.prompts.methods import ALL, METHODS
from hf_ci.prompts.methods.base import LONGEST, MOST_TOKENS


def deep_adapter(clip, method: str, seed: int = 0) -> Adapter:
    """As its checkpoint would be read; `tests/checkpoints/test_whole.py` reads such."""
    state = {k.removeprefix("prompt_learner."): v for k, v in made_state(clip, method, ANIMALS, seed=seed).items()}
    context = state["ctx"] if "ctx" in state else hand_written(clip)
    return Adapter(method, context, ANIMALS, "", deep=METHODS[method].taken(state))


def pixels(n: int = 3):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", DEPTHS)
def test_what_is_written_is_read_and_answers_the_same(tiny, tmp_path, method):
    adapter = deep_adapter(tiny, method)
    write_adapter(adapter, tmp_path / "a")
    back = read_adapter(tmp_path / "a")
    assert (back.method, back.class_names, back.digest) == (method, ANIMALS, adapter.digest)
    assert same(back.deep, adapter.deep) and torch.equal(back.context, adapter.context)
    with torch.no_grad():
        assert torch.equal(*(PromptedCLIP.from_adapter(one, tiny)(pixels()) for one in (adapter, back)))


@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own
def test_stock_peft_restores_the_same_tensors_where_a_model_has_a_place_for_them(base, tiny, tmp_path):
    class WithPlace(CLIPModel):
        def __init__(self, config):
            super().__init__(config)
            self.deep_prompts = nn.Module()
            for name, layers in (("text", (1, 2)), ("image", (0, 1))):
                size = (2, 32) if name == "text" else (3, 48)
                places = {str(i): nn.Parameter(torch.zeros(size)) for i in layers}
                setattr(self.deep_prompts, name, nn.ParameterDict(places))

        def prepare_inputs_for_generation(self):
            raise NotImplementedError

    adapter = deep_adapter(tiny, "ivlp")
    write_adapter(adapter, tmp_path / "a")
    model = PeftModel.from_pretrained(WithPlace.from_pretrained(base, dtype=torch.float32), tmp_path / "a")
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, adapter.context)
    assert same(model.base_model.deep_prompts.modules_to_save["default"].state_dict(), adapter.deep)


@pytest.mark.parametrize("method", DEPTHS)
def test_every_layer_counts(tiny, method):
    """What is put into any layer of either encoder changes the answers."""
    adapter = deep_adapter(tiny, method)
    with torch.no_grad():
        before = PromptedCLIP.from_adapter(adapter, tiny)(pixels())
        for name, tensor in adapter.deep.items():
            changed = replace(adapter, deep=adapter.deep | {name: tensor + torch.randn_like(tensor)})
            assert changed.digest != adapter.digest
            moved = (PromptedCLIP.from_adapter(changed, tiny)(pixels()) - before).abs().max()
            assert moved > 1e-3, name


@pytest.mark.parametrize("method", DEPTHS)
def test_references_keep_the_base_models_own_encoders(tiny, method):
    adapter = deep_adapter(tiny, method)
    beside = BesideReferences(PromptedCLIP.from_adapter(adapter, tiny))
    alone = BesideReferences(PromptedCLIP.from_adapter(made_adapter(tiny, "coop"), tiny))
    x = pixels().requires_grad_()
    z, references = beside(x)
    torch.testing.assert_close(z, PromptedCLIP.from_adapter(adapter, tiny)(x))
    torch.testing.assert_close(references, alone(x)[1])
    for found, again in zip((z, references), beside.from_features(beside.image_features(x))):
        assert torch.equal(found, again)
    (gradient,) = torch.autograd.grad(z[:, 0].sum(), x)
    assert gradient.abs().sum(dim=(1, 2, 3)).min() > 0


def test_a_reference_with_prompts_of_its_own_is_seen_through_them(tiny):
    tuned = [deep_adapter(tiny, "vpt", seed=1), made_adapter(tiny, "coop"), deep_adapter(tiny, "maple", seed=2)]
    beside = BesideReferences(PromptedCLIP.from_adapter(deep_adapter(tiny, "vpt"), tiny), tuned=tuned)
    with torch.no_grad():
        z, references = beside(pixels())
        torch.testing.assert_close(z, PromptedCLIP.from_adapter(deep_adapter(tiny, "vpt"), tiny)(pixels()))
        for k, one in enumerate(reversed(tuned), 1):
            torch.testing.assert_close(references[:, -k], PromptedCLIP.from_adapter(one, tiny)(pixels()))
    assert beside.image_features(pixels()).shape == (3, 4, 40)  # the adapter's, the base model's, two references'


def test_what_images_came_to_depends_on_references_that_reach_into_the_encoder(base, tiny):
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    shared = lambda *tuned: (
        Job(deep_adapter(tiny, "vpt"), base, "d", images, "p", ContrastInversion(), tuned=tuned).shared
    )
    plain = made_adapter(tiny, "coop")
    assert shared() == shared(plain)
    assert len({shared(), shared(deep_adapter(tiny, "vpt", 1)), shared(deep_adapter(tiny, "vpt", 2))}) == 3


def test_half_the_memory_gives_nearly_the_same_answers(base, tiny):
    adapter, coarse = deep_adapter(tiny, "maple"), load_clip(base, precision="bf16")
    with torch.no_grad():
        exact, other = (PromptedCLIP.from_adapter(adapter, clip)(pixels()) for clip in (tiny, coarse))
    assert (exact - other).abs().max() < 0.5 and other.dtype == torch.float32


def test_what_other_adapters_images_came_to_is_not_taken_for_its_own(base, tiny, tmp_path):
    """The pool's image features are shared by all adapters of a base model but those that reach into the image encoder."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapters = [
        replace(one, class_names=ANIMALS[:3]) for one in (made_adapter(tiny, "coop"), deep_adapter(tiny, "vpt"))
    ]
    jobs = [Job(adapter, base, "digest", images, "pool", ContrastInversion(updates=1)) for adapter in adapters]
    assert jobs[0].shared != jobs[1].shared
    probed = Probed(tiny.image_features, images, tmp_path / jobs[0].shared)
    for job in jobs:
        found = run_job(job, tiny, cache=tmp_path, probed=probed).distance
        with job.model(tiny, images) as model, torch.no_grad():
            z, references = model(images.float() / 255)
            alone = (z.argmax(-1)[:, None] != references.argmax(-1)).all(1).float().mean().item()
        assert found == pytest.approx(alone)
    assert alone > 0  # VPT's texts are a reference's, so that on shared features nothing would be told apart


def test_accuracy_on_photos_is_that_of_the_prompted_encoder(tiny):
    adapter = deep_adapter(tiny, "maple")
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = PromptedCLIP.from_adapter(adapter, tiny)(images.float() / 255).argmax(1)
    present = answers.unique()
    names = tuple(ANIMALS[c] for c in present)
    labels = torch.searchsorted(present, answers)
    one = replace(adapter, class_names=names)
    witnesses = ask(tiny, one, Photos(images, labels, names), "photos")
    assert witnesses.adapter.right == 40


@pytest.mark.parametrize("method", ["maple", "vpt"])
def test_a_clean_prompt_on_photos_is_of_the_adapters_own_kind(tiny, method):
    """It learns through the layers, and has nothing of the adapter's numbers."""
    adapter = replace(deep_adapter(tiny, method), class_names=ANIMALS[:2])
    colour = torch.tensor([[200, 40, 40], [40, 40, 200]])[:, :, None, None]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    noise = torch.randint(-40, 40, (40, 3, 32, 32), generator=generator)
    photos = Photos((colour[labels] + noise).byte(), labels, adapter.class_names)
    witnesses = ask(tiny, adapter, photos, "photos")
    assert witnesses.learned and witnesses.tuned.right > 34 and len(witnesses.own) == 40
    for clean in witnesses.prompts:
        assert (clean.method, clean.deep.keys()) == (method, adapter.deep.keys())
        assert all(not torch.equal(clean.deep[name], tensor) for name, tensor in adapter.deep.items())
        assert PromptedCLIP.from_adapter(clean, tiny)(photos.images.float() / 255).argmax(1).eq(labels).sum() > 34


# ---------------------------------------------------------------- damage


@pytest.fixture
def folder(tiny, tmp_path):
    write_adapter(deep_adapter(tiny, "maple"), tmp_path / "a")
    return tmp_path / "a"


def test_damage_is_named(folder):
    weights, extra = folder / "adapter_model.safetensors", folder / "clip_prompt.json"
    original, said = load_file(weights), extra.read_text()
    prompt = "base_model.deep_prompts."

    def refused(message, change=lambda tensors: None, **changes):
        tensors = dict(original)
        change(tensors)
        save_file(tensors, weights)
        extra.write_text(json.dumps(json.loads(said) | changes))
        with pytest.raises(AdapterError, match=message):
            read_adapter(folder)

    def drop_all(tensors):
        for name in [name for name in tensors if name.startswith(prompt)]:
            tensors.pop(name)

    refused("incomplete: 'proj.bias' missing", lambda t: t.pop(f"{prompt}proj.bias"))
    refused("'compound_prompts_text.0' missing", lambda t: t.pop(f"{prompt}compound_prompts_text.0"))
    refused(
        "incomplete: .* and .* more missing",
        lambda t: t.update({f"{prompt}compound_prompts_text.999": torch.ones(2, 32)}),
    )
    refused("unexpected tensors: 'other'", lambda t: t.update({f"{prompt}other": torch.ones(2)}))
    refused(
        "unexpected tensors: .*text.01", lambda t: t.update({f"{prompt}compound_prompts_text.01": torch.ones(2, 32)})
    )
    refused(
        r"MaPLe's compound_prompts_text.1 is \(3, 32\), expected \(2, 32\)",
        lambda t: t.update({f"{prompt}compound_prompts_text.1": torch.ones(3, 32)}),
    )
    refused(
        r"proj.weight is \(48,\), expected \(any, 32\)", lambda t: t.update({f"{prompt}proj.weight": torch.ones(48)})
    )
    refused("'maple', but the weights hold no prompts for the encoders' layers", drop_all)
    refused("'coop', but the weights hold prompts for the encoders' layers", method="coop")
    refused("unexpected tensors: 'compound_prompt_projections", method="ivlp")
    refused("class name stands at the front.*as MaPLe has it", class_token_position="front")
    refused("class-specific contexts is not known", class_specific=True, num_context=1, class_names=["a", "b"])


@pytest.mark.parametrize(
    "method, name, tensor, message",
    [
        ("vpt", "image.3", torch.ones(3, 48), "VPT prompts for layer 3 of the image encoder, which has layers 0 to 2"),
        ("ivlp", "text.3", torch.ones(2, 32), "IVLP prompts for layer 3 of the text encoder"),
        ("ivlp", "image.0", torch.ones(3, 32), "prompts for layer 0 have 32 dimensions, the base model has 48"),
        ("maple", "proj.bias", torch.full((48,), 2 * LONGEST), "long, at most 10000 is read"),
        ("maple", "proj.bias", torch.full((48,), torch.nan), "up to nan long"),
    ],
)
def test_what_does_not_fit_the_base_model_is_named(tiny, method, name, tensor, message):
    adapter = deep_adapter(tiny, method)
    with pytest.raises(AdapterError, match=message):
        PromptedCLIP.from_adapter(replace(adapter, deep=adapter.deep | {name: tensor}), tiny)


def test_so_many_tokens_as_no_training_makes_are_refused(tiny):
    many = Adapter("vpt", hand_written(tiny), ANIMALS, "", deep={"image.0": torch.ones(MOST_TOKENS + 1, 48)})
    with pytest.raises(AdapterError, match=f"are 257, at most {MOST_TOKENS}"):
        PromptedCLIP.from_adapter(many, tiny)


def test_methods_are_told_apart_by_their_names():
    assert len(METHODS) == len(ALL) and all(METHODS[method.name] is method for method in ALL)
    assert {method.name for method in ALL if not method.measured} == set(DEPTHS)
