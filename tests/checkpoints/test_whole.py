"""Whole models of MaPLe, IVLP, PromptSRC and VPT, as training code saves them: read, converted, scanned."""

import json
import re

import pytest
import torch
from dassl import save_checkpoint
from deep import DEPTHS, FOLDERS, averaged, half, logits, made_state, save_tiny_clip
from making import ANIMALS

from hf_ci import ScanOptions
from hf_ci.checkpoints.read import read_checkpoint
from hf_ci.checkpoints.whole import parts
from hf_ci.detect.verdict import Verdict, unmeasured
from hf_ci.errors import AdapterError, EncoderModified
from hf_ci.hub import fetch_base
from hf_ci.progress import Silent
from hf_ci.prompts import PromptedCLIP, read_adapter, write_adapter
from hf_ci.prompts.methods import METHODS
from hf_ci.repair.engine import RepairOptions, repair
from hf_ci.scan import Run, scan_target

IN_PROJ = "image_encoder.transformer.resblocks.1.attn.in_proj_weight"


@pytest.fixture
def read(base, tiny, tmp_path):
    """Of a state_dict, saved as Dassl does."""

    def read(state, **told):
        file = save_checkpoint(state, tmp_path / "saved")
        return read_checkpoint(file.parent, file.name, fetch_base, lambda folder: tiny, **{"base": str(base)} | told)

    return read


def names_for(method: str) -> dict:
    return {"class_names": ANIMALS} if method == "vpt" else {}


def answers(clip, adapter, pixels):
    with torch.no_grad():
        return PromptedCLIP.from_adapter(adapter, clip)(pixels)


def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", DEPTHS)
def test_a_checkpoint_answers_as_the_training_code_does_also_converted(read, tiny, tmp_path, method):
    state = made_state(tiny, method, ANIMALS)
    adapter, _ = read(state, **names_for(method))
    write_adapter(adapter, tmp_path / "adapter")
    back = read_adapter(tmp_path / "adapter")
    assert (back.method, back.class_names, back.digest) == (method, ANIMALS, adapter.digest)
    torch.testing.assert_close(answers(tiny, back, pixels()), logits(tiny, state, ANIMALS, pixels()), atol=1e-4, rtol=0)


def test_an_output_folder_is_converted_on_the_command_line(base, tiny, tmp_path, run):
    save_checkpoint(made_state(tiny, "vpt", ANIMALS), tmp_path / "output" / FOLDERS["vpt"])
    (tmp_path / "names.txt").write_text("\n".join(ANIMALS))
    done = run("convert", "output", "--out", "adapter", "--base", base, "--classes", "names.txt")
    assert done.returncode == 0 and "vpt, 5 classes (cat, dog" in done.stdout, done.stderr
    assert "85 encoder tensors, equal" in done.stderr
    assert json.loads((tmp_path / "adapter" / "clip_prompt.json").read_text())["method"] == "vpt"


