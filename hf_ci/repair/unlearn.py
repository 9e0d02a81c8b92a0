"""Tune a prompt from a clean start until reconstructed triggers move its answers no more than a clean prompt's.

CLIP-Inspector (arXiv 2604.09101, section on repair) adds the recovered trigger to a few labelled photos, keeps the true
labels, and fine-tunes the poisoned prompt. Three things differ here. The tuning starts from a prompt that nobody has
touched, one tuned on the labelled photos or else "a photo of a {class}", because a backdoor sits in the poisoned weights
and is not wholly unlearned from there. What is wanted of an image is what the adapter *and* that prompt make of it:
distilling the adapter alone brings the backdoor back. With a trigger, or a probe (a wave, a colour cast, a turn), it is what
that prompt makes of an image so changed: to ask for what is no longer to be seen would bend the prompt until other classes
could be forced. And the encoders are frozen, so an image is encoded once for each trigger, and for a few probes, and the
tuning takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, hand_written
from hf_ci.prompts.learners import CoCoOp, CoOp, Prompt, build_meta_net


@dataclass(frozen=True)
class Lesson:
    """N images in T ways: their features (T, N, D), and log p, the answers that are wanted of them (T, N, C).

    share: of every batch.
    """

    features: Tensor
    wanted: Tensor
    share: float


@dataclass(frozen=True)
class Schedule:
    """steps of Adam on the prompt's own parameters, each on `batch` images.

    label_weight: of what is wanted of a labelled image; ways: probes that an image is seen under.
    """

    steps: int = 75
    batch: int = 64
    lr: float = 0.005
    label_weight: float = 0.1
    ways: int = 4
    seed: int = 0


def clean_start(adapter: Adapter, clip: FrozenCLIP, context: Tensor | None = None) -> PromptedCLIP:
    """A prompt of the adapter's kind that answers as `context` does, (n, d) or of each class (C, n, d); None: as "a photo of
    a {class}" does. Its meta-net adds nothing yet."""
    context = hand_written(clip) if context is None else context
    if adapter.meta_net:
        meta_net = build_meta_net(clip.feature_dim, clip.token_dim, len(adapter.meta_net["linear1.bias"]))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            bound = clip.feature_dim**-0.5
            meta_net.linear1.weight.uniform_(-bound, bound, generator=generator)
            for zero in (meta_net.linear1.bias, meta_net.linear2.weight, meta_net.linear2.bias):
                nn.init.zeros_(zero)
        prompt: Prompt = CoCoOp(context, meta_net)
    else:
        many = adapter.context.ndim == 3
        prompt = CoOp(context.expand(len(adapter.class_names), -1, -1) if many and context.ndim == 2 else context)
    return PromptedCLIP(clip, prompt, adapter.class_names, adapter.class_token_position)


def wanted_from_answers(adapter: Tensor, reference: Tensor, suspects: Sequence[int] = ()) -> Tensor:
    """log p (N, C) from the logits of the adapter and of a clean prompt: their normalised geometric mean.

    For a class under suspicion it is the clean prompt's alone, because a planted class is answered too often
    without a trigger, too; the others share what that leaves.
    """
    a, r = F.log_softmax(adapter, dim=1), F.log_softmax(reference, dim=1)
    others = [c for c in range(a.shape[1]) if c not in set(suspects)]
    left = r[:, others].logsumexp(dim=1, keepdim=True)  # (N, 1)
    wanted = r.clone()
    wanted[:, others] = F.log_softmax((a + r)[:, others] / 2, dim=1) + left
    return wanted


def wanted_with_labels(answers: Tensor, labels: Tensor, weight: float) -> Tensor:
    """log p (..., N, C): `weight` for the label of each image (N,), the rest for the answers, log p as well. With more of
    them a few photos are learnt by heart, which costs accuracy on others."""
    truth = F.one_hot(labels, answers.shape[-1]).log()  # 0 and -inf
    return torch.logaddexp(truth + math.log(weight), answers + math.log1p(-weight))


def unlearn(model: PromptedCLIP, lessons: Sequence[Lesson], schedule: Schedule) -> None:
    """Tune `model`'s prompt in place: minimise the mean over the lessons of KL(p(x) || f(x)), each with its share."""
    adam = torch.optim.Adam([q.requires_grad_() for q in model.prompt.parameters()], lr=schedule.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, schedule.steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    for _ in range(schedule.steps):
        features, wanted = [], []
        for lesson in lessons:
            (ways, n, _), size = lesson.features.shape, round(lesson.share * schedule.batch)
            way, row = (torch.randint(most, (size,), generator=generator).to(model.clip.device) for most in (ways, n))
            features.append(lesson.features[way, row])
            wanted.append(lesson.wanted[way, row])
        f = F.log_softmax(model.logits_from_features(torch.cat(features)), dim=1)  # (B, C)
        loss = F.kl_div(f, torch.cat(wanted), reduction="batchmean", log_target=True)
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    model.requires_grad_(False)
