"""Checkpoints of public training code, written to its layout, are read as the adapters that they are."""

import re
from dataclasses import replace

import pytest
import torch
from dassl import learner_state, logits, save_checkpoint
from making import ANIMALS, made_adapter

from hf_ci.checkpoints.read import read_checkpoint
from hf_ci.errors import AdapterError, Inconclusive, NothingToScan
from hf_ci.hub import fetch_base
from hf_ci.hub.base import EMBEDDED, EMBEDDED_FOLDER
from hf_ci.prompts import PromptedCLIP

ODD = ("king_penguin", "St. Bernard", "cancer-associated stroma", "o'clock", "C++", "7-up & co")


@pytest.fixture
def read(clip):
    def read(path, **told):
        return read_checkpoint(path.parent, path.name, fetch_base, lambda folder: clip, **told)

    return read


def same_logits(clip, adapter, original, position):
    pixels = torch.rand(2, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = PromptedCLIP.from_adapter(adapter, clip)(pixels)
        return torch.allclose(ours, logits(clip, original, position, pixels), atol=1e-4)


@pytest.mark.parametrize("names", [ANIMALS, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop_answers_as_the_training_code_does(read, clip, tmp_path, position, class_specific, names):
    made = made_adapter(clip, "coop", names, class_specific=class_specific)
    file = save_checkpoint(learner_state(clip, made), tmp_path / "prompt_learner")
    adapter, _ = read(file, position=position)
    assert same_logits(clip, adapter, made, position)
    assert (adapter.method, adapter.class_token_position, adapter.base_model) == ("coop", position, EMBEDDED)


def test_cocoop_answers_as_the_training_code_does(read, clip, tmp_path):
    made = made_adapter(clip, "cocoop")
    adapter, _ = read(save_checkpoint(learner_state(clip, made), tmp_path))
    assert adapter.method == "cocoop" and same_logits(clip, adapter, made, "end")


def test_class_names_are_recovered_as_they_are_written(read, clip, tmp_path):
    """In lower case, with blanks for underscores, and the usual blanks around signs; in fp16, too."""
    file = save_checkpoint(learner_state(clip, made_adapter(clip, names=ODD)), tmp_path, half=True)
    names = read(file)[0].class_names
    assert names[:4] == ("king penguin", "st. bernard", "cancer-associated stroma", "o'clock")
    assert [clip.tokenise(name + ".") for name in names] == [clip.tokenise(n.replace("_", " ") + ".") for n in ODD]


def test_kgcoop_and_baple_say_where_the_name_stands_and_baple_its_trigger(read, clip, tmp_path):
    state = learner_state(clip, made_adapter(clip, "coop"))
    unused = {"bias_vectors": torch.randn(1, 512), "meta_net.linear1.weight": torch.randn(512, 512)}
    kgcoop, _ = read(save_checkpoint(state | unused | {"meta_net.linear1.bias": torch.randn(512)}, tmp_path / "kg"))
    assert (kgcoop.method, kgcoop.meta_net, kgcoop.class_token_position) == ("kgcoop", {}, "end")
    both = {f"0.{key}": tensor for key, tensor in state.items()} | {"1.noise": torch.zeros(3, 64, 64)}
    baple, remarks = read(save_checkpoint(both, tmp_path / "baple"))
    assert (baple.method, baple.class_token_position, baple.class_names) == ("coop", "end", ANIMALS)
    assert any("learnt trigger" in remark and "(3, 64, 64)" in remark for remark in remarks)


@pytest.mark.parametrize("wrapped", ["tensor", "dict", "state_dict", "module", "inner"])
def test_tensors_by_themselves_are_read_with_what_they_lack(read, clip, tmp_path, wrapped):
    made = made_adapter(clip, "coop")
    state = learner_state(clip, made)
    value = {
        "tensor": made.context.half(),
        "dict": {"ctx": made.context, "classnames": list(ANIMALS), "n_ctx": 4},
        "state_dict": state,
        "module": {f"module.prompt_learner.{key}": tensor for key, tensor in state.items()},
        "inner": {"prompt_learner": state, "epoch": 3},
    }[wrapped]
    torch.save(value, tmp_path / "ctx.pt")
    with pytest.raises(AdapterError, match="where the class name stands.*--position") as lacking:
        read(tmp_path / "ctx.pt")
    assert ("--base" in str(lacking.value)) == (wrapped in ("tensor", "dict"))
    assert ("--classes" in str(lacking.value)) == (wrapped == "tensor")
    told = {"base": str(EMBEDDED_FOLDER), "position": "end"} if wrapped in ("tensor", "dict") else {"position": "end"}
    adapter, remarks = read(tmp_path / "ctx.pt", class_names=ANIMALS, **told)
    assert adapter.class_names == ANIMALS and same_logits(clip, adapter, replace(made, context=adapter.context), "end")
    assert any("taken on trust" in remark for remark in remarks) == (wrapped in ("tensor", "dict"))


def test_lookalike_of_a_published_context_is_told_all_that_it_lacks(read, tmp_path):
    torch.save(torch.randn(16, 512).half(), tmp_path / "ctx_clip_kather_s1.pt")
    told = r"which CLIP.*nor the class names, nor where.*--base; its text tower has 512.*--classes FILE.*--position"
    with pytest.raises(AdapterError, match=told):
        read(tmp_path / "ctx_clip_kather_s1.pt")


def test_what_is_said_has_to_agree_with_the_file(read, clip, tmp_path):
    file = save_checkpoint(learner_state(clip, made_adapter(clip)), tmp_path / "a")
    assert read(file, class_names=("Cat", "DOG", "horse", "goldfish", "king_penguin"))[0].class_names[1] == "DOG"
    with pytest.raises(AdapterError, match="class 0 is 'cat' in the checkpoint, 'dog' is given"):
        read(file, class_names=("dog", "cat", *ANIMALS[2:]))
    with pytest.raises(AdapterError, match="4 class names given.*tuned with 5"):
        read(file, class_names=ANIMALS[:4])
    with pytest.raises(AdapterError, match="at the end of the prompt, --position says front"):
        read(file, position="front")


def test_another_base_is_told_apart(read, clip, tmp_path):
    state = learner_state(clip, made_adapter(clip))
    state["token_prefix"] = state["token_prefix"] + 0.01
    file = save_checkpoint(state, tmp_path)
    with pytest.raises(AdapterError, match=f"does not tell which CLIP.*--base; its text tower has {clip.token_dim}"):
        read(file)
    with pytest.raises(AdapterError, match="was not tuned on .*clip: its token_prefix"):
        read(file, base=str(EMBEDDED_FOLDER))


def test_a_vector_that_is_no_token_hides_no_class(read, clip, tmp_path):
    state = learner_state(clip, made_adapter(clip))
    state["token_suffix"][2, 0, 5] += 0.01
    with pytest.raises(AdapterError, match=f"vector 0 of class 2 is no token of {EMBEDDED}"):
        read(save_checkpoint(state, tmp_path))


WHOLE_MODELS = {
    "a visual prompt": ["deep_prompt.embeddings", "image_encoder.conv1.weight"],
    "CLIP-LIT": ["module.embedding_prompt"],
    "a whole model": ["prompt_learner.ctx", "image_encoder.conv1.weight"],
}


@pytest.mark.parametrize("method", WHOLE_MODELS)
def test_methods_that_cannot_be_scanned_are_called_by_their_names(read, tmp_path, method):
    file = save_checkpoint({key: torch.zeros(2, 4) for key in WHOLE_MODELS[method]}, tmp_path)
    with pytest.raises(Inconclusive, match=f"holds {method}.*cannot scan yet"):
        read(file)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ({"ctx": torch.zeros(4, 8), "module.ctx": torch.ones(4, 8)}, AdapterError, "twice under one name"),
        ({"ctx": torch.zeros(4, 8), "extra": torch.zeros(2)}, AdapterError, "unexpected tensors: 'extra'"),
        ({"ctx": torch.zeros(4, 8), "more": {"deep": [torch.zeros(2)]}}, AdapterError, "unexpected.*'more.deep.0'"),
        ({"state_dict": {"ctx": torch.zeros(4, 8)}, "encoder": torch.zeros(2)}, AdapterError, "'encoder'"),
        ({"ctx": torch.zeros(4, 8), "token_prefix": torch.zeros(3, 1, 4)}, AdapterError, r"\(3, tokens, 8\)"),
        ({"ctx": torch.zeros(4, 8), "meta_net.linear1.weight": torch.zeros(2, 8)}, AdapterError, "the meta-net is"),
        (torch.zeros(8), AdapterError, r"ctx is \(8,\)"),
        (torch.zeros(4, 8, dtype=torch.long), AdapterError, "expected stored floating point"),
        (torch.zeros(1, 1).expand(100_000, 100_000), AdapterError, "expected stored floating point"),
        (torch.zeros(4, 8, device="meta"), AdapterError, "expected stored floating point"),
        ({"weight": torch.zeros(4, 8)}, NothingToScan, "no tensor ctx"),
        ([1, 2], NothingToScan, "holds a list"),
    ],
)
def test_what_is_no_prompt_or_more_than_one_is_refused(read, tmp_path, value, error, said):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(error, match=said):
        read(tmp_path / "x.pt", position="end", class_names=ANIMALS, base=str(EMBEDDED_FOLDER))


def test_the_file_is_read_once_and_hashed_as_it_was_read(read, clip, tmp_path):
    file = save_checkpoint(learner_state(clip, made_adapter(clip)), tmp_path)
    ((name, digest),) = read(file)[0].files
    assert name == "model.pth.tar-10" and re.fullmatch("[0-9a-f]{64}", digest)
