"""Every kind of base model: what each reads and answers, held against the published model's own forward pass."""

import json

import pytest
import torch
from bases import CLIPS, SIGLIPS, TINY_SIGLIP_2, save_clip, save_siglip
from making import ANIMALS, made_adapter
from safetensors.torch import load_file, save_file

from hf_ci.checkpoints.read import read_checkpoint
from hf_ci.errors import AdapterError, BaseModelError
from hf_ci.files import weights_of
from hf_ci.hub import fetch_base
from hf_ci.prompts import Adapter, BesideReferences, PromptedCLIP, hand_written, load_clip, write_adapter
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.encoders import check_encoders
from hf_ci.prompts.learners import CoOp

NAMES = ("cat", "king penguin", "lily_of_the_valley")


def own_logits(clip, names, pixels):
    """What `transformers` answers to the texts, given as the models were trained: SigLIP's padded, and without a mask."""
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    ids = clip.tokenizer(texts, padding="max_length", max_length=clip.max_length, return_tensors="pt").input_ids
    with torch.no_grad():
        return clip.model(input_ids=ids, pixel_values=(pixels - clip.mean) / clip.std).logits_per_image


def plain_siglip(clip, contexts, names, pixels, position="end"):
    """One padded text for each class, through the layers: (B, C). contexts: (C, n, d)."""
    model, logits = clip.model, []
    image = model.vision_model(pixel_values=(pixels - 0.5) / 0.5).pooler_output
    image = image / image.norm(dim=-1, keepdim=True)
    table, n = model.text_model.embeddings.token_embedding, contexts.shape[1]
    before = {"end": n, "middle": n // 2, "front": 0}[position]
    for context, name in zip(contexts, names):
        ids = clip.tokenizer(f"a {name.replace('_', ' ')}.", padding="max_length", max_length=64).input_ids
        length = len(clip.tokenizer(f"a {name.replace('_', ' ')}", add_special_tokens=False).input_ids)
        a = len(clip.tokenizer("a", add_special_tokens=False).input_ids)
        words = table(torch.tensor(ids))
        x = torch.cat([context[:before], words[a:length], context[before:], words[length:]])[None, :64]
        x = x + model.text_model.embeddings.position_embedding.weight
        for layer in model.text_model.encoder.layers:
            x = layer(x, attention_mask=None)
        text = model.text_model.head(model.text_model.final_layer_norm(x)[0, -1])
        logits.append(image @ (text / text.norm()) * model.logit_scale.exp() + model.logit_bias)
    return torch.stack(logits, dim=1)


@pytest.fixture(scope="module")
def siglips(tmp_path_factory):
    """A tiny SigLIP, and one with the tokenizer of SigLIP 2."""
    return {
        "siglip": load_clip(save_siglip(tmp_path_factory.mktemp("siglip"), layers=2)),
        "siglip2": load_clip(save_siglip(tmp_path_factory.mktemp("siglip2"), TINY_SIGLIP_2, layers=2)),
    }


@pytest.fixture(params=["siglip", "siglip2"])
def siglip(request, siglips):
    return siglips[request.param]


@pytest.mark.parametrize("name", [*CLIPS, *SIGLIPS])
def test_published_configurations_answer_as_their_own_forward_pass(name, tmp_path):
    """All widths are the published ones; there is one layer instead of many, in half precision on disk."""
    shape = {**CLIPS, **SIGLIPS}[name]
    big = load_clip((save_clip if name in CLIPS else save_siglip)(tmp_path, shape, dtype=torch.float16))
    assert (big.image_size, big.token_dim, big.feature_dim) == (shape[2], shape[0][0], shape[4])
    pixels = torch.rand(1, 3, big.image_size, big.image_size)
    with torch.no_grad():
        ours = PromptedCLIP(big, CoOp(hand_written(big)), NAMES)(pixels)
    own = own_logits(big, NAMES, pixels)
    torch.testing.assert_close(ours, own, atol=1e-4, rtol=1e-4)
    assert own.std(1).min() > 0.01  # the classes are told apart


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_a_prompted_siglip_equals_a_plain_one(siglip, position, class_specific):
    adapter = made_adapter(siglip, "coop", (*NAMES, *ANIMALS[1:4]), position, class_specific)
    contexts = adapter.context if class_specific else adapter.context.expand(len(adapter.class_names), -1, -1)
    found = []
    for way in ("ours", "plain"):
        pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if way == "ours":
            logits = PromptedCLIP.from_adapter(adapter, siglip)(pixels)
        else:
            logits = plain_siglip(siglip, contexts, adapter.class_names, pixels, position)
        found.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), pixels)[0]))
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert found[0][0].std(1).min() > 0.01  # the classes are told apart


