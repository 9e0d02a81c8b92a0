"""The methods of prompt tuning, by the name that `clip_prompt.json` and reports give them.

A method that tunes a text context alone is a line here. One that puts prompts into the encoders' layers as well is a file
beside this one, which says what its tensors are called, in a checkpoint and in an adapter, and which vectors they come to.
"""

from __future__ import annotations

from hf_ci.prompts.methods.base import DeepMethod, Layers, Method
from hf_ci.prompts.methods.ivlp import IVLP
from hf_ci.prompts.methods.maple import MaPLe
from hf_ci.prompts.methods.promptsrc import PromptSRC
from hf_ci.prompts.methods.vpt import VPT

ALL: tuple[Method, ...] = (  # of those that claim a checkpoint, the first one is right
    Method("coop", "CoOp"),
    Method("cocoop", "CoCoOp"),
    Method("kgcoop", "KgCoOp"),
    MaPLe("maple", "MaPLe"),
    PromptSRC("promptsrc", "PromptSRC"),
    IVLP("ivlp", "IVLP"),
    VPT("vpt", "VPT"),
)
METHODS = {method.name: method for method in ALL}


def deep_method(name: str) -> DeepMethod:
    """One that puts prompts into layers, as adapters with tensors for these have."""
    method = METHODS[name]
    assert isinstance(method, DeepMethod)
    return method


__all__ = ["ALL", "METHODS", "DeepMethod", "Layers", "Method", "deep_method"]
