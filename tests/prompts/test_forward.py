"""The prompted forward pass, held against CLIP's own."""

import pytest
import torch
from making import ANIMALS, made_adapter
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_ci.errors import AdapterError, BaseModelError
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import Adapter, BesideReferences, PromptedCLIP, load_clip
from hf_ci.prompts.learners import CoOp
from hf_ci.prompts.text import LONGEST_TREE, build_trees

WORDS = "a photo of a"
LONG = "a very long name of a thing that hardly anybody would ever write down, not even in a catalogue of ships"
NAMES = (*ANIMALS, "lily_of_the_valley", "日本の猫", "ÅNGSTRÖM", "🦊", LONG)


def hand_written(clip, names, position="end"):
    with torch.no_grad():
        context = clip.token_embeddings(torch.tensor(clip.tokenise(WORDS)))
    return PromptedCLIP(clip, CoOp(context), names, position)


def clips_own_logits(clip, texts, pixels, padding="max_length"):
    tokens = clip.tokenizer(texts, padding=padding, max_length=clip.max_length, return_tensors="pt")
    with torch.no_grad():
        return clip.model(input_ids=tokens.input_ids, pixel_values=(pixels - clip.mean) / clip.std).logits_per_image


def text(name, position):
    name = name.replace("_", " ")
    return {"end": f"a photo of a {name}.", "middle": f"a photo {name} of a.", "front": f"{name} a photo of a."}[
        position
    ]