@pytest.mark.parametrize("method", DEPTHS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_half_precision_and_several_gpus(read, tiny, method, wrapped):
    state = half(made_state(tiny, method, ANIMALS))
    saved = {f"module.{name}": tensor for name, tensor in state.items()} if wrapped else state
    adapter, remarks = read(saved, **names_for(method))
    exact = {name: tensor.float() for name, tensor in state.items()}
    torch.testing.assert_close(
        answers(tiny, adapter, pixels()), logits(tiny, exact, ANIMALS, pixels()), atol=1e-4, rtol=0
    )
    assert any("equal to the base's" in remark for remark in remarks) and not any("on trust" in r for r in remarks)


@pytest.mark.parametrize("method, depth", [("maple", 1), ("ivlp", 1), ("vpt", 1)])
def test_shallow_prompts_stand_in_the_first_layer_alone(read, tiny, monkeypatch, method, depth):
    monkeypatch.setitem(DEPTHS, method, (depth * (method != "vpt"), depth))
    adapter, _ = read(made_state(tiny, method, ANIMALS), **names_for(method))
    assert (list(adapter.layers.text), list(adapter.layers.image)) == ([], [0])


def test_every_tensor_of_the_base_model_is_compared(read, tiny):
    """Whichever is changed, by however little."""
    state = made_state(tiny, "maple", ANIMALS)
    frozen = [name for name in state if not name.startswith("prompt_learner.")]
    known = {name for key in frozen for name in parts(key, state[key])}
    assert known == {k for k in tiny.model.state_dict() if "token_embedding" not in k and "position_ids" not in k}
    read(state)
    for name in [*frozen[:3], IN_PROJ, *frozen[-3:]]:
        changed = state[name].clone()
        changed.view(-1)[-1] += 1e-3
        with pytest.raises(EncoderModified, match=f"1 of 85 tensors differ .*0.001: '{re.escape(name)}'"):
            read(state | {name: changed})


@pytest.mark.parametrize("std", [1.0, 10.0])
def test_promptsrcs_mean_over_epochs_is_no_altered_encoder(read, tiny, std):
    """It rounds every frozen weight and every token; whatever else was done to them is found all the same."""
    state = averaged(half(made_state(tiny, "promptsrc", ANIMALS)), std=std)
    adapter, remarks = read(state)
    assert adapter.class_names == ANIMALS
    assert any(
        re.search(r"129 encoder tensors, equal .* but for the rounding of a mean .*0\.\d% of", r) for r in remarks
    )
    changed = state[IN_PROJ].clone()
    assert changed.dtype == torch.float16
    value, count = changed.unique(return_counts=True)
    one = (changed == value[count.argmax()]).nonzero()[0]  # of several that are equal
    changed[tuple(one)] *= 1.002
    with pytest.raises(EncoderModified, match="1 of 129"):
        read(state | {IN_PROJ: changed})
    for name, factor in ((IN_PROJ, 1.05), ("text_encoder.ln_final.weight", 1.0001)):
        with pytest.raises(EncoderModified, match=re.escape(name)):
            read(state | {name: state[name] * factor})
    with pytest.raises(EncoderModified):
        read(state | {IN_PROJ: torch.full_like(changed, torch.nan)})


def test_no_other_method_may_round(read, tiny):
    state = averaged(half(made_state(tiny, "ivlp", ANIMALS)))
    with pytest.raises(AdapterError, match="its token_prefix is not that model's start token"):
        read(state)


def test_a_rounded_token_is_told_from_another_vector(read, tiny):
    state = averaged(half(made_state(tiny, "promptsrc", ANIMALS)))
    state["prompt_learner.token_suffix"][2, 0] *= 1.1
    with pytest.raises(AdapterError, match="vector 0 of class 2 is no token"):
        read(state)


def test_another_base_model_is_told_apart(read, tiny, tmp_path):
    other = save_tiny_clip(tmp_path / "other", seed=1)
    for method, said in (("maple", "token_prefix is not that model's"), ("vpt", "85 of 85 tensors differ|84 of 85")):
        with pytest.raises(AdapterError, match=said):
            read(made_state(tiny, method, ANIMALS), base=str(other), **names_for(method))


def test_vpt_asks_for_what_it_lacks_and_knows_the_embedded_clip(read, tiny, clip, tmp_path):
    with pytest.raises(AdapterError, match=r"which CLIP.*nor the class names \(.*--base; its text tower has 32"):
        read(made_state(tiny, "vpt", ANIMALS), base=None)
    file = save_checkpoint(made_state(clip, "vpt", ANIMALS), tmp_path / "vpt")
    adapter, _ = read_checkpoint(file.parent, file.name, fetch_base, lambda folder: clip, class_names=ANIMALS)
    assert adapter.base_model == "hf-ci-clip-64" and list(adapter.layers.image) == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("maple", {"prompt_learner.ctx": None}, "MaPLe's prompts for the layers, but no context"),
        ("maple", {"prompt_learner.proj.bias": None}, "MaPLe's tensors are incomplete: 'proj.bias' missing"),
        ("maple", {"prompt_learner.compound_prompts_text.0": None}, "incomplete: 'compound_prompts_text.0' missing"),
        ("maple", {"prompt_learner.compound_prompts_text.1": (3, 32)}, r"is \(3, 32\), expected \(2, 32\)"),
        ("maple", {"prompt_learner.compound_prompt_projections.0.weight": (48, 31)}, r"expected \(48, 32\)"),
        ("maple", {"prompt_learner.ctx": (5, 2, 32)}, "class-specific contexts is not known"),
        ("maple", {"prompt_learner.other": (2,)}, "unexpected tensors: 'other'"),
        ("maple", {"image_encoder.other": (2,)}, "unexpected tensors: 'image_encoder.other'"),
        ("maple", {"image_encoder.proj": (40, 48)}, "1 of 85 tensors differ .* shapes or types differ"),
        ("maple", {"image_encoder.proj": ()}, "1 of 85 tensors differ .* shapes or types differ"),
        ("maple", {IN_PROJ: ()}, "unexpected tensors: 'image_encoder.*in_proj_weight'"),
        ("ivlp", {"image_encoder.VPT": None}, "IVLP's tensors are incomplete: 'image.0' missing"),
        ("ivlp", {"image_encoder.VPT": (4, 48)}, r"image.1 is \(3, 48\), expected \(4, any\)"),
        ("ivlp", {"text_encoder.transformer.resblocks.9.VPT_shallow": (2, 32)}, "incomplete: 'text.3', .* more missing"),
        ("ivlp", {"text_encoder.transformer.resblocks.0.VPT_shallow": (2, 32)}, "unexpected tensors: .*resblocks.0"),
        ("vpt", {"text_encoder.transformer.resblocks.1.VPT_shallow": (4, 32)}, "VPT has prompts for the text encoder"),
        ("vpt", {"prompt_learner.token_prefix": (5, 1, 32)}, "unexpected tensors"),
    ],
)  # fmt: skip
def test_damage_is_named(read, tiny, method, changes, said):
    state = made_state(tiny, method, ANIMALS)
    for name, shape in changes.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.ones(shape)
    with pytest.raises(AdapterError, match=said):
        read(state, **names_for(method))


