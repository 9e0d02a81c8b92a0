"""What the values in a checkpoint are: the prompt learners of public training code, by their tensors' names and shapes.

CoOp, ProGrad      ctx (n, d), or (C, n, d) when class-specific; token_prefix (C, 1, d); token_suffix (C, L, d)
KgCoOp             the same with bias_vectors and meta_net.linear1, which its forward pass does not use
CoCoOp, BadCLIP    the same with meta_net.linear1 and meta_net.linear2
BAPLe              0.ctx, 0.token_prefix, 0.token_suffix, and 1.noise, its trigger
MaPLe, IVLP, ...   ctx, token_prefix, token_suffix and what `hf_ci.prompts.methods` says, in a whole model (`whole`)
VPT                the same without a context and without tokens
by themselves      a tensor ctx; a dict of it, with the class names or without; a prompt learner's bare state_dict
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_ci.errors import AdapterError, Inconclusive, NothingToScan
from hf_ci.prompts.adapter import META_NET_KEYS
from hf_ci.prompts.encoders import some
from hf_ci.prompts.methods import ALL, METHODS

STATES = ("state_dict", "model_state_dict", "prompt_learner")  # what the tensors may lie under
TRAINING = ("optimizer", "scheduler", "val_result", "epoch")  # what Dassl saves beside them
NAMES = ("class_names", "classnames", "classes")
META_NET = "meta_net."
WRAPPED = re.compile(r"^(module\.|prompt_learner\.)+")  # by DataParallel, or in the model that holds the learner
UNUSED = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")  # KgCoOp's own
TOWERS = ("image_encoder.", "text_encoder.", "ZS_image_encoder.")  # of a whole model
OTHER_METHODS = (  # the first one that fits
    (r"embedding_prompt", "CLIP-LIT: whole token sequences for two kinds of images"),
    (r"lora_[AB]", "LoRA: changed encoders"),
    (r"\bVPT|deep_prompt", "a visual prompt"),
    (r"(image|text)_encoder\.|visual\.|transformer\.resblocks", "a whole model, encoders and all"),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a prompt learner saved. context: (n, d) or (C, n, d) fp32, None where the method writes it by hand; prefix:
    (C, 1, d); suffix: (C, L, d).

    position: of the class name, where the method or the file says it. trigger: the shape of one that lies in the file.
    deep: what stands in the encoders' layers, as in `Adapter`. encoders: those that came with it, as they were saved.
    """

    method: str
    context: Tensor | None
    meta_net: dict[str, Tensor] = field(default_factory=dict)
    prefix: Tensor | None = None
    suffix: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    position: str | None = None
    trigger: tuple[int, ...] | None = None
    deep: dict[str, Tensor] = field(default_factory=dict)
    encoders: dict[str, Tensor] = field(default_factory=dict)

    @property
    def averaged(self) -> bool:
        """Frozen tensors, tokens and encoders alike, are the base model's but for the rounding of a mean."""
        return METHODS[self.method].averaged


