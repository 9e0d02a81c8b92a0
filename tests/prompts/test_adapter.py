"""Adapters on disk."""

import json

import pytest
import torch
from making import CLIPWithMetaNet, made_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hf_ci.errors import AdapterError, BaseModelError, NothingToScan
from hf_ci.hub.base import EMBEDDED_FOLDER, fetch_base
from hf_ci.hub.target import sha256
from hf_ci.prompts import read_adapter, write_adapter


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "kind",
    [
        {"method": "cocoop"},
        {"method": "coop", "position": "middle"},
        {"method": "kgcoop", "position": "front"},
        {"method": "coop", "class_specific": True},
    ],
)
def test_what_is_written_is_read(clip, tmp_path, kind):
    adapter = made_adapter(clip, **kind)
    write_adapter(adapter, tmp_path / "a", card="# card\n")
    back = read_adapter(tmp_path / "a")
    assert torch.equal(back.context, adapter.context) and same(back.meta_net, adapter.meta_net)
    assert (back.method, back.class_names, back.class_token_position, back.base_model) == (
        adapter.method,
        adapter.class_names,
        adapter.class_token_position,
        adapter.base_model,
    )
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "clip_prompt.json",
    ]


@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_stock_peft_restores_the_same_tensors(clip, tmp_path, method):
    adapter = made_adapter(clip, method)
    write_adapter(adapter, tmp_path / "a")
    kind = CLIPWithMetaNet if method == "cocoop" else CLIPModel
    base = kind.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "a")
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, adapter.context)
    if method == "cocoop":
        saved = model.base_model.meta_net.modules_to_save["default"].state_dict()
        assert same(saved, adapter.meta_net)


def test_what_newer_or_other_tools_write_is_read(adapter_folder):
    """Keys that PEFT will only know one day, no base model, half precision, and no metadata in the weights."""
    before = read_adapter(adapter_folder)
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    news = {"peft_version": "99.0", "a_key_of_tomorrow": {"deep": [1, None]}, "base_model_name_or_path": None}
    (adapter_folder / "adapter_config.json").write_text(json.dumps(config | news))
    halves = {name: t.half() for name, t in load_file(adapter_folder / "adapter_model.safetensors").items()}
    save_file(halves, adapter_folder / "adapter_model.safetensors")
    after = read_adapter(adapter_folder)
    assert not after.base_model and after.class_names == before.class_names
    torch.testing.assert_close(after.context, before.context.half().float())
    with pytest.raises(BaseModelError, match="names no base model .name it with --base"):
        fetch_base(after.base_model)


def test_an_occupied_folder_is_left_alone(clip, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_adapter(made_adapter(clip), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failed_write_leaves_nothing(clip, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_adapter(made_adapter(clip), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_no_adapter(tmp_path):
    with pytest.raises(NothingToScan, match="there is no adapter_config.json"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "config, found",
    [
        ({"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION"}, "'LORA'"),
        ({"peft_type": "SOMETHING_NEW"}, "'SOMETHING_NEW'"),
        ({}, "None"),
    ],
)
def test_another_kind_of_adapter_is_nothing_to_scan(tmp_path, config, found):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NothingToScan, match=found):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "config, brings", [({"peft_type": "PROMPT_TUNING", "task_type": "TOKEN_CLS"}, False), ({"peft_type": "LORA"}, True)]
)
def test_what_may_be_a_prompt_of_clip_is_never_another_kind(tmp_path, config, brings):
    """Somebody's loader may not look at the field by which it would be left out."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    if brings:
        (tmp_path / "clip_prompt.json").write_text("{}")
    with pytest.raises(AdapterError, match="not a prompt-tuned CLIP adapter"):
        read_adapter(tmp_path)


def test_a_prompt_without_a_config_is_no_empty_folder(tmp_path):
    (tmp_path / "clip_prompt.json").write_text("{}")
    with pytest.raises(AdapterError, match="no adapter_config.json"):
        read_adapter(tmp_path)


def test_what_was_read_does_not_change_with_the_file(adapter_folder):
    weights = adapter_folder / "adapter_model.safetensors"
    adapter = read_adapter(adapter_folder)
    before = adapter.digest
    with weights.open("r+b") as file:  # in place, as a mapped file would show
        file.seek(-1000, 2)
        file.write(bytes(1000))
    assert adapter.digest == before != read_adapter(adapter_folder).digest
    assert dict(adapter.files).keys() == {"adapter_config.json", "adapter_model.safetensors", "clip_prompt.json"}
    assert dict(adapter.files)[weights.name] != sha256(weights)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_damage_is_named(adapter_folder):
    weights, extra = adapter_folder / "adapter_model.safetensors", adapter_folder / "clip_prompt.json"
    original, original_extra = weights.read_bytes(), extra.read_bytes()

    def refused(message):
        with pytest.raises(AdapterError, match=message):
            read_adapter(adapter_folder)
        weights.write_bytes(original), extra.write_bytes(original_extra)

    weights.write_bytes(original[:100]), refused("cannot be read")
    (
        weights.unlink(),
        (adapter_folder / "adapter_model.bin").write_bytes(b"\x80"),
        refused("nothing else is ever opened"),
    )
    extra.write_text("{"), refused("not readable JSON")
    extra.write_text("[]"), refused("holds a list")
    extra.unlink(), refused("names no classes")
    edit_json(extra, class_names=["a", 3]), refused("list of non-empty texts")
    edit_json(extra, class_names=["a", "b", "C_1", "c 1", "d"]), refused("'c 1': such classes cannot be told apart")
    edit_json(extra, class_names=["a", "b", "c", "d", "e\nfake....clean"]), refused("control characters")
    edit_json(extra, format=2), refused("format 2")
    edit_json(extra, template="{name}"), refused("not known")
    edit_json(extra, num_context=7), refused("4 context vectors, clip_prompt.json says 7")
    (
        edit_weights(weights, lambda t: t.update(prompt_embeddings=torch.ones(4, 128, dtype=torch.int64))),
        refused("torch.int64"),
    )
    edit_weights(weights, lambda t: t.update(prompt_embeddings=torch.ones(0, 128))), refused("no matrix")
    edit_json(extra, method="maple"), refused("'maple'")
    edit_json(extra, method="coop"), refused("hold a meta-net")
    edit_json(extra, class_specific=True), refused("4 context vectors cannot be shared out among 5")
    edit_weights(weights, lambda t: t.pop("prompt_embeddings")), refused("no matrix prompt_embeddings")
    edit_weights(weights, lambda t: t.update(extra=torch.zeros(1))), refused("unexpected tensors: 'extra'")
    edit_weights(weights, lambda t: t.pop("base_model.meta_net.linear1.bias")), refused("unexpected tensors")
    assert read_adapter(adapter_folder).method == "cocoop"


def test_class_names_can_be_given(adapter_folder):
    (adapter_folder / "clip_prompt.json").unlink()
    adapter = read_adapter(adapter_folder, ("a", "b", "c"))
    assert adapter.class_names == ("a", "b", "c") and adapter.method == "cocoop"


def test_another_number_of_class_names_is_refused(adapter_folder):
    with pytest.raises(AdapterError, match="2 class names given, the adapter was tuned with 5"):
        read_adapter(adapter_folder, ("a", "b"))