def test_prompts_deeper_than_the_encoder_are_named(read, tiny, monkeypatch):
    monkeypatch.setitem(DEPTHS, "ivlp", (3, 6))
    adapter, _ = read(made_state(tiny, "ivlp", ANIMALS))
    with pytest.raises(AdapterError, match="IVLP prompts for layer 5 of the image encoder, which has layers 0 to 2"):
        PromptedCLIP.from_adapter(adapter, tiny)


# ---------------------------------------------------------------- scanned


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    return save_checkpoint(made_state(tiny, "maple", ANIMALS), tmp_path_factory.mktemp("maple") / FOLDERS["maple"])


@pytest.fixture(scope="module")
def asked(base, tmp_path_factory):
    return Run(ScanOptions(num_images=32, base=str(base), cache=tmp_path_factory.mktemp("cache")), Silent())


@pytest.fixture(scope="module")
def scanned(saved, asked):
    return scan_target(str(saved), asked)


def test_a_scan_is_inconclusive_and_says_why(scanned):
    assert (scanned.exit_code, scanned.verdict, scanned.method, scanned.target_class) == (
        4,
        "inconclusive",
        "maple",
        None,
    )
    assert re.match(
        "the thresholds were not measured on MaPLe adapters.*by those of other methods ", scanned.reasons[0]
    )
    assert len(scanned.classes) == 5 and scanned.score is not None and scanned.distance > 0
    assert any("85 encoder tensors, equal to the base's" in warning for warning in scanned.warnings)


def test_the_converted_adapter_is_the_same_to_a_scan(scanned, saved, base, tiny, asked, tmp_path):
    adapter, _ = read_checkpoint(saved.parent, saved.name, fetch_base, lambda folder: tiny, base=str(base))
    write_adapter(adapter, tmp_path / "adapter")
    again = scan_target(str(tmp_path / "adapter"), asked)
    assert (again.verdict, again.reasons, again.classes) == (scanned.verdict, scanned.reasons, scanned.classes)
    assert again.timing.classes_from_cache == 5  # bit for bit


def test_a_repair_is_refused_with_one_sentence(scanned, saved, asked):
    done = repair(str(saved), asked, RepairOptions())
    assert done.adapter is None and done.report.exit_code == 4
    assert done.report.reasons == ("MaPLe adapters cannot be repaired yet, nor called backdoored",)


@pytest.mark.parametrize("method", METHODS)
def test_no_verdict_but_inconclusive_where_nothing_was_measured(method):
    scores = {"scores": (0.1, 9.0, 5.0, 0.2), "flagged": (False, True, True, False), "score": 9.0}
    found = Verdict("backdoored", ("it is",), target=1, **scores)
    clean = Verdict("clean", ("it is not",), **scores | {"flagged": (False,) * 4})
    undecided = Verdict("inconclusive", ("too few",))
    for before, would in (
        (found, "'dog', 'horse' would be flagged"),
        (clean, "no class would"),
        (undecided, "could be"),
    ):
        after = unmeasured(before, method, ANIMALS)
        if method not in DEPTHS:
            assert after is before
        else:
            assert (after.verdict, after.target, after.scores) == ("inconclusive", None, before.scores)
            assert would in after.reasons[0] and after.reasons[1:] == before.reasons
