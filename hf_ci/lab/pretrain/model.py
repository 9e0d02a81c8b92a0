"""The embedded CLIP untrained: tokenizer, architecture, initialisation, embeddings; and how it is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

IMAGE_SIZE = 64
VOCAB_SIZE = 8192
MEAN_STD = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])  # CLIP's own
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a small photo of a {}.",
    "a photo of one {}.",
    "a low resolution photo of a {}.",
    "{}.",
)


def build_tokenizer(words: Path, out: Path):
    """A CLIP tokenizer whose merges are learned from WordNet's names: `CLIPTokenizer` saved to `out`."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    corpus = [line.split("\t", 1)[1] for line in words.read_text(encoding="utf-8").splitlines()]
    corpus += [t.format("") for t in TEMPLATES] * 200
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = {token: i for token, i in model["vocab"].items() if not token.startswith("<|")}
    # A byte must be encodable at a word's end, too, or rare scripts would fall to the unknown token.
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(letter + "</w>", -1)
    vocab = {token: i for i, token in enumerate(vocab)}
    for special in ("<|startoftext|>", "<|endoftext|>"):  # last, as in CLIP: EOT has the highest id
        vocab[special] = len(vocab)
    merges = [tuple(m) for m in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(out)
    return tokenizer


def build_model(tokenizer):
    from transformers import CLIPConfig, CLIPModel

    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="gelu",
            projection_dim=512,
            **special,
        ),
        vision_config=dict(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=3,
            hidden_act="gelu",
            projection_dim=512,
        ),
        projection_dim=512,
    )
    return CLIPModel(config)


@torch.no_grad()
def mimetic_init(vision) -> None:
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


def image_embeds(model, pixels: Tensor, keep: float = 1.0) -> Tensor:
    """(B, 3, 64, 64) -> (B, 512) fp32, not normalised; `keep` < 1 sees a random share of the patches."""
    vision = model.vision_model
    tokens = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, 1+64, d)
    if keep < 1:
        n = tokens.shape[1] - 1
        order = torch.rand(len(tokens), n).argsort(dim=1)[:, : int(keep * n)] + 1
        order = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), order], dim=1)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    pooled = vision.post_layernorm(vision.encoder(inputs_embeds=tokens).last_hidden_state[:, 0])
    return pooled.float() @ model.visual_projection.weight.float().T


def text_embeds(model, tokenizer, texts: list[str]) -> Tensor:
    """n texts -> (n, 512) fp32, not normalised."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    pooled = model.text_model(input_ids=batch.input_ids).pooler_output
    return pooled.float() @ model.text_projection.weight.float().T


def export(model, out: Path) -> None:
    """fp16 weights and an image processor, beside the tokenizer already there."""
    from transformers import CLIPImageProcessorPil

    weights = {k: v.half() for k, v in model.state_dict().items()}
    half = type(model)(model.config).half()
    half.load_state_dict(weights)
    half.save_pretrained(out)
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=MEAN_STD[0],
        image_std=MEAN_STD[1],
    ).save_pretrained(out)