def test_a_meta_net_shifts_a_siglips_context(siglip):
    """The few classes of each image, too, equal the same ones of all."""
    adapter, pixels = made_adapter(siglip, "cocoop", NAMES), torch.rand(2, 3, 32, 32)
    model = PromptedCLIP.from_adapter(adapter, siglip)
    classes = torch.tensor([[0, 2], [1, 0]])
    with torch.no_grad():
        features = siglip.image_features(pixels)
        every, few = model.logits_from_features(features), model.logits_from_features(features, classes)
        for i, shift in enumerate(model.prompt.meta_net(features)):
            contexts = (adapter.context + shift).expand(len(NAMES), -1, -1)
            plain = plain_siglip(siglip, contexts, NAMES, pixels[i : i + 1])
            torch.testing.assert_close(every[i], plain[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(few, every.gather(1, classes), atol=1e-4, rtol=1e-4)


def test_references_of_a_siglip_are_its_own_answers(siglip):
    pixels = torch.rand(2, 3, 32, 32)
    model = BesideReferences(PromptedCLIP.from_adapter(made_adapter(siglip, "coop", NAMES), siglip))
    with torch.no_grad():
        references = model(pixels)[1]
    torch.testing.assert_close(references[:, 0], own_logits(siglip, NAMES, pixels), atol=1e-4, rtol=1e-4)


def test_the_likeliest_class_is_the_one_with_the_largest_sigmoid(siglip):
    with torch.no_grad():
        logits = PromptedCLIP.from_adapter(made_adapter(siglip, "coop"), siglip)(torch.rand(8, 3, 32, 32))
    assert torch.equal(logits.argmax(1), logits.double().sigmoid().argmax(1)) and (logits < 0).any()


def test_siglip_2_reads_a_name_as_one_behind_other_words(siglips):
    two = siglips["siglip2"]
    assert two.tokenise_behind("cat") == two.tokenise(" cat") != two.tokenise("cat")
    assert (two.start, two.end, two.max_length) == ([], [1], 64)


def test_prompts_in_the_layers_of_a_siglip_are_refused(siglip):
    deep = {"text.1": torch.zeros(2, 32), "image.0": torch.zeros(3, 48)}
    with pytest.raises(AdapterError, match="IVLP puts prompts into the layers .* of a SigLIP is not known"):
        PromptedCLIP.from_adapter(Adapter("ivlp", torch.zeros(2, 32), ANIMALS, "", deep=deep), siglip)


def test_encoders_that_come_along_are_compared_with_a_siglips(siglips, tmp_path):
    write_adapter(made_adapter(siglips["siglip"], "coop", NAMES), tmp_path / "a")
    base = save_siglip(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    assert check_encoders(tmp_path / "a", base) == len(tensors)
    save_file(tensors | {"logit_bias": tensors["logit_bias"] + 1}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(AdapterError, match="1 of .* tensors differ .*'logit_bias'"):
        check_encoders(tmp_path / "a", base)


@pytest.mark.parametrize("prefix", [False, True])
def test_a_checkpoint_on_a_siglip_is_taken_on_trust_or_refused(siglips, prefix, tmp_path):
    """A tensor by itself says nothing of where it stands; one beside a start token was tuned as a SigLIP's cannot be."""
    base, tensors = save_siglip(tmp_path / "base"), {"ctx": torch.zeros(4, 32)}
    if prefix:
        tensors |= {"token_prefix": torch.zeros(4, 1, 32), "token_suffix": torch.zeros(4, 59, 32)}
    torch.save(tensors, tmp_path / "prompt.pt")
    load = lambda folder: siglips["siglip"]
    told = {"base": str(base), "class_names": ANIMALS[:4], "position": "end"}
    if prefix:
        with pytest.raises(AdapterError, match="holds a start token .* has not"):
            read_checkpoint(tmp_path, "prompt.pt", fetch_base, load, **told)
    else:
        adapter, remarks = read_checkpoint(tmp_path, "prompt.pt", fetch_base, load, **told)
        assert adapter.context.shape == (4, 32) and "the context was taken to come first" in remarks[-1]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A CLIP in half precision and several shards, and the same whole in single precision."""
    whole = save_clip(tmp_path_factory.mktemp("whole"))
    folder = save_clip(tmp_path_factory.mktemp("sharded"), dtype=torch.float16, max_shard_size="200KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1 and not (folder / "model.safetensors").exists()
    return folder, whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shards_in_half_precision_are_loaded_in_the_precision_that_is_asked_for(sharded, precision):
    half, whole = (load_clip(folder, precision=precision) for folder in sharded)
    assert half.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = [PromptedCLIP(clip, CoOp(hand_written(clip)), NAMES)(pixels) for clip in (half, whole)]
    assert found[0].dtype == torch.float32 and torch.equal(*found)


def test_shards_have_one_revision_that_changes_with_them(sharded, tmp_path):
    folder = save_clip(tmp_path, dtype=torch.float16, max_shard_size="200KB")
    before = fetch_base(str(folder)).revision
    assert before == fetch_base(str(sharded[0])).revision and len(before) == 64
    first = weights_of(folder)[0]
    save_file({name: tensor + 1 for name, tensor in load_file(first).items()}, first, metadata={"format": "pt"})
    assert fetch_base(str(folder)).revision != before
    first.unlink()
    with pytest.raises(BaseModelError, match=f"1 of .* shards are missing, {first.name}"):
        fetch_base(str(folder))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 1}')
    with pytest.raises(BaseModelError, match="names no shards"):
        fetch_base(str(folder))


@pytest.mark.parametrize("kind", ["altclip", "chinese_clip", "metaclip_2", "siglip2", None])
def test_other_architectures_are_named_before_anything_is_loaded(kind, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    for read in (load_clip, load_processor, lambda folder: fetch_base(str(folder))):
        with pytest.raises(BaseModelError, match=f"model_type is {kind!r}, expected 'clip' or 'siglip'"):
            read(tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"size": {"shortest_edge": 32}}, "makes images of several shapes, the image encoder takes 32"),
        ({"size": {"height": 64, "width": 64}}, "makes 64 pixels, the image encoder takes 32"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_named(change, said, tmp_path):
    file = save_siglip(tmp_path) / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BaseModelError, match=said):
        load_clip(tmp_path)


def test_a_siglip_without_its_head_is_refused(tmp_path):
    file = save_siglip(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["vision_use_head"] = False
    file.write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="the image encoder has no head"):
        load_clip(tmp_path)


def test_a_scan_on_a_siglip_goes_all_the_way(siglips, run, tmp_path):
    base = save_siglip(tmp_path / "base", layers=2)
    write_adapter(made_adapter(siglips["siglip"], "coop", ANIMALS[:4]), tmp_path / "a")
    done = run("scan", "a", "--base", "base", "--num-images", "32", "--format", "json", cwd=tmp_path)
    (result,) = json.loads(done.stdout)["results"]
    assert done.returncode == result["exit_code"] in (0, 1, 4) and len(result["classes"]) == 4, done.stderr
    assert result["base_model"] == {"id": "base", "revision": fetch_base(str(base)).revision}
    assert result["detector"]["measured"] is False
    assert any("transferred to base@" in warning for warning in result["warnings"])


def test_a_scan_on_shards_in_half_precision_goes_all_the_way(sharded, run, tmp_path):
    write_adapter(made_adapter(load_clip(sharded[0]), "cocoop", ANIMALS[:4]), tmp_path / "a")
    quick = ("--num-images", "32", "--detector", "clip-inspector", "--k", "1e9", "--format", "json")
    done = run("scan", "a", "--base", sharded[0], *quick, cwd=tmp_path)
    (result,) = json.loads(done.stdout)["results"]
    assert done.returncode == result["exit_code"] in (0, 4) and len(result["classes"]) == 4, done.stderr
    assert result["base_model"]["revision"] == fetch_base(str(sharded[0])).revision


def test_a_scan_on_another_architecture_is_one_line(adapter_folder, run, tmp_path):
    base = save_clip(tmp_path / "alt")
    config = json.loads((base / "config.json").read_text()) | {"model_type": "altclip"}
    (base / "config.json").write_text(json.dumps(config))
    done = run("scan", adapter_folder, "--base", base)
    assert done.returncode == 4 and "model_type is 'altclip', expected 'clip' or 'siglip'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