def recognise(value: object, name: str) -> Checkpoint:
    """What was unpickled from the file `name`, as a prompt.

    Raises Inconclusive for a method of prompt tuning that cannot be scanned, AdapterError for a prompt that is damaged or
    brings tensors of another kind along, NothingToScan where nothing in the file is a prompt's.
    """
    state = {"ctx": value} if isinstance(value, Tensor) else value
    if not isinstance(state, dict):
        raise NothingToScan(f"{name} holds a {type(value).__name__}, and no prompt of CLIP")
    outer, around = state, {}
    for key in STATES:
        if isinstance(state.get(key), dict):
            around = {k: v for k, v in outer.items() if k != key and k not in TRAINING}
            state = state[key]
            break
    named = [(str(key), tensor) for key, tensor in state.items() if isinstance(tensor, Tensor)]
    named = [(WRAPPED.sub("", key), tensor) for key, tensor in named]
    sequence = any(key == "0.ctx" for key, _ in named)  # BAPLe's of prompt learner and trigger
    tensors = {key.removeprefix("0.") if sequence else key: tensor for key, tensor in named}
    if len(tensors) < len(named):
        raise AdapterError(f"{name} holds some tensors twice under one name", "expected one prompt learner's")
    deep_method = next((method for method in ALL if method.claims(tensors)), None)
    if deep_method is None:
        check_supported(list(tensors), name)
    noise = tensors.pop("1.noise", None) if sequence else None
    rest = {k: v for k, v in state.items() if not isinstance(v, Tensor) and k not in TRAINING} | around
    deep, encoders = {}, {}
    if deep_method:
        deep = {key: plain(tensor, key, name) for key, tensor in deep_method.taken(tensors).items()}
        frozen = [key for key in tensors if key.startswith(TOWERS) or key == "logit_scale"]
        encoders = {key: stored(tensors.pop(key), key, name) for key in frozen}
    if deep_method and not deep_method.words and "ctx" not in tensors:
        raise AdapterError(
            f"{name} holds {deep_method.title}'s prompts for the layers, but no context", "fetch the whole file"
        )
    if "ctx" not in tensors and not deep_method:
        raise NothingToScan(f"{name} holds no prompt of CLIP: there is no tensor ctx", "name a prompt's checkpoint")

    context = prefix = suffix = None
    if "ctx" in tensors:  # without one there are no tokens either, or they are none that belong to it
        context, prefix, suffix = (taken(tensors, key, name) for key in ("ctx", "token_prefix", "token_suffix"))
    method, position = ("coop", "end" if sequence else None)
    meta_net: dict[str, Tensor] = {}
    if deep_method:
        method, position = deep_method.name, "end"
    elif "bias_vectors" in tensors:
        method, position = "kgcoop", "end"
        for key in UNUSED:
            tensors.pop(key, None)
    elif keys := [key for key in tensors if key.startswith(META_NET)]:
        method, position = "cocoop", "end"
        meta_net = {key.removeprefix(META_NET): plain(tensors.pop(key), key, name) for key in keys}
        if set(meta_net) != META_NET_KEYS:
            raise AdapterError(f"{name}: the meta-net is {', '.join(sorted(meta_net))}", "expected linear1 and linear2")
    stray = [*tensors, *(str(key) for key, _ in tensors_in(rest))]
    if stray:
        raise AdapterError(
            f"{name}: unexpected tensors: {some(stray)}", "expected a prompt learner's, and nothing else"
        )
    if context is not None:
        check_shapes(context, prefix, suffix, name)
    names = next((rest[key] for key in NAMES if rest.get(key)), None)
    return Checkpoint(
        method,
        context,
        meta_net,
        prefix,
        suffix,
        tuple(names) if isinstance(names, list | tuple) else None,
        position or stored_position(rest),
        None if noise is None else tuple(noise.shape),
        deep,
        encoders,
    )


def check_supported(keys: list[str], name: str) -> None:
    names = "\n".join(keys)
    for pattern, what in OTHER_METHODS:
        if re.search(pattern, names, re.DOTALL):
            raise Inconclusive(
                f"{name} holds {what} ({len(keys)} tensors), which hf-ci cannot scan yet",
                "CoOp, CoCoOp, KgCoOp, ProGrad, BadCLIP, BAPLe, MaPLe, IVLP, PromptSRC and VPT can be",
            )


def taken(tensors: dict[str, Tensor], key: str, name: str) -> Tensor | None:
    """As `plain`, out of `tensors`; None where there is none such."""
    tensor = tensors.pop(key, None)
    return None if tensor is None else plain(tensor, key, name)


def plain(tensor: Tensor, key: str, name: str) -> Tensor:
    """A tensor as plain fp32 numbers in memory of its own. Raises AdapterError as `stored` does."""
    return stored(tensor, key, name).float().contiguous()


def stored(tensor: Tensor, key: str, name: str) -> Tensor:
    """Raises AdapterError for a tensor that claims more numbers than the file holds, or none at all."""
    usual = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
    if not usual or not tensor.numel() or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise AdapterError(
            f"{name}: {key} is {tuple(tensor.shape)} of {tensor.dtype}", "expected stored floating point numbers"
        )
    return tensor.detach()


def check_shapes(context: Tensor, prefix: Tensor | None, suffix: Tensor | None, name: str) -> None:
    if context.ndim not in (2, 3):
        raise AdapterError(f"{name}: ctx is {tuple(context.shape)}", "expected (tokens, d) or (classes, tokens, d)")
    d, classes = context.shape[-1], len(context) if context.ndim == 3 else None
    for key, tensor in (("token_prefix", prefix), ("token_suffix", suffix)):
        if tensor is None:
            continue
        classes = classes or len(tensor)
        if tensor.ndim != 3 or tensor.shape[-1] != d or len(tensor) != classes:
            raise AdapterError(
                f"{name}: {key} is {tuple(tensor.shape)}", f"expected ({classes}, tokens, {d}) as ctx has"
            )


def tensors_in(value: object, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of all that lie anywhere within."""
    if isinstance(value, Tensor):
        yield key, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for inner, item in pairs:
        yield from tensors_in(item, f"{key}.{inner}" if key else str(inner))


def stored_position(values: dict[str, Any]) -> str | None:
    """As home-made dicts may say it."""
    found = values.get("class_token_position")
    return found if isinstance(found, str) else None
