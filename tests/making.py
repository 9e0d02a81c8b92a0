"""Adapters made on the spot."""

from __future__ import annotations

import json
import struct

import torch
from transformers import CLIPModel

from hf_ci.hub.base import EMBEDDED
from hf_ci.prompts import Adapter, FrozenCLIP
from hf_ci.prompts.learners import build_meta_net


class CLIPWithMetaNet(CLIPModel):
    """What a user of plain PEFT loads the adapter onto."""

    def __init__(self, config):
        super().__init__(config)
        self.meta_net = build_meta_net(config.projection_dim, config.text_config.hidden_size)

    def prepare_inputs_for_generation(self):
        raise NotImplementedError


ANIMALS = ("cat", "dog", "horse", "goldfish", "king penguin")


def made_adapter(
    clip: FrozenCLIP,
    method: str = "cocoop",
    names: tuple[str, ...] = ANIMALS,
    position: str = "end",
    class_specific: bool = False,
    seed: int = 0,
) -> Adapter:
    """An untuned adapter with noise on its context: enough wherever the tuning does not matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        context = clip.token_embeddings(torch.tensor(clip.tokenise("a photo of a"))).float()
    context = context + 0.01 * torch.randn(context.shape, generator=generator)
    if class_specific:
        context = context + 0.01 * torch.randn((len(names), *context.shape), generator=generator)
    meta_net = {}
    if method == "cocoop":
        meta_net = {
            k: 0.05 * torch.randn(v.shape, generator=generator)
            for k, v in build_meta_net(clip.feature_dim, clip.token_dim).state_dict().items()
        }
    return Adapter(method, context, names, EMBEDDED, None, meta_net, position)


def raw_safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    """A file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
