"""Frozen CLIP or SigLIP + prompt + class names -> logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from hf_ci.errors import AdapterError
from hf_ci.prompts.adapter import Adapter
from hf_ci.prompts.clip import FrozenCLIP
from hf_ci.prompts.learners import CoCoOp, CoOp, Deep, MetaNet, Prompt, build_meta_net
from hf_ci.prompts.methods import METHODS, Layers, deep_method
from hf_ci.prompts.methods.base import check_layers
from hf_ci.prompts.text import ShortTrees, build_trees


class PromptedCLIP(nn.Module):
    """logits(pixels) = scale * <image features, text features> + bias, as the base model's own, with the prompt in the text."""

    def __init__(self, clip: FrozenCLIP, prompt: Prompt, class_names: tuple[str, ...], position: str = "end"):
        super().__init__()
        self.clip, self.prompt, self.class_names, self.position = clip, prompt.to(clip.device), class_names, position
        try:
            self.trees = build_trees(clip, class_names, prompt.ctx.shape[-2], position, prompt.ctx.ndim == 3)
        except ValueError as error:
            raise AdapterError(str(error), "shorten the class names") from error
        self._static_text: Tensor | None = None

    @classmethod
    def from_adapter(cls, adapter: Adapter, clip: FrozenCLIP) -> PromptedCLIP:
        """Raises AdapterError when the adapter's shapes do not fit this CLIP."""
        check_fits(adapter, clip)
        if adapter.meta_net:
            meta_net = build_meta_net(clip.feature_dim, clip.token_dim, len(adapter.meta_net["linear1.bias"]))
            meta_net.load_state_dict(adapter.meta_net)
            prompt: Prompt = CoCoOp(adapter.context, meta_net)
        elif adapter.deep:
            prompt = Deep(deep_method(adapter.method), adapter.context, adapter.deep)
        else:
            prompt = CoOp(adapter.context)
        return cls(clip, prompt, adapter.class_names, adapter.class_token_position).requires_grad_(False)

    @property
    def layers(self) -> Layers:
        """The prompts in the encoders' layers. With any in the image encoder's, image features are not the base model's."""
        return self.prompt.layers

    @property
    def meta_net(self) -> MetaNet:
        """Of a prompt that has one."""
        assert isinstance(self.prompt, CoCoOp)
        return self.prompt.meta_net

    @cached_property
    def short_trees(self) -> ShortTrees:
        return ShortTrees(self.clip, self.class_names, self.prompt.ctx.shape[-2], self.position)

    def text_features(self, image_features: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, D) -> (B or 1, C, D) of unit length; with classes (B, R), of a prompt that depends on the image, (B, R, D)."""
        if self._static_text is not None:
            return self._static_text
        context = self.prompt(image_features)  # (S, C or 1, n, d), S = B or 1
        if classes is not None:
            tree = self.short_trees.of(classes)
            return self.clip.text_features(tree.place(context), tree)
        deep = self.layers.text
        return torch.cat([self.clip.text_features(tree.place(context), tree, deep) for tree in self.trees], dim=1)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D) of unit length, with the prompts in the image encoder."""
        return self.clip.image_features(pixels, self.layers.image)

    def logits_from_features(self, image_features: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, D) of unit length -> (B, C), or with classes (B, R) those of each image's own (B, R)."""
        text = self.text_features(image_features, classes)  # (S, C or R, D)
        return self.clip.logits((image_features[:, None] * text).sum(-1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, C) fp32."""
        return self.logits_from_features(self.image_features(pixels))

    @contextmanager
    def frozen_prompt(self) -> Iterator[PromptedCLIP]:
        """Within this block the prompt does not change: a context that ignores the image is encoded once."""
        if self.prompt.static:
            with torch.no_grad():
                self._static_text = self.text_features(torch.empty(0))
        try:
            yield self
        finally:
            self._static_text = None


# Neutral words only: what names a style or a size ("art of the", "a photo of the small") is itself something visible,
# which a small perturbation can imitate on the frozen encoders, and such a reference would withstand too little.
REFERENCES = ("a photo of a", "a", "an image of the", "a close-up of one", "a picture showing some")
NEAREST = 7  # a class that a trigger aims at, and six rivals
NEAREST_BATCH = 8  # images at a time, as the texts of all classes are encoded for each


class BesideReferences(nn.Module):
    """A prompt and K clean ones for the same classes on the same images: hand-written ones, and `tuned` ones, whose contexts
    do not depend on the image. Where prompts reach into the image encoder, each image is encoded once with the adapter's,
    once with none, for the references that have none, and once for each reference that has its own.

    pixels (B, 3, H, W) -> logits of the adapter (B, C), and of the references (B, K, C). With `classes` (B, R), those of
    the adapter are of each image's own classes (B, R).

    nearest: for each image of `pool` (N, 3, H, W) uint8 the classes that the adapter finds likeliest (N, R); None without a
    pool, and where encoding them alone would save nothing: few classes, or texts that are the same for all images.
    """

    texts: Tensor

    def __init__(self, adapted: PromptedCLIP, pool: Tensor | None = None, tuned: Sequence[Adapter] = ()):
        super().__init__()
        self.adapted = adapted
        clip, names = adapted.clip, adapted.class_names
        references = [*(reference_adapter(clip, names, words) for words in REFERENCES), *tuned]
        prompted = [PromptedCLIP.from_adapter(reference, clip) for reference in references]
        with torch.no_grad():
            texts = torch.cat([reference.text_features(torch.empty(0)) for reference in prompted])  # (K, C, D)
        self.register_buffer("texts", texts, persistent=False)
        own = [reference for reference in prompted if reference.layers.image]
        self.encoders: list[PromptedCLIP | FrozenCLIP] = (
            [adapted, clip, *own] if adapted.layers.image or own else [adapted]
        )
        # which of them each reference's images go through
        self.sees = [2 + own.index(one) if one in own else min(1, len(self.encoders) - 1) for one in prompted]
        many = len(names) > 2 * NEAREST and not adapted.prompt.static
        self.pool = pool if many else None

    @cached_property
    def nearest(self) -> Tensor | None:
        """Found when first asked for: whoever has all inversions in the cache never asks."""
        if self.pool is None:
            return None
        with torch.no_grad():
            parts = (self.adapted(part.float() / 255) for part in self.pool.split(NEAREST_BATCH))
            return torch.cat([logits.topk(NEAREST).indices for logits in parts])

    def forward(self, pixels: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.from_features(self.image_features(pixels), classes)

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, D), or where they are not the same for all (B, 1 + E, D), the adapter's first."""
        if len(self.encoders) == 1:
            return self.adapted.image_features(pixels)
        return torch.stack([encoder.image_features(pixels) for encoder in self.encoders], dim=1)

    def from_features(self, features: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same as `forward`, from what `image_features` gave."""
        own = features if features.ndim == 2 else features[:, 0]
        return self.adapted.logits_from_features(own, classes), self.references_from(features)

    def references_from(self, features: Tensor) -> Tensor:
        """The references' logits (B, K, C) alone, of the same."""
        if features.ndim == 2:
            return self.adapted.clip.logits(torch.einsum("bd,kcd->bkc", features, self.texts))
        return self.adapted.clip.logits(torch.einsum("bkd,kcd->bkc", features[:, self.sees], self.texts))


def hand_written(clip: FrozenCLIP, words: str = "a photo of a") -> Tensor:
    """The context (n, d) of a prompt written by hand: the words' own token embeddings."""
    ids = torch.tensor(clip.tokenise(words), device=clip.device, dtype=torch.long)
    with torch.no_grad():
        return clip.token_embeddings(ids).float()


def reference_adapter(clip: FrozenCLIP, class_names: tuple[str, ...], words: str = REFERENCES[0]) -> Adapter:
    """A clean prompt that nobody tuned, "{words} {class}.", for the same classes."""
    return Adapter("coop", hand_written(clip, words).cpu(), class_names, base_model="")


def check_fits(adapter: Adapter, clip: FrozenCLIP) -> None:
    d = adapter.context.shape[-1]
    if d != clip.token_dim:
        raise AdapterError(
            f"context vectors have {d} dimensions, the base model's text tower has {clip.token_dim}",
            "name the base model that the adapter was tuned on with --base",
        )
    if (adapter.layers.text or adapter.layers.image) and not clip.family.layered:
        raise AdapterError(
            f"{METHODS[adapter.method].title} puts prompts into the layers of CLIP's encoders; where they would stand in "
            f"those of a {type(clip.family).__name__} is not known",
            "name the CLIP that the adapter was tuned on with --base",
        )
    text, vision = (getattr(clip.model.config, f"{tower}_config") for tower in ("text", "vision"))
    check_layers(
        adapter.layers,
        (text.num_hidden_layers, text.hidden_size),
        (vision.num_hidden_layers, vision.hidden_size),
        METHODS[adapter.method].title,
    )
    if adapter.context.ndim == 3 and len(adapter.context) != len(adapter.class_names):
        raise AdapterError(
            f"the prompt holds {len(adapter.context)} class-specific contexts, {len(adapter.class_names)} class names "
            "are given",
            "give the names the adapter was tuned with, in order, with --classes FILE",
        )
    if adapter.meta_net:
        hidden = adapter.meta_net["linear1.weight"].shape[0] if adapter.meta_net["linear1.weight"].ndim == 2 else 0
        wanted = {
            "linear1.weight": (hidden, clip.feature_dim),
            "linear1.bias": (hidden,),
            "linear2.weight": (clip.token_dim, hidden),
            "linear2.bias": (clip.token_dim,),
        }
        for name, shape in wanted.items():
            if hidden == 0 or tuple(adapter.meta_net[name].shape) != shape:
                raise AdapterError(
                    f"the meta-net's {name} is {tuple(adapter.meta_net[name].shape)}, this base model needs {shape}",
                    "name the base model that the adapter was tuned on with --base",
                )
