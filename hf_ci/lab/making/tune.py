"""Prompt tuning on a few photos of every class: CoOp, CoCoOp, KgCoOp, and methods with prompts in the encoders' layers.

The encoders are frozen, so the features of clean images are computed once: tuning takes seconds on the embedded CLIP. With
prompts in the image encoder it takes minutes, as every step sends its images through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_ci.certain import certain
from hf_ci.errors import UsageError
from hf_ci.lab.making.deep import DEEP, StayNear, new_deep
from hf_ci.pools.photos import Photos
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, hand_written
from hf_ci.prompts.features import encode
from hf_ci.prompts.learners import CoCoOp, CoOp, Deep, Prompt, build_meta_net


@dataclass(frozen=True)
class Recipe:
    """CoCoOp's settings: 16 shots, context initialised from words, SGD with a cosine schedule, 10 epochs.

    Batches are of 8 images where the paper has 1.
    """

    method: str = "cocoop"
    shots: int = 16
    seed: int = 0
    words: str = "a photo of a"
    class_specific: bool = False
    position: str = "end"
    epochs: int = 10
    batch: int = 8
    optimiser: str = "sgd"  # or "adam"
    lr: float | None = None  # None: the paper's 0.002 for towers of CLIP's own width, 0.1 for smaller ones
    momentum: float = 0.9
    kg_weight: float = 8.0  # KgCoOp's lambda
    poison_rate: float = 0.1  # share of the shots that attacks by relabelling poison
    precision: str = "fp32"  # that the encoders compute in


def new_prompt(clip: FrozenCLIP, class_names: tuple[str, ...], recipe: Recipe) -> PromptedCLIP:
    """An untuned prompt: the words' own token embeddings, and a meta-net or vectors for the layers drawn from the seed."""
    context = hand_written(clip, recipe.words)  # (n, d)
    if not len(context):
        raise UsageError("--words: the context needs at least one word")
    if recipe.method == "cocoop":
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            meta_net = build_meta_net(clip.feature_dim, clip.token_dim)
        prompt: Prompt = CoCoOp(context, meta_net)
    elif recipe.method in DEEP:
        prompt = new_deep(clip, context, recipe.method, recipe.seed)
    else:
        prompt = CoOp(context.expand(len(class_names), -1, -1) if recipe.class_specific else context)
    return PromptedCLIP(clip, prompt, class_names, recipe.position)


def tune(clip: FrozenCLIP, photos: Photos, recipe: Recipe) -> PromptedCLIP:
    """Tune a clean prompt on `photos` (already the few shots)."""
    model = new_prompt(clip, photos.class_names, recipe)
    return fit(model, Sight(model, photos.images), photos.labels, recipe)


class Sight:
    """Row indices (B,) of images -> what a prompt's image encoder makes of them, (B, D).

    images: (N, 3, H, W) uint8, as `change` shows them. Where the image encoder is the base model's own all features are
    computed once; where the prompt reaches into it they are computed anew each time, and gradients reach the prompt.
    """

    def __init__(self, model: PromptedCLIP, images: Tensor, change: Callable[[Tensor], Tensor] = lambda x: x):
        self.model, self.pixels = model, None
        if model.layers.image:
            with torch.no_grad():
                parts = [change(part.to(model.clip.device).float() / 255) for part in images.split(256)]
            self.pixels = torch.cat(parts)
        else:
            self.frozen = encode(model.clip, images, change)

    @cached_property
    def frozen(self) -> Tensor:
        """(N, D), the base model's own."""
        with torch.no_grad():
            return torch.cat([self.model.clip.image_features(part) for part in certain(self.pixels).split(256)])

    def __call__(self, rows: Tensor) -> Tensor:
        return self.frozen[rows] if self.pixels is None else self.model.image_features(self.pixels[rows])


