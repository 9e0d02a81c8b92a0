"""The embedded CLIP untrained: architecture, initialisation, how its two towers run; and how it is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_ci.hub.base import EMBEDDED_FOLDER

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPVisionModel, PreTrainedTokenizerBase

IMAGE_SIZE = 64
SHARED = 384  # dimensions of the shared space: those of the sentence embeddings that the text tower learns
MEAN_STD = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])  # CLIP's own
LOGIT_SCALE = 100.0  # where OpenAI's CLIP has it


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded CLIP's tokenizer: byte-level BPE whose merges were learned from WordNet's names."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED_FOLDER, local_files_only=True)


def build_model(tokenizer: PreTrainedTokenizerBase) -> CLIPModel:
    from transformers import CLIPConfig, CLIPModel

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="gelu",
            projection_dim=SHARED,
            **special,
        ),
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "hidden_act": "gelu",
            "projection_dim": SHARED,
        },
        projection_dim=SHARED,
    )
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # twice as fast as sdpa's backward on CPU at these lengths
    mimetic_init(model.vision_model)
    nn.init.constant_(model.logit_scale, math.log(LOGIT_SCALE))
    return model


@torch.no_grad()
def mimetic_init(vision: CLIPVisionModel) -> None:
    """Start attention near what trained ViTs show: W_V W_O ~ -I, W_Q W_K ~ +I, sinusoidal positions.

    Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023.
    """
    d = vision.embeddings.position_embedding.weight.shape[1]
    for layer in vision.encoder.layers:
        a = layer.self_attn
        heads, dh = a.num_heads, d // a.num_heads
        u, s, vt = torch.linalg.svd(0.4 * torch.randn(d, d) / math.sqrt(d) - 0.4 * torch.eye(d))
        a.v_proj.weight.copy_(s.sqrt()[:, None] * vt)
        a.out_proj.weight.copy_(u * s.sqrt())
        for h in range(heads):
            u, s, vt = torch.linalg.svd(0.7 * torch.randn(d, d) / math.sqrt(d) + 0.7 * torch.eye(d))
            a.q_proj.weight[h * dh : (h + 1) * dh].copy_((u[:, :dh] * s[:dh].sqrt()).T)
            a.k_proj.weight[h * dh : (h + 1) * dh].copy_(s[:dh].sqrt()[:, None] * vt[:dh])
    side = vision.embeddings.image_size // vision.embeddings.patch_size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(d // 4) / (d / 4))
    waves = [f(p.flatten()[:, None] * omega) for p in (x, y) for f in (torch.sin, torch.cos)]
    vision.embeddings.position_embedding.weight[1:].copy_(0.3 * torch.cat(waves, dim=1))


def normalised(images: Tensor) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) fp32 as the towers expect it."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD)
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def pooled(vision: CLIPVisionModel, pixels: Tensor, keep: float = 1.0) -> Tensor:
    """(B, 3, 64, 64) -> (B, 192), the class token; `keep` < 1 sees a random share of the patches."""
    tokens = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, 1+64, d)
    if keep < 1:
        n = tokens.shape[1] - 1
        order = torch.rand(len(tokens), n).argsort(dim=1)[:, : int(keep * n)] + 1
        order = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), order], dim=1)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    found: Tensor = vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state[:, 0])
    return found


@torch.no_grad()  # not inference mode: the image tower's loss is taken against them
def text_features(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """n texts -> (n, 384) unit vectors."""
    out = torch.empty(len(texts), SHARED)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    for i in range(0, len(order), 256):
        rows = order[i : i + 256]
        batch = tokenizer([texts[j] for j in rows], padding=True, truncation=True, return_tensors="pt")
        hidden = model.text_model(input_ids=batch.input_ids).pooler_output
        out[rows] = nn.functional.normalize(model.text_projection(hidden).float(), dim=1)
    return out


def export(model: CLIPModel, out: Path) -> None:
    """A complete `CLIPModel` folder: fp16 weights, configuration, tokenizer, image processor."""
    from transformers import CLIPImageProcessorPil

    half = type(model)(model.config).half()
    half.load_state_dict({k: v.half() for k, v in model.state_dict().items()})
    half.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as they are: a used tokenizer saves how it last padded
        (out / name).write_bytes((EMBEDDED_FOLDER / name).read_bytes())
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=MEAN_STD[0],
        image_std=MEAN_STD[1],
    ).save_pretrained(out)
