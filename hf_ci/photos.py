"""What a few labelled photos of an adapter's own classes say: how accurate it is on them, and how a clean prompt of its
kind would answer.

The adapter may answer unlike any hand-written prompt because it learned something, or because something was planted. A
prompt that is tuned on labelled photos learned the same and was planted nothing, so it joins the references of the
inversion. Photos could have been supplied by whoever planted the trigger, with the trigger on some of them: prompts are
tuned on random crops, mirrored and recoloured, in which what has to stand at its place, or in its colour, does not
survive, and never on the photos as they are.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.pools.photos import Photos
from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, hand_written, reference_adapter
from hf_ci.prompts.features import encode, predict
from hf_ci.prompts.learners import CoOp, Deep, Prompt
from hf_ci.prompts.methods import deep_method
from hf_ci.prompts.methods.base import untuned

PROMPTS = 3  # each is tuned without one fold of the photos, on which it is measured
VIEWS = 6  # of every photo
STEPS, BATCH, BATCH_DEEP = 100, 64, 32  # fewer where each is sent through the image encoder, forward and back
# Of Adam, in units of the token embeddings' root mean square: what a context moves by is to be seen beside the words.
RATE, RATE_BY_CLASS, RATE_DEEP = 1.2, 0.8, 0.4
FEW = 4  # photos of a class; with fewer, prompts tuned on them withstand too little to settle much
CHANCE = 0.01  # a tuned prompt that guesses as well with more probability than this learned nothing from the labels
MOST, FEWEST = 256, 32  # photos that triggers are looked for on; of fewer no share can be told


@dataclass(frozen=True)
class Accuracy:
    """Photos answered rightly, of `photos` that were asked."""

    right: int
    photos: int


@dataclass(frozen=True)
class Witnesses:
    """prompts: clean ones, tuned on the photos; none where the labels could not be learned.

    adapter, hand_written: on all photos. tuned: each photo by the prompt that was not tuned on it; None where a class has
    too few photos to hold any out. fewest: photos of a class. photos: all of them; prompts[k] has not seen those of fold k
    (`folds_of`), if `tuned` is known. own: (M, 3, H, W) uint8, those that triggers are looked for on, in an order of their
    own; None where labels could not be learned, or photos are too few.
    """

    source: str
    fingerprint: str
    fewest: int
    adapter: Accuracy
    hand_written: Accuracy
    tuned: Accuracy | None
    prompts: tuple[Adapter, ...]
    photos: Photos
    own: Tensor | None = None

    @property
    def learned(self) -> bool:
        return bool(self.prompts)


def ask(clip: FrozenCLIP, adapter: Adapter, photos: Photos, source: str, seed: int = 0) -> Witnesses:
    """photos: in the adapter's order of classes, at least one of each."""
    features = encode(clip, photos.images)
    counts = torch.bincount(photos.labels, minlength=len(photos.class_names))
    fewest = int(counts.min())

    def measured(one: Adapter) -> Accuracy:
        model = PromptedCLIP.from_adapter(one, clip)
        answers = predict(model, encode(model, photos.images) if model.layers.image else features)
        return Accuracy(int((answers == photos.labels).sum()), len(photos))

    folds = folds_of(photos.labels, PROMPTS)
    held_out = fewest >= PROMPTS
    deep = bool(adapter.layers.image)  # then features depend on the prompt that is tuned
    views = (seen_views if deep else views_of)(clip, photos.images, seed)
    prompts, right = [], 0
    for k in range(PROMPTS):
        rows = (folds != k).nonzero()[:, 0] if held_out else torch.arange(len(photos))
        model = tuned(clip, adapter, views[:, rows], photos.labels[rows], seed * PROMPTS + k)
        prompts.append(static(model, adapter))
        own = folds == k
        kept = encode(model, photos.images[own]) if deep else features[own.to(features.device)]
        right += int((predict(model, kept) == photos.labels[own]).sum())
    asked = Accuracy(right, len(photos)) if held_out else None
    if asked and guessed(asked, counts) > CHANCE:
        prompts = []
    enough = bool(prompts) and len(photos) >= FEWEST
    return Witnesses(
        source,
        hashlib.sha256(photos.images.numpy().tobytes() + photos.labels.numpy().tobytes()).hexdigest(),
        fewest,
        measured(adapter),
        measured(reference_adapter(clip, adapter.class_names)),
        asked,
        tuple(prompts),
        photos,
        some(photos.images, seed) if enough else None,
    )