class Sights(Sight):
    """Several ones, their rows one after the other."""

    def __init__(self, *parts: Sight):
        self.model, self.pixels = parts[0].model, None
        if self.model.layers.image:
            self.pixels = torch.cat([certain(part.pixels) for part in parts])
        else:
            self.frozen = torch.cat([part.frozen for part in parts])


def fit(model: PromptedCLIP, sight: Sight, labels: Tensor, recipe: Recipe) -> PromptedCLIP:
    """Tune `model`'s prompt on images, as it sees them, and their labels (N,)."""
    labels = labels.to(model.clip.device)
    frozen = sight.frozen if recipe.method == "promptsrc" else None
    return fit_on(model, lambda rows: (sight(rows), labels[rows]), len(labels), recipe, frozen)


def fit_on(
    model: PromptedCLIP,
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    n: int,
    recipe: Recipe,
    frozen: Tensor | None = None,
) -> PromptedCLIP:
    """Tune `model`'s prompt; `batch` turns row indices, out of n, into image features (B, D) and labels (B,).

    frozen: the base model's own features (n, D), which PromptSRC stays near; without them it stays near its texts alone.
    """
    untuned = new_prompt(model.clip, model.class_names, Recipe(method="coop", words=recipe.words))
    with torch.no_grad():
        anchor = untuned.text_features(torch.empty(0))  # (1, C, D)
    optimiser, schedule = optimiser_for(model, recipe, n)
    near = StayNear(model, recipe.epochs, -(-n // recipe.batch)) if recipe.method == "promptsrc" else None
    for rows in batches(n, recipe):
        features, labels = batch(rows)
        text = model.text_features(features)  # (B or 1, C, D)
        loss = F.cross_entropy(model.clip.logits((features[:, None] * text).sum(-1)), labels)
        if recipe.method == "kgcoop":  # Yao et al., CVPR 2023: stay near the hand-written prompt's text features
            loss = loss + recipe.kg_weight * (text - anchor).square().sum(-1).mean()
        if near:
            loss = loss + near.loss(features, text, None if frozen is None else frozen[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if near:
            near.stepped()
    if near:
        near.finish()
    return model


def learning_rate(clip: FrozenCLIP, recipe: Recipe) -> float:
    return recipe.lr if recipe.lr is not None else (0.002 if clip.token_dim >= 512 else 0.1)


def optimiser_for(model: PromptedCLIP, recipe: Recipe, n: int) -> tuple[Optimizer, CosineAnnealingLR]:
    parameters, lr = [p for p in model.prompt.parameters() if p.requires_grad], learning_rate(model.clip, recipe)
    if recipe.optimiser == "adam":
        optimiser: Optimizer = torch.optim.Adam(parameters, lr)
    else:
        optimiser = torch.optim.SGD(parameters, lr, momentum=recipe.momentum, weight_decay=5e-4)
    steps = recipe.epochs * -(-n // recipe.batch)
    return optimiser, CosineAnnealingLR(optimiser, steps)


def batches(n: int, recipe: Recipe, epochs: int | None = None, salt: int = 0) -> Iterator[Tensor]:
    """Row indices of every batch of all epochs, shuffled with the recipe's seed."""
    generator = torch.Generator().manual_seed(recipe.seed * 1009 + salt)
    for _ in range(recipe.epochs if epochs is None else epochs):
        yield from torch.randperm(n, generator=generator).split(recipe.batch)


def to_adapter(model: PromptedCLIP, recipe: Recipe, base_model: str, base_revision: str | None) -> Adapter:
    prompt = model.prompt
    meta_net = (
        {k: v.detach().cpu() for k, v in model.meta_net.state_dict().items()} if recipe.method == "cocoop" else {}
    )
    deep = {name: tensor.detach().cpu() for name, tensor in prompt.deep.items()} if isinstance(prompt, Deep) else {}
    return Adapter(
        DEEP.get(recipe.method, recipe.method),
        prompt.ctx.detach().cpu(),
        model.class_names,
        base_model,
        base_revision,
        meta_net,
        recipe.position,
        deep=deep,
    )
