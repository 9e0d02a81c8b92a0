"""Tune a prompt from a clean start until reconstructed triggers do not move its answers.

CLIP-Inspector (arXiv 2604.09101, section on repair) adds the recovered trigger to a few labelled photos, keeps the true
labels, and fine-tunes the poisoned prompt. Three things differ here. The tuning starts from a prompt that nobody has
touched, "a photo of a {class}", because a backdoor sits in the poisoned weights and is not wholly unlearned from there.
Where there are no labels, the wanted answer is what the adapter *and* the hand-written prompt make of the image without
the trigger: distilling the adapter alone brings the backdoor back. And the encoders are frozen, so every image is encoded
once for each trigger and the tuning takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.prompts import Adapter, FrozenCLIP, PromptedCLIP, hand_written
from hf_ci.prompts.learners import CoCoOp, CoOp, build_meta_net


@dataclass(frozen=True)
class Schedule:
    """steps of Adam on the prompt's own parameters, each on `batch` images without and with a trigger."""

    steps: int = 150
    batch: int = 32
    lr: float = 0.005
    smoothing: float = 0.1  # of the labels
    seed: int = 0


def clean_start(adapter: Adapter, clip: FrozenCLIP) -> PromptedCLIP:
    """A prompt of the adapter's kind that answers as "a photo of a {class}" does: its meta-net adds nothing yet."""
    context = hand_written(clip)  # (n, d)
    if adapter.meta_net:
        meta_net = build_meta_net(clip.feature_dim, clip.token_dim, len(adapter.meta_net["linear1.bias"]))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            bound = clip.feature_dim**-0.5
            meta_net.linear1.weight.uniform_(-bound, bound, generator=generator)
            for zero in (meta_net.linear1.bias, meta_net.linear2.weight, meta_net.linear2.bias):
                nn.init.zeros_(zero)
        prompt = CoCoOp(context, meta_net)
    else:
        many = adapter.context.ndim == 3
        prompt = CoOp(context.expand(len(adapter.class_names), -1, -1) if many else context)
    return PromptedCLIP(clip, prompt, adapter.class_names, adapter.class_token_position)


def wanted_from_answers(adapter: Tensor, reference: Tensor, suspects: Sequence[int] = ()) -> Tensor:
    """log p (N, C) from the logits of the adapter and of the hand-written prompt: their normalised geometric mean.

    Of a class under suspicion it is the lesser of the two: a planted class is answered too often without a trigger, too.
    """
    a, r = F.log_softmax(adapter, dim=1), F.log_softmax(reference, dim=1)
    both = (a + r) / 2
    both[:, list(suspects)] = torch.minimum(a, r)[:, list(suspects)]
    return F.log_softmax(both, dim=1)


def wanted_with_labels(answers: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """log p (N, C): half the smoothed labels, half the answers, which keep a few photos from being learnt by heart."""
    num_classes = answers.shape[1]
    truth = (F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes).log()
    return torch.logaddexp(truth, answers) - math.log(2)


def unlearn(model: PromptedCLIP, clean: Tensor, triggered: Tensor, wanted: Tensor, schedule: Schedule) -> None:
    """Tune `model`'s prompt in place: minimise mean_x [ KL(p(x) || f(x)) + mean_delta KL(p(x) || f(x + delta)) ].

    clean: features of x (N, D); triggered: of x + delta (T, N, D), for every trigger; wanted: log p(x) (N, C).
    """
    adam = torch.optim.Adam([q.requires_grad_() for q in model.prompt.parameters()], lr=schedule.lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, schedule.steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    for step in range(schedule.steps):
        rows = torch.randint(len(clean), (schedule.batch,), generator=generator).to(clean.device)
        which = torch.randint(len(triggered), (schedule.batch,), generator=generator).to(clean.device)
        logits = model.logits_from_features(torch.cat([clean[rows], triggered[which, rows]]))  # (2B, C)
        p = wanted[rows].repeat(2, 1)  # (2B, C): the trigger changes nothing
        loss = F.kl_div(F.log_softmax(logits, dim=1), p, reduction="batchmean", log_target=True)
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    model.requires_grad_(False)
