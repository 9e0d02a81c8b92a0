"""A frozen CLIP, seen from a prompt: pixels -> image features, prompt embeddings -> text features."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.errors import BaseModelError, first_line
from hf_ci.prompts.text import ShortTree, TextTree

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerBase

NONE: Mapping[int, Tensor] = MappingProxyType({})  # no prompts in the layers


class FrozenCLIP(nn.Module):
    """A `transformers.CLIPModel` and its tokenizer, in eval mode, no parameter trainable.

    Pixels are always in [0, 1], already resized and cropped; the processor's mean and deviation are applied here, so
    that a perturbation lives in pixel space. Prompts in the encoders' layers are given with each call: without them, the
    features are the base model's own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.image_size: int = model.config.vision_config.image_size
        self.token_dim: int = model.config.text_config.hidden_size
        self.feature_dim: int = model.config.projection_dim
        self.max_length: int = model.config.text_config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def logit_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.float().exp()
        return scale

    def image_features(self, pixels: Tensor, prompts: Mapping[int, Tensor] = NONE) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D) fp32 of unit length. prompts: by layer (m, v), as in `Layers.image`."""
        x = ((pixels - self.mean) / self.std).to(self.dtype)
        vision = self.model.vision_model
        if not prompts:
            pooled = vision(pixel_values=x).pooler_output
        else:
            m = len(prompts[0])
            hidden = vision.embeddings(x)  # (B, 1 + patches, v)
            hidden = vision.pre_layrnorm(with_last(hidden, prompts[0]))
            for i, layer in enumerate(vision.encoder.layers):
                if i and i in prompts:
                    hidden = with_last(hidden[:, :-m], prompts[i])
                hidden = layer(hidden, attention_mask=None)
            pooled = vision.post_layernorm(hidden[:, 0])
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def text_features(self, embeds: Tensor, tree: TextTree | ShortTree, prompts: Mapping[int, Tensor] = NONE) -> Tensor:
        """Prompt embeddings (S, T, d) without positions, laid out as `tree` says -> (S, C, D) fp32 of unit length.
        prompts: by layer (n, d), as in `Layers.text`; with them, a `TextTree`."""
        text = self.model.text_model
        hidden = embeds.to(self.dtype) + text.embeddings.position_embedding(tree.position)
        if not prompts:
            hidden = text.encoder(inputs_embeds=hidden, attention_mask=tree.mask).last_hidden_state
        else:
            assert isinstance(tree, TextTree)
            for i, layer in enumerate(text.encoder.layers):
                if i in prompts:
                    hidden = tree.replace(hidden, prompts[i])
                hidden = layer(hidden, attention_mask=tree.mask)
        pooled = text.final_layer_norm(tree.pool(hidden))
        return F.normalize(self.model.text_projection(pooled).float(), dim=-1)

    def tokenise(self, text: str) -> list[int]:
        """Token ids of `text` without SOS and EOT."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def token_embeddings(self, ids: Tensor) -> Tensor:
        embeds: Tensor = self.model.text_model.embeddings.token_embedding(ids)
        return embeds


def with_last(hidden: Tensor, vectors: Tensor) -> Tensor:
    """(B, T, v) with `vectors` (m, v) behind each image's tokens: (B, T + m, v)."""
    return torch.cat([hidden, vectors.to(hidden.dtype).expand(len(hidden), -1, -1)], dim=1)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice on stderr while a model is loaded: stderr is the scanner's own."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_clip(folder: Path, device: torch.device | str = "cpu", precision: str = "fp32") -> FrozenCLIP:
    """Load a CLIP from a local folder (config, safetensors, tokenizer, image processor).

    Raises BaseModelError when the folder holds no CLIP or a part of it is missing.
    """
    from transformers import AutoTokenizer, CLIPModel

    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder}: no config.json", "give a folder or a Hub id of a CLIP model with --base")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    # On short sequences the CPU kernel of sdpa takes twice as long as plain matrix products, backward above all.
    attention = "eager" if torch.device(device).type == "cpu" else "sdpa"
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if found != "clip":
            raise BaseModelError(f"{folder}: model_type is {found!r}, expected 'clip'", "give a CLIP with --base")
        with quiet_transformers():
            model, loading = CLIPModel.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            processor = load_processor(folder)
        clip = FrozenCLIP(model, tokenizer, list(processor.image_mean), list(processor.image_std))
        check_parts(clip, processor, loading["missing_keys"])
    except BaseModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        raise BaseModelError(
            f"{folder}: cannot be loaded as a CLIP: {first_line(error)}",
            "the folder needs config.json, model.safetensors, tokenizer files and preprocessor_config.json",
        ) from error
    return clip.to(device)


def check_parts(clip: FrozenCLIP, processor: CLIPImageProcessorPil, missing: Collection[str]) -> None:
    """Raises BaseModelError when weights are missing (they would be random) or the parts do not fit together."""
    if missing:
        raise BaseModelError(f"{len(missing)} tensors of the base model are missing, {min(missing)} among them")
    if (size := processor.crop_size["height"]) != clip.image_size:
        raise BaseModelError(f"the image processor makes {size} pixels, the image encoder takes {clip.image_size}")
    vocabulary = clip.model.config.text_config.vocab_size
    for name in ("bos_token_id", "eos_token_id"):
        if not isinstance(id := getattr(clip.tokenizer, name), int) or not 0 <= id < vocabulary:
            raise BaseModelError(f"the tokenizer's {name} is {id}, the text encoder knows {vocabulary} tokens")


def load_processor(folder: Path) -> CLIPImageProcessorPil:
    """The model's image processor, in its PIL form (the other one wants torchvision)."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
