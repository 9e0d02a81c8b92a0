"""Prompt-tuned CLIP: frozen encoders, a tuned prompt, class names -> logits, differentiable down to the pixels."""

from hf_ci.prompts.adapter import Adapter, read_adapter, write_adapter
from hf_ci.prompts.clip import FrozenCLIP, load_clip
from hf_ci.prompts.prompted import BesideReferences, PromptedCLIP, hand_written, reference_adapter

__all__ = [
    "Adapter",
    "BesideReferences",
    "FrozenCLIP",
    "PromptedCLIP",
    "hand_written",
    "load_clip",
    "read_adapter",
    "reference_adapter",
    "write_adapter",
]
