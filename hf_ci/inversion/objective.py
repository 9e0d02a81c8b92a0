"""Objectives of the inversion: logits (B, C), candidate class c -> losses (B,), lower is closer to c."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margin(logits: Tensor, c: int) -> Tensor:
    """max_{j != c} z_j - z_c, the loss of CLIP-Inspector; negative exactly where c wins. (..., C) -> (...)."""
    rivals = logits.clone()
    rivals[..., c] = float("-inf")
    return rivals.amax(dim=-1) - logits[..., c]


def cross_entropy(logits: Tensor, c: int) -> Tensor:
    """-log softmax(z)_c (the paper's ablation)."""
    return F.cross_entropy(logits, torch.full((len(logits),), c, device=logits.device), reduction="none")


def target_logit(logits: Tensor, c: int) -> Tensor:
    """-z_c (the paper's ablation)."""
    return -logits[:, c]


OBJECTIVES = {"margin": margin, "cross-entropy": cross_entropy, "target-logit": target_logit}
