"""Encoders that come with an adapter: the base model's own, or no verdict."""

import json
import re
from pathlib import Path

import pytest
import torch
from making import ANIMALS, made_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_ci import ScanOptions
from hf_ci import scan_targets as scan
from hf_ci.errors import AdapterError
from hf_ci.files import ENCODERS, WEIGHTS
from hf_ci.hub import fetch_text
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.prompts import read_adapter, write_adapter
from hf_ci.prompts.encoders import base_name, check_encoders
from hf_ci.reports import render

BASE = load_file(EMBEDDED_FOLDER / "model.safetensors")
PROJECTION, LAST = "visual_projection.weight", "vision_model.post_layernorm.weight"
QUICK = ScanOptions(num_images=32, detector="clip-inspector", k=1e9)


def bring(folder: Path, tensors: dict, file: str = WEIGHTS) -> None:
    save_file((load_file(folder / file) if file == WEIGHTS else {}) | tensors, folder / file)


def changed(name=PROJECTION):
    tensor = BASE[name].clone()
    tensor.view(-1)[-1] += 1e-3
    return tensor


@pytest.fixture
def folder(clip, tmp_path):
    write_adapter(made_adapter(clip, "coop", ANIMALS[:3]), tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("prefix", ["", "base_model.", "base_model.model.", "model."])
def test_encoder_tensors_are_known_by_peft_names_too(folder, prefix):
    bring(folder, {prefix + PROJECTION: BASE[PROJECTION], prefix + "logit_scale": BASE["logit_scale"]})
    assert check_encoders(folder, EMBEDDED_FOLDER) == 2 and read_adapter(folder).method == "coop"
    bring(folder, {prefix + PROJECTION: changed()})
    said = "encoder modified: 1 of 2 tensors differ from the base model's, largest difference 0.00[0-9]+: '.*visual_projection"
    with pytest.raises(AdapterError, match=said):
        check_encoders(folder, EMBEDDED_FOLDER)


def test_the_adapters_of_before_bring_none(folder):
    assert check_encoders(folder, EMBEDDED_FOLDER) == 0
    assert [base_name(n) for n in ("prompt_embeddings", "base_model.meta_net.linear1.weight", "extra")] == [None] * 3


def test_a_whole_model_beside_the_adapter_is_compared(folder):
    bring(folder, BASE, ENCODERS)
    assert check_encoders(folder, EMBEDDED_FOLDER) == len(BASE)
    bring(folder, BASE | {PROJECTION: changed(), LAST: changed(LAST)}, ENCODERS)
    with pytest.raises(AdapterError, match=f"2 of {len(BASE)} tensors differ .*: '{LAST}', '{PROJECTION}'"):
        check_encoders(folder, EMBEDDED_FOLDER)


@pytest.mark.parametrize("dtype, equal", [(torch.float16, True), (torch.bfloat16, True), (torch.int8, False)])
def test_less_precision_is_the_same_encoder_and_another_type_is_not(folder, dtype, equal):
    bring(folder, {PROJECTION: BASE[PROJECTION].to(dtype)}, ENCODERS)
    if equal:
        assert check_encoders(folder, EMBEDDED_FOLDER) == 1
    else:
        with pytest.raises(AdapterError, match="encoder modified"):
            check_encoders(folder, EMBEDDED_FOLDER)


@pytest.mark.parametrize(
    "file, name", [(WEIGHTS, "text_model.one.more"), (ENCODERS, "prompt_embeddings"), (ENCODERS, "classifier.weight")]
)
def test_what_is_neither_prompt_nor_the_base_models_is_refused(folder, file, name):
    bring(folder, {name: torch.zeros(1)}, file)
    with pytest.raises(AdapterError, match=f"unexpected tensors: '{name}'"):
        check_encoders(folder, EMBEDDED_FOLDER)


def test_a_tensor_of_another_size_is_never_loaded(folder, monkeypatch):
    """The header decides: nobody's memory is filled by what lies beside an adapter."""
    bring(folder, {PROJECTION: torch.zeros(1000, 1000)}, ENCODERS)
    loaded = []

    class Watched:
        def __init__(self, path, framework):
            self.file = safe_open(path, framework)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            if name == "get_tensor":
                loaded.append(name)
            return getattr(self.file, name)

    monkeypatch.setattr("hf_ci.prompts.encoders.safe_open", Watched)
    with pytest.raises(AdapterError, match="encoder modified"):
        check_encoders(folder, EMBEDDED_FOLDER)
    assert not loaded
    bring(folder, {PROJECTION: BASE[PROJECTION]}, ENCODERS)
    assert check_encoders(folder, EMBEDDED_FOLDER) == 1 and len(loaded) == 2


def test_a_damaged_model_beside_the_adapter_is_named(folder):
    (folder / ENCODERS).write_bytes(b"\x80\x02damaged")
    with pytest.raises(AdapterError, match="model.safetensors cannot be read"):
        check_encoders(folder, EMBEDDED_FOLDER)


def test_a_scan_says_that_they_are_equal_and_judges_nothing_where_they_are_not(folder):
    bring(folder, BASE, ENCODERS)
    (result,) = scan([str(folder)], QUICK).results
    assert result.verdict == "clean" and f"brings {len(BASE)} encoder tensors, equal to the base's" in result.warnings
    assert ENCODERS in {file.path for file in result.files}
    bring(folder, BASE | {PROJECTION: changed()}, ENCODERS)
    (result,) = (report := scan([str(folder)], QUICK)).results
    assert (result.verdict, report.exit_code, result.score) == ("inconclusive", 4, None)
    assert re.search(
        rf"encoder modified: 1 of {len(BASE)} .* largest difference [\d.e-]+: '{PROJECTION}'", result.reasons[0]
    )
    (finding,) = json.loads(render(report, "sarif", lasting=False))["runs"][0]["results"]
    assert finding["ruleId"] == "modified-encoder" and finding["level"] == "error"


def test_they_must_not_change_while_they_are_compared(folder, monkeypatch):
    def swapped(*places):
        count = check_encoders(*places)
        bring(folder, BASE | {PROJECTION: changed()}, ENCODERS)
        return count

    bring(folder, BASE, ENCODERS)
    monkeypatch.setattr("hf_ci.scan.check_encoders", swapped)
    (result,) = scan([str(folder)], QUICK).results
    assert result.exit_code == 4 and "changed while they were read" in result.reasons[0]


def test_a_model_without_an_adapter_is_not_read(tmp_path):
    bring(tmp_path, BASE, ENCODERS)
    assert fetch_text(str(tmp_path)).files == ()