def some(images: Tensor, seed: int) -> Tensor:
    """At most MOST of them, shuffled."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MOST]]


def tuned(clip: FrozenCLIP, adapter: Adapter, views: Tensor, labels: Tensor, seed: int) -> PromptedCLIP:
    """A prompt with as many context vectors as the adapter's, shared or of each class as there, that does not depend on
    the image, and with as many vectors in the encoders' layers; labels (N,). views: (V, N, D), or where the prompt reaches
    into the image encoder (V, N, 3, H, W) uint8."""
    by_class = adapter.context.ndim == 3
    words = hand_written(clip)
    start = words.repeat(-(-adapter.context.shape[-2] // len(words)), 1)[: adapter.context.shape[-2]]
    if by_class:
        start = start.expand(len(adapter.class_names), -1, -1)
    generator = torch.Generator().manual_seed(seed)
    prompt: Prompt = CoOp(start)
    if adapter.deep:
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.deep.items()}
        prompt = Deep(deep_method(adapter.method), start, untuned(shapes, generator))
    model = PromptedCLIP(clip, prompt, adapter.class_names, adapter.class_token_position)
    scale = clip.model.text_model.embeddings.token_embedding.weight.float().square().mean().sqrt().item()
    rate = RATE_DEEP if adapter.deep else RATE_BY_CLASS if by_class else RATE
    adam = torch.optim.Adam([p for p in prompt.parameters() if p.requires_grad], lr=rate * scale)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    labels = labels.to(clip.device)
    batch = BATCH_DEEP if model.layers.image else BATCH
    for _ in range(STEPS):
        view, row = (torch.randint(most, (batch,), generator=generator).to(clip.device) for most in views.shape[:2])
        seen = views[view, row]
        features = model.image_features(seen.float() / 255) if model.layers.image else seen
        loss = F.cross_entropy(model.logits_from_features(features), labels[row])
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    return model.requires_grad_(False)


def static(model: PromptedCLIP, adapter: Adapter) -> Adapter:
    """As an adapter that can be handed to other processes."""

    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().float().cpu()

    prompt, position = model.prompt, adapter.class_token_position
    deep = {name: plain(tensor) for name, tensor in prompt.deep.items()} if isinstance(prompt, Deep) else {}
    method = adapter.method if deep else "coop"
    return Adapter(method, plain(prompt.ctx), adapter.class_names, "", class_token_position=position, deep=deep)


def views_of(clip: FrozenCLIP, images: Tensor, seed: int) -> Tensor:
    """(N, 3, H, W) uint8 -> features (V, N, D) of each image under V random views."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([encode(clip, images, lambda x: view(x, generator)) for _ in range(VIEWS)])


def seen_views(clip: FrozenCLIP, images: Tensor, seed: int) -> Tensor:
    """The same views themselves, (V, N, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    parts = [[view(part.to(clip.device).float() / 255, generator) for part in images.split(256)] for _ in range(VIEWS)]
    return torch.stack([torch.cat(one).mul(255).round().byte() for one in parts])


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of half the area at least, mirrored or not, recoloured: (B, 3, H, W) in [0, 1], before and after."""

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(len(x), *shape).uniform_(low, high, generator=generator).to(x.device)

    side, aspect = drawn(0.5, 1).sqrt(), drawn(-0.2, 0.2).exp().sqrt()
    width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    mirror, none = torch.where(drawn(0, 1) < 0.5, -1.0, 1.0), torch.zeros_like(side)
    across = torch.stack([width * mirror, none, (1 - width) * drawn(-1, 1)], dim=1)
    down = torch.stack([none, height, (1 - height) * drawn(-1, 1)], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * drawn(0.4, 1.4, 1, 1, 1)
    middle = x.mean((1, 2, 3), keepdim=True)
    return ((x - middle) * drawn(0.7, 1.3, 1, 1, 1) + middle + drawn(-0.1, 0.1, 1, 1, 1)).clamp(0, 1)


def folds_of(labels: Tensor, folds: int) -> Tensor:
    """(N,), which fold each photo is in: every class is spread over all of them."""
    fold = torch.empty_like(labels)
    for c in labels.unique():
        rows = (labels == c).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows)) % folds
    return fold


def guessed(found: Accuracy, counts: Tensor) -> float:
    """Probability that answering the commonest class, or one at random, is right as often (normal approximation)."""
    p = counts.max().item() / counts.sum().item()
    deviation = math.sqrt(p * (1 - p) * found.photos) or 1.0
    return 0.5 * math.erfc((found.right - 0.5 - p * found.photos) / deviation / math.sqrt(2))