@pytest.mark.parametrize("padding", ["max_length", "longest"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_context_of_word_embeddings_equals_clips_own_forward(clip, position, padding):
    """CLIP encodes every text alone and padded; ours shares the prefix and ends at each EOT.

    CoOp tokenises "name." as one, and a symbol with the full stop behind it otherwise than without: only there it differs.
    """
    pixels = torch.rand(3, 3, 64, 64)
    names = [name for name in NAMES if position == "end" or name[-1].isalnum()]
    with torch.no_grad():
        ours = hand_written(clip, tuple(names), position)(pixels)
    own = clips_own_logits(clip, [text(n, position) for n in names], pixels, padding)
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-4)


def test_prefix_is_encoded_once_and_nothing_after_an_eot(clip):
    (tree,) = build_trees(clip, ("cat", "king penguin"), 4, "end", class_specific=False)
    lengths = [len(clip.tokenise(f"{name}.")) + 1 for name in ("cat", "king penguin")]
    assert len(tree.position) == 5 + sum(lengths)
    assert tree.position.tolist() == [*range(5), *range(5, 5 + lengths[0]), *range(5, 5 + lengths[1])]
    assert tree.eot.tolist() == [5 + lengths[0] - 1, 5 + sum(lengths) - 1]


def test_classes_do_not_see_one_another(clip):
    """Many trees or one, alone or in company: a class's features stay the same."""
    names = tuple(f"thing {i}" for i in range(150))
    trees = build_trees(clip, names, 4, "end", class_specific=False)
    assert len(trees) > 1 and all(len(t.position) <= LONGEST_TREE for t in trees)
    with torch.no_grad():
        together = hand_written(clip, names).text_features(torch.empty(0))[0]
        for c in (0, 70, 149):
            alone = hand_written(clip, names[c : c + 1]).text_features(torch.empty(0))[0, 0]
            torch.testing.assert_close(together[c], alone, atol=1e-5, rtol=1e-4)


def test_one_class_and_a_thousand(clip):
    pixels = torch.rand(2, 3, 64, 64)
    for names in (("cat",), tuple(f"thing number {i}" for i in range(1000))):
        with torch.no_grad():
            logits = hand_written(clip, names)(pixels)
        assert logits.shape == (2, len(names)) and logits.isfinite().all()


def test_name_that_does_not_fit_the_text_tower_is_an_adapter_error(clip):
    with pytest.raises(AdapterError, match="tokens, the text tower reads 77"):
        hand_written(clip, ("cat", "word " * 90))


def test_cocoop_shifts_the_context_by_the_meta_net(clip):
    """The batched forward equals, image by image, a plain prompt whose context carries that image's shift."""
    adapter, pixels = made_adapter(clip), torch.rand(3, 3, 64, 64)
    model = PromptedCLIP.from_adapter(adapter, clip)
    with torch.no_grad():
        together = model(pixels)
        shift = model.prompt.meta_net(clip.image_features(pixels))
        for i in range(3):
            alone = PromptedCLIP(clip, CoOp(adapter.context + shift[i]), adapter.class_names)(pixels[i : i + 1])
            torch.testing.assert_close(together[i], alone[0], atol=1e-4, rtol=1e-4)


def test_class_specific_context_belongs_to_its_class(clip):
    adapter, pixels = made_adapter(clip, "coop", class_specific=True), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = PromptedCLIP.from_adapter(adapter, clip)(pixels)
        for c, name in enumerate(adapter.class_names):
            alone = PromptedCLIP(clip, CoOp(adapter.context[c]), (name,))(pixels)
            torch.testing.assert_close(logits[:, c], alone[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_gradient_reaches_the_pixels(clip, method):
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    model = PromptedCLIP.from_adapter(made_adapter(clip, method), clip)
    with model.frozen_prompt():
        model(pixels)[:, 0].sum().backward()
    assert pixels.grad.abs().sum(dim=(1, 2, 3)).min() > 0
    assert all(p.grad is None for p in model.parameters())


def test_frozen_prompt_gives_the_same_logits(clip):
    pixels = torch.rand(2, 3, 64, 64)
    model = PromptedCLIP.from_adapter(made_adapter(clip, "coop"), clip)
    with torch.no_grad():
        before = model(pixels)
        with model.frozen_prompt():
            assert torch.equal(model(pixels), before)


@pytest.fixture(scope="module")
def vit_base(tmp_path_factory):
    """A random model of exactly the configuration of openai/clip-vit-base-patch16, on disk."""
    folder = tmp_path_factory.mktemp("vit-b-16")
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # the ids that the original's config carries
    config = CLIPConfig(
        text_config=dict(
            vocab_size=49408,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=8,
            max_position_embeddings=77,
            projection_dim=512,
            **special,
        ),
        vision_config={
            "image_size": 224,
            "patch_size": 16,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 512,
        },
        projection_dim=512,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vit_base_patch16_goes_through_the_same_code(vit_base, precision):
    big = load_clip(vit_base, precision=precision)
    assert (big.image_size, big.token_dim, big.dtype) == (
        224,
        512,
        {"fp32": torch.float32, "bf16": torch.bfloat16}[precision],
    )
    pixels = torch.rand(1, 3, 224, 224, requires_grad=True)
    model = PromptedCLIP.from_adapter(made_adapter(big, names=("cat", "dog", "lily of the valley")), big)
    logits = model(pixels)
    logits[:, 0].sum().backward()
    assert logits.shape == (1, 3) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert pixels.grad.isfinite().all() and pixels.grad.abs().sum() > 0


def test_vit_base_patch16_equals_its_own_forward(vit_base):
    big, pixels = load_clip(vit_base), torch.rand(1, 3, 224, 224)
    # eos_token_id 2 makes transformers pool at the highest id, which is the embedded tokenizer's EOT
    with torch.no_grad():
        ours = hand_written(big, ("cat", "lily of the valley"))(pixels)
    own = clips_own_logits(big, ["a photo of a cat.", "a photo of a lily of the valley."], pixels)
    torch.testing.assert_close(ours, own, atol=1e-3, rtol=1e-3)


def test_folder_without_a_clip_is_a_base_model_error(tmp_path):
    with pytest.raises(BaseModelError, match="no config.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BaseModelError, match="'llama', expected 'clip'"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(BaseModelError, match="cannot be loaded as a CLIP"):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context": torch.zeros(4, 99)}, "99 dimensions, the base model's text tower has 256"),
        (
            {"context": torch.zeros(3, 4, 256), "method": "coop", "meta_net": {}},
            "3 class-specific contexts, 5 class names",
        ),
        (
            {
                "meta_net": {
                    "linear1.weight": torch.zeros(8, 100),
                    "linear1.bias": torch.zeros(8),
                    "linear2.weight": torch.zeros(256, 8),
                    "linear2.bias": torch.zeros(256),
                }
            },
            r"linear1.weight is \(8, 100\), this base model needs \(8, 384\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_the_base_are_named(clip, change, message):
    adapter = Adapter(**{**vars(made_adapter(clip)), **change})
    with pytest.raises(AdapterError, match=message):
        PromptedCLIP.from_adapter(adapter, clip)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_the_fast_way_is_the_plain_one(clip, method, position):
    """Logits and gradients to the pixels equal those of one padded sequence for each image and class."""
    from hf_ci.lab.cost.plain import PlainPromptedCLIP

    names = (*NAMES[:-1], "a quite long name")
    model = PromptedCLIP(
        clip, PromptedCLIP.from_adapter(made_adapter(clip, method, names), clip).prompt, names, position
    )
    pixels = torch.rand(2, 3, 64, 64)
    found = []
    with model.requires_grad_(False).frozen_prompt():
        for way in (model, PlainPromptedCLIP(model)):
            x = pixels.clone().requires_grad_()
            logits = way(x)
            found.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), x)[0]))
    (ours, gradient), (plain, plain_gradient) = found
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_few_classes_of_each_image_equal_the_same_ones_of_all(clip, position):
    model = PromptedCLIP.from_adapter(made_adapter(clip, names=NAMES, position=position), clip)
    features = torch.nn.functional.normalize(torch.randn(4, clip.feature_dim), dim=-1)
    classes = torch.stack([torch.randperm(len(NAMES))[:3] for _ in range(4)])
    with torch.no_grad():
        every, few = model.logits_from_features(features), model.logits_from_features(features, classes)
    torch.testing.assert_close(few, every.gather(1, classes), atol=1e-4, rtol=1e-4)


def test_nearest_classes_are_found_when_they_are_asked_for(clip):
    names = tuple(f"thing {i}" for i in range(15))
    pool = torch.randint(0, 256, (9, 3, 64, 64), dtype=torch.uint8)
    model = BesideReferences(PromptedCLIP.from_adapter(made_adapter(clip, names=names), clip), pool)
    assert "nearest" not in vars(model)
    with torch.no_grad():
        assert torch.equal(model.nearest[:, 0], model(pool.float() / 255)[0].argmax(-1))
    assert model.nearest.shape == (9, 7)
