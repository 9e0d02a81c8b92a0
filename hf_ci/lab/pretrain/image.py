"""The image tower: contrasted with the finished text tower's embeddings, and distilled from an ImageNet classifier."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.lab.pretrain.data import TEMPLATES, Photos, augment
from hf_ci.lab.pretrain.model import LOGIT_SCALE, normalised, pooled, text_features
from hf_ci.lab.pretrain.optimise import Run

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

BATCH, CAPTIONED = 256, 48  # photos a step; those of them that have captions
KEEP = ((0.55, 0.25), (0.87, 0.5), (math.inf, 1.0))  # until this share of the run, this share of the patches
OTHERS = 1024  # captions of other photos that a photo's own is told from
WATCH = 400  # steps from one checkpoint to the next


def train_image_tower(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    photos: Photos,
    teacher: tuple[np.ndarray, Tensor, Tensor],
    work: Path,
    *,
    steps: int,
    minutes: float,
    seed: int,
    watch: Callable[[], dict[str, Any]],
) -> None:
    """Fit `model`'s image tower and visual projection; the text tower stays as it is.

    Photos with a class are told from the other classes of tiny_imagenet, photos with captions from other captions.
    Distillation goes through the teacher's own head (Yang et al., "Knowledge distillation via softmax regression
    representation learning", ICLR 2021). Most of the patches are dropped for most of the run (Li et al., "Scaling
    language-image pre-training via masking", CVPR 2023). `watch` exports and measures the model as it stands.
    """
    features, teacher_w, teacher_b = teacher
    names, captions = frozen_texts(model, tokenizer, photos, work)  # (T, C, 384), (K, 384)
    owner = torch.tensor([i for i, captions in enumerate(photos.captions) for _ in captions])
    labels = torch.from_numpy(photos.labels)

    head = nn.Linear(model.config.vision_config.hidden_size, teacher_w.shape[1])
    module = nn.ModuleDict({"tower": model.vision_model, "projection": model.visual_projection, "head": head})
    run = Run(module, work / "image.pt", steps=steps, minutes=minutes, lr=2e-3, decay=0.4)
    torch.manual_seed(seed + run.step)
    rng = np.random.default_rng(seed + run.step)
    while run.progress < 1:
        scale = math.exp(math.log(20) + min(1, run.progress / 0.2) * math.log(LOGIT_SCALE / 20))
        keep = next(share for end, share in KEEP if run.progress < end)
        named = rng.integers(photos.named, size=BATCH - CAPTIONED)
        own = torch.from_numpy(rng.integers(len(owner), size=CAPTIONED))  # one caption, and with it its photo
        rows = np.concatenate([named, photos.named + owner[own].numpy()])
        x = torch.from_numpy(photos.images[rows]).permute(0, 3, 1, 2).float() / 255
        x = normalised((augment(x) * 255).permute(0, 2, 3, 1))
        hidden = pooled(run.compute["tower"], x.bfloat16(), keep)  # (B, 192)
        v = F.normalize(run.compute["projection"](hidden).float(), dim=1)  # (B, 384)

        by_name = F.cross_entropy(scale * v[: len(named)] @ names[rng.integers(len(names))].T, labels[named])
        by_caption = caption_loss(v[len(named) :], own, captions, owner, scale, rng)
        distil = distillation(run.compute["head"](hidden[: len(named)]).float(), features[named], teacher_w, teacher_b)
        run.descend((len(named) * by_name + CAPTIONED * by_caption) / BATCH + distil)
        if run.step % WATCH == 0:
            run.save(name=by_name, caption=by_caption, distil=distil, **watched(run, watch))
    module.load_state_dict(run.average.state_dict())
    run.save(**watch())


def watched(run: Run, watch: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `watch` says of the average, which stands in for the master weights while it looks."""
    kept = {name: value.clone() for name, value in run.master.state_dict().items()}
    run.master.load_state_dict(run.average.state_dict())
    figures = watch()
    run.master.load_state_dict(kept)
    return figures


def frozen_texts(
    model: CLIPModel, tokenizer: PreTrainedTokenizerBase, photos: Photos, work: Path
) -> tuple[Tensor, Tensor]:
    """The text tower's embeddings of every name in every template (T, C, 384), and of all captions (K, 384)."""
    cached = work / "texts.pt"
    if not cached.exists():
        quick = copy.deepcopy(model).bfloat16()
        names = [text_features(quick, tokenizer, [t.format(n) for n in photos.names]) for t in TEMPLATES]
        captions = text_features(quick, tokenizer, [c for captions in photos.captions for c in captions])
        torch.save((torch.stack(names), captions), cached)
    found: tuple[Tensor, Tensor] = torch.load(cached)
    return found


def caption_loss(
    v: Tensor, own: Tensor, captions: Tensor, owner: Tensor, scale: float, rng: np.random.Generator
) -> Tensor:
    """Each photo's caption `own` told from OTHERS captions of other photos; v (n, 384)."""
    others = torch.from_numpy(rng.integers(len(captions), size=OTHERS))
    logits = scale * v @ captions[others].T  # (n, OTHERS)
    logits = logits.masked_fill(owner[own][:, None] == owner[others], float("-inf"))
    first = scale * (v * captions[own]).sum(1, keepdim=True)
    return F.cross_entropy(torch.cat([first, logits], dim=1), torch.zeros(len(v), dtype=torch.long))


def distillation(mine: Tensor, theirs: np.ndarray, w: Tensor, b: Tensor) -> Tensor:
    """The teacher's features through its own classifier, and their direction; both (n, 1280)."""
    target = torch.from_numpy(theirs).float()
    soft = F.softmax(F.linear(target, w, b), dim=1)
    return F.cross_entropy(F.linear(mine, w, b), soft) + 2 * (1 - F.cosine_similarity(mine, target)).mean()
