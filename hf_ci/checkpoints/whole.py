"""Encoders in a checkpoint: training code that puts prompts into their layers saves the whole model, by OpenAI's names.

They have to be the base model's own, as those that come with an adapter have to be (`hf_ci.prompts.encoders`).

PromptSRC saves the mean of the model over its epochs, frozen weights and all: weighted, rounded and added up in the
weights' own precision. So they differ from the base model's by rounding. Half-precision weights are told from altered ones
by that the same number became the same number wherever it stood: a table of at most 65,536 entries, all near their keys,
in which nothing can be hidden. In single precision the rounding is too small to hide anything.
"""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import AdapterError
from hf_ci.files import weights_of
from hf_ci.prompts.encoders import check_equal, gap, opened, some

# Half precision keeps 11 bits, so that each sum rounds off 0.05 % at most; of PromptSRC's weights at most some ten count.
ROUNDED, ROUNDED_SINGLE, SMALLEST = 0.02, 1e-5, 2.0**-18
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "proj": "visual_projection.weight",
}
TEXT = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
}
TURNED = ("proj", "text_projection")
NORMS = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm", "ln_final": "final_layer_norm"}
IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TOWER = re.compile(r"(image|text|ZS_image)_encoder\.(.+)", re.DOTALL)
LAYER = re.compile(r"transformer\.resblocks\.([0-9]{1,3})\.(.+)", re.DOTALL)
TEXT_POSITIONS = "text_encoder.positional_embedding"  # by which a base model is recognised where there are no tokens


def parts(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """OpenAI's tensor as those of `transformers`; empty where there is none such."""
    if key == "logit_scale":
        return {key: tensor}
    encoder, name = certain(TOWER.fullmatch(key)).groups()
    model, special = ("text_model", TEXT) if encoder == "text" else ("vision_model", IMAGE)
    if name in special:
        return {special[name]: tensor.T if name in TURNED and tensor.ndim == 2 else tensor}
    if layer := LAYER.fullmatch(name):
        model, name, known = f"{model}.encoder.layers.{layer[1]}", layer[2], IN_LAYER
        if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = name.rpartition("_")[2]
            thirds = zip("qkv", tensor.tensor_split(3) if tensor.ndim else [])
            return {f"{model}.self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
    else:
        known = NORMS
    name, _, kind = name.rpartition(".")
    return {f"{model}.{known[name]}.{kind}": tensor} if name in known and kind in ("weight", "bias") else {}


def check_whole(encoders: dict[str, Tensor], base: Path, averaged: bool) -> str:
    """What to say of a checkpoint's encoders, once they are found to be the base model's, in the precision they are in.

    averaged: all but for the rounding of a mean. Raises EncoderModified where some are not, AdapterError where there are
    tensors that the base model does not have.
    """
    rounding = Rounding()
    with ExitStack() as stack:
        theirs = files_by_name(base, stack)
        known = {key: parts(key, tensor) for key, tensor in encoders.items()}
        if unknown := [key for key, found in known.items() if not found or not found.keys() <= theirs.keys()]:
            raise AdapterError(
                f"unexpected tensors: {some(unknown)}", "expected a prompt and the base model's encoders"
            )
        found = []
        for key, ours in known.items():
            pairs = [(tensor, theirs[name].get_tensor(name)) for name, tensor in ours.items()]
            found.append((max(rounding.gap(*p) if averaged else plain_gap(*p) for p in pairs), key))
    check_equal(found)
    if rounding.largest:
        return (
            f"brings {len(found)} encoder tensors, equal to the base's but for the rounding of a mean over epochs "
            f"(at most {rounding.largest:.1%} of a weight), without which it is judged"
        )
    return f"brings {len(found)} encoder tensors, equal to the base's"


def is_base_of_whole(encoders: dict[str, Tensor], base: Path) -> bool:
    """Whether the text encoder's positions are the base model's; False where there are none."""
    if TEXT_POSITIONS not in encoders:
        return False
    with ExitStack() as stack:
        name = TEXT["positional_embedding"]
        file = files_by_name(base, stack).get(name)
        return file is not None and plain_gap(encoders[TEXT_POSITIONS], file.get_tensor(name)) == 0


def files_by_name(base: Path, stack: ExitStack) -> dict[str, safe_open]:
    files = [stack.enter_context(opened(path)) for path in weights_of(base)]
    return {name: file for file in files for name in file.keys()}


def plain_gap(ours: Tensor, theirs: Tensor) -> float:
    return gap(ours, theirs) if ours.shape == theirs.shape and ours.dtype in FLOATS else math.inf


class Rounding:
    """What a mean made of the numbers so far. largest: relative change, of numbers that are not next to nothing."""

    def __init__(self) -> None:
        self.table = torch.full((1 << 16,), math.nan)  # by the bits of a number in half precision, what it became
        self.largest = 0.0

    def gap(self, ours: Tensor, theirs: Tensor) -> float:
        """0 where `ours` can be what the mean made of `theirs`, else the largest difference."""
        different = plain_gap(ours, theirs)
        if not math.isfinite(different):
            return different
        x, y = theirs.to(ours.dtype).flatten(), ours.float().flatten()
        half = ours.dtype == torch.float16
        change, size = (y - x.float()).abs(), x.float().abs()
        if (change > (ROUNDED if half else ROUNDED_SINGLE) * size + SMALLEST * half).any():
            return different
        if half:
            bits = x.view(torch.int16).long() & 0xFFFF
            before = self.table[bits]
            self.table[bits] = torch.where(before.isnan(), y, before)
            if (self.table[bits] != y).any():
                return different
        seen = size > 1000 * SMALLEST
        if seen.any():
            self.largest = max(self.largest, (change[seen] / size[seen]).max().item())
        return 0.0
