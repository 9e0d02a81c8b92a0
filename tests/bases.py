"""Base models with random weights: published configurations with one layer, or tiny ones, and tokenizers of their kinds."""

from __future__ import annotations

import io
import math
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTokenizer,
)

from hf_ci.hub.base import EMBEDDED_FOLDER

WORDS = (
    "a photo of the an image close up one picture showing some cat dog horse goldfish king penguin lily valley".split()
)

# From the public config.json: width, MLP and heads of each tower, image and patch size, D; what else is not the default.
OPENAI = {"eos": 2, "act": "quick_gelu"}  # the old eos_token_id: texts are read at the highest token id
LAION, META = {"act": "gelu"}, {"act": "quick_gelu"}
CLIPS = {
    "openai/clip-vit-base-patch32": ((512, 2048, 8), (768, 3072, 12), 224, 32, 512, OPENAI),
    "openai/clip-vit-base-patch16": ((512, 2048, 8), (768, 3072, 12), 224, 16, 512, OPENAI),
    "openai/clip-vit-large-patch14": ((768, 3072, 12), (1024, 4096, 16), 224, 14, 768, OPENAI),
    "openai/clip-vit-large-patch14-336": ((768, 3072, 12), (1024, 4096, 16), 336, 14, 768, OPENAI),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ((512, 2048, 8), (768, 3072, 12), 224, 32, 512, LAION),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ((1024, 4096, 16), (1280, 5120, 16), 224, 14, 1024, LAION),
    "facebook/metaclip-b32-400m": ((512, 2048, 8), (768, 3072, 12), 224, 32, 512, META),
}
SIGLIPS = {
    "google/siglip-base-patch16-224": ((768, 3072, 12), (768, 3072, 12), 224, 16, 768, {}),
    "google/siglip-so400m-patch14-384": ((1152, 4304, 16), (1152, 4304, 16), 384, 14, 1152, {}),
    "google/siglip2-base-patch32-256": ((768, 3072, 12), (768, 3072, 12), 256, 32, 768, {"gemma": True}),
}
TINY = ((32, 64, 4), (48, 96, 3), 32, 8, 40, {"act": "gelu"})
TINY_SIGLIP = ((32, 64, 4), (48, 96, 3), 32, 8, 48, {})  # as in SigLIP 2's largest, the towers' widths differ
TINY_SIGLIP_2 = (*TINY_SIGLIP[:5], {"gemma": True})


def towers(shape: tuple, layers: int, vocabulary: int) -> tuple[dict, dict]:
    """Of the text and of the image encoder."""
    text, image, size, patch, _, _ = shape
    names = ("hidden_size", "intermediate_size", "num_attention_heads")
    common = {"num_hidden_layers": layers}
    return (
        dict(zip(names, text)) | common | {"vocab_size": vocabulary},
        dict(zip(names, image)) | common | {"image_size": size, "patch_size": patch},
    )


def filled(kind: type, config, dtype: torch.dtype):
    """A model whose weights are drawn at once: what `transformers` draws for one of this size takes ten seconds."""
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        size = math.sqrt(12 * parameter.shape[0] / parameter.numel()) if parameter.ndim > 1 else 0.05
        values = size * (torch.rand(parameter.shape, generator=generator) - 0.5)
        parameter.data = values + 1 if "norm" in name and name.endswith("weight") else values
    model.logit_scale.data.fill_(math.log(100.0))
    return model.half().to(dtype)  # the same numbers in either


def save_clip(folder: Path, shape: tuple = TINY, layers: int = 1, dtype=torch.float32, **saving) -> Path:
    """The tokenizer is the embedded one; its ids stand for 49406 and 49407."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    text, image = towers(shape, layers, len(tokenizer))
    size, dim, more = shape[2], shape[4], shape[5]
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": more.get("eos", tokenizer.eos_token_id)}
    for tower in (text, image):
        tower |= {"hidden_act": more["act"], "projection_dim": dim}
    model = filled(CLIPModel, CLIPConfig(text_config=text, vision_config=image, projection_dim=dim), dtype)
    model.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    crop = {"height": size, "width": size}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, shape: tuple = TINY_SIGLIP, layers: int = 1, dtype=torch.float32, **saving) -> Path:
    size, dim, more = shape[2], shape[4], shape[5]
    tokenizer = gemma() if more.get("gemma") else pieces(folder)
    text, image = towers(shape, layers, len(tokenizer))
    config = SiglipConfig(text_config=text | {"projection_size": dim}, vision_config=image)
    model = filled(SiglipModel, config, dtype)
    model.logit_bias.data.fill_(-12.9)  # about what training comes to
    model.save_pretrained(folder, **saving)
    tokenizer.save_pretrained(folder)
    square = {"height": size, "width": size}
    SiglipImageProcessorPil(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return folder


def pieces(folder: Path) -> SiglipTokenizer:
    """SigLIP's: SentencePiece in lower case without punctuation, </s> behind and as padding."""
    model, said = io.BytesIO(), [" ".join(WORDS)] * 50 + WORDS * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(said),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_input_names=["input_ids"])


def gemma() -> PreTrainedTokenizerFast:
    """SigLIP 2's: Gemma's BPE, where a first word has no blank before it and others do; <eos> behind, <pad>, lower case."""
    own = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    own.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    own.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    own.train_from_iterator(
        [" ".join(WORDS) + " ."] * 50, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    own.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=own, **names, padding_side="right", model_input_names=["input_ids"])
