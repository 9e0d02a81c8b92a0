"""A frozen CLIP or SigLIP, seen from a prompt: pixels -> image features, prompt embeddings -> text features."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.errors import BaseModelError, first_line
from hf_ci.kind import base_kind
from hf_ci.pools import side_of
from hf_ci.prompts.families import FAMILIES
from hf_ci.prompts.text import ShortTree, TextTree

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerBase

NONE: Mapping[int, Tensor] = MappingProxyType({})  # no prompts in the layers


class FrozenCLIP(nn.Module):
    """A `transformers.CLIPModel` or `SiglipModel` and its tokenizer, in eval mode, no parameter trainable.

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
        self.family = FAMILIES[model.config.model_type]
        self.start, self.end = self.family.frame(tokenizer)  # token ids before and behind every text
        self.image_size: int = model.config.vision_config.image_size
        self.token_dim: int = model.config.text_config.hidden_size
        self.feature_dim: int = self.family.feature_dim(model.config)
        self.max_length: int = model.config.text_config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    def logits(self, similarity: Tensor) -> Tensor:
        """Cosine similarities of images and texts -> logits, of the same shape."""
        return self.family.logits(self.model, similarity)

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
        return F.normalize(self.family.image(self.model, pooled).float(), dim=-1)

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
        return F.normalize(self.family.text(self.model, pooled).float(), dim=-1)

    def tokenise(self, text: str) -> list[int]:
        """Token ids of `text` without SOS and EOT."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def tokenise_behind(self, text: str) -> list[int]:
        """The same of a text behind other words; some tokenizers tell a first word from others."""
        return self.tokenise(f"a {text}")[len(self.tokenise("a")) :]

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
    """Load a CLIP or SigLIP from a local folder (config, safetensors whole or in shards, tokenizer, image processor).

    Weights of any precision are converted to `precision`. Raises BaseModelError when the folder holds no such model or a
    part of it is missing.
    """
    import transformers

    family = FAMILIES[base_kind(folder)]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    # On short sequences the CPU kernel of sdpa takes twice as long as plain matrix products, backward above all.
    attention = "eager" if torch.device(device).type == "cpu" else "sdpa"
    try:
        with quiet_transformers():
            model, loading = getattr(transformers, family.model_class).from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            processor = load_processor(folder)
        family.check(model.config)
        clip = FrozenCLIP(model, tokenizer, list(processor.image_mean), list(processor.image_std))
        check_parts(clip, processor, loading["missing_keys"])
    except BaseModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        raise BaseModelError(
            f"{folder}: cannot be loaded as a {type(family).__name__}: {first_line(error)}",
            "the folder needs config.json, model.safetensors, tokenizer files and preprocessor_config.json",
        ) from error
    return clip.to(device)


def check_parts(clip: FrozenCLIP, processor: CLIPImageProcessorPil, missing: Collection[str]) -> None:
    """Raises BaseModelError when weights are missing (they would be random) or the parts do not fit together."""
    if missing:
        raise BaseModelError(f"{len(missing)} tensors of the base model are missing, {min(missing)} among them")
    if (size := side_of(processor)) != clip.image_size:
        made = f"{size} pixels" if size else "images of several shapes"
        raise BaseModelError(f"the image processor makes {made}, the image encoder takes {clip.image_size}")
    vocabulary = clip.model.config.text_config.vocab_size
    special = {"start": clip.start, "end": clip.end}
    if not clip.family.causal:
        special["padding"] = [clip.tokenizer.pad_token_id]
    for name, ids in special.items():
        for id in ids:
            if not isinstance(id, int) or not 0 <= id < vocabulary:
                raise BaseModelError(
                    f"the tokenizer's {name} token is {id}, the text encoder knows {vocabulary} tokens"
                )


def load_processor(folder: Path) -> CLIPImageProcessorPil:
    """The model's image processor, in its PIL form (the other one wants torchvision)."""
    import transformers

    kind = getattr(transformers, FAMILIES[base_kind(folder)].processor_class)
    return kind.from_pretrained(folder, local_files_only=True)
