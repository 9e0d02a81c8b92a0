"""Prompt tuning: CoOp, CoCoOp and KgCoOp on a few photos of every class.

The encoders are frozen, so the features of clean images are computed once: tuning takes seconds on the embedded CLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from hf_ci.errors import UsageError
from hf_ci.pools.photos import Photos
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, hand_written
from hf_ci.prompts.features import encode
from hf_ci.prompts.learners import CoCoOp, CoOp, Prompt, build_meta_net


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
    """An untuned prompt: the words' own token embeddings, and a meta-net drawn from the seed."""
    context = hand_written(clip, recipe.words)  # (n, d)
    if not len(context):
        raise UsageError("--words: the context needs at least one word")
    if recipe.method == "cocoop":
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            meta_net = build_meta_net(clip.feature_dim, clip.token_dim)
        prompt: Prompt = CoCoOp(context, meta_net)
    else:
        prompt = CoOp(context.expand(len(class_names), -1, -1) if recipe.class_specific else context)
    return PromptedCLIP(clip, prompt, class_names, recipe.position)


def tune(clip: FrozenCLIP, photos: Photos, recipe: Recipe) -> PromptedCLIP:
    """Tune a clean prompt on `photos` (already the few shots)."""
    return fit(new_prompt(clip, photos.class_names, recipe), encode(clip, photos.images), photos.labels, recipe)


def fit(model: PromptedCLIP, features: Tensor, labels: Tensor, recipe: Recipe) -> PromptedCLIP:
    """Tune `model`'s prompt on image features (N, D) and their labels (N,)."""
    labels = labels.to(features.device)
    return fit_on(model, lambda rows: (features[rows], labels[rows]), len(labels), recipe)


def fit_on(
    model: PromptedCLIP, batch: Callable[[Tensor], tuple[Tensor, Tensor]], n: int, recipe: Recipe
) -> PromptedCLIP:
    """Tune `model`'s prompt; `batch` turns row indices, out of n, into image features (B, D) and labels (B,)."""
    untuned = new_prompt(model.clip, model.class_names, Recipe(method="coop", words=recipe.words))
    with torch.no_grad():
        anchor = untuned.text_features(torch.empty(0))  # (1, C, D)
    optimiser, schedule = optimiser_for(model, recipe, n)
    for rows in batches(n, recipe):
        features, labels = batch(rows)
        text = model.text_features(features)  # (B or 1, C, D)
        loss = F.cross_entropy(model.clip.logits((features[:, None] * text).sum(-1)), labels)
        if recipe.method == "kgcoop":  # Yao et al., CVPR 2023: stay near the hand-written prompt's text features
            loss = loss + recipe.kg_weight * (text - anchor).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def learning_rate(clip: FrozenCLIP, recipe: Recipe) -> float:
    return recipe.lr if recipe.lr is not None else (0.002 if clip.token_dim >= 512 else 0.1)


def optimiser_for(model: PromptedCLIP, recipe: Recipe, n: int) -> tuple[Optimizer, CosineAnnealingLR]:
    parameters, lr = model.prompt.parameters(), learning_rate(model.clip, recipe)
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
    return Adapter(
        recipe.method,
        prompt.ctx.detach().cpu(),
        model.class_names,
        base_model,
        base_revision,
        meta_net,
        recipe.position,
    )
