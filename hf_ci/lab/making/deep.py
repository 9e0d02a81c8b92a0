"""What is tuned by methods with prompts in the encoders' layers, before it is, and what PromptSRC adds to the tuning.

Their papers put prompts into the first nine of twelve layers: here into as many of a shorter encoder's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.errors import UsageError
from hf_ci.prompts import BesideReferences, FrozenCLIP, PromptedCLIP, hand_written
from hf_ci.prompts.learners import Deep
from hf_ci.prompts.methods import deep_method
from hf_ci.prompts.methods.base import untuned

# name in a recipe -> in an adapter
DEEP = {"maple": "maple", "ivlp": "ivlp", "promptsrc": "promptsrc", "vpt-shallow": "vpt", "vpt-deep": "vpt"}
SHARE = 9 / 12  # of the layers
TOKENS = 4  # in each of the image encoder's; VPT: twice as many, as nothing else is tuned
TEXT_WEIGHT, IMAGE_WEIGHT = 25.0, 10.0  # PromptSRC's
MIDDLE, SPREAD = 15 / 20, 1 / 20  # of the weights of its mean over epochs, in shares of all epochs


def new_deep(clip: FrozenCLIP, context: Tensor, name: str, seed: int) -> Deep:
    """The prompt of a method of `DEEP`, untuned, with the context (n, d)."""
    method = deep_method(DEEP[name])
    if method.words and not torch.equal(context, hand_written(clip, method.words)):
        raise UsageError(f"--words: the text of {method.title} is {method.words!r}", "leave --words out")
    text, image = (getattr(clip.model.config, f"{tower}_config") for tower in ("text", "vision"))
    in_text, in_image = (max(1, math.floor(SHARE * tower.num_hidden_layers)) for tower in (text, image))
    if name.startswith("vpt"):
        in_text, in_image = 0, 1 if name == "vpt-shallow" else image.num_hidden_layers
    if name == "maple":
        in_text = min(in_text, in_image)
    tokens = TOKENS * (2 if method.words else 1)
    n, d = context.shape
    shapes = method.shapes((in_text, n, d), (in_image, tokens, image.hidden_size))
    return Deep(method, context, untuned(shapes, torch.Generator().manual_seed(seed)))


class StayNear:
    """What PromptSRC (Khattak et al., ICCV 2023) adds: the features of texts and of images, and the answers, stay near the
    base model's own, with hand-written texts; and what is kept is a weighted mean over the epochs.

    The base model's texts are the mean of a few hand-written prompts, where the paper has sixty.
    """

    def __init__(self, model: PromptedCLIP, epochs: int, steps: int):
        """steps: of each epoch."""
        self.model, self.steps, self.taken = model, steps, 0
        weights = [math.exp(-(((e + 1) / epochs - MIDDLE) ** 2) / (2 * SPREAD**2)) for e in range(epochs)]
        self.weights = [weight / sum(weights) for weight in weights]
        self.mean = [torch.zeros_like(p) for p in model.prompt.parameters()]
        self.texts = F.normalize(BesideReferences(model).texts.mean(0, keepdim=True), dim=-1)  # (1, C, D)

    def loss(self, features: Tensor, text: Tensor, frozen: Tensor | None) -> Tensor:
        """features (B, D) and frozen (B, D), the base model's own; text (1, C, D)."""
        found = TEXT_WEIGHT * (text - self.texts).abs().mean()
        if frozen is None:
            return found
        logits = self.model.clip.logits
        ours = F.log_softmax(logits((features[:, None] * text).sum(-1)), dim=-1)
        theirs = F.log_softmax(logits((frozen[:, None] * self.texts).sum(-1)), dim=-1)
        near = F.kl_div(ours, theirs, reduction="sum", log_target=True) / ours.numel()
        return found + IMAGE_WEIGHT * (features - frozen).abs().mean() + near

    @torch.no_grad()
    def stepped(self) -> None:
        """After each step."""
        self.taken += 1
        if self.taken % self.steps == 0:
            weight = self.weights[self.taken // self.steps - 1]
            for mean, parameter in zip(self.mean, self.model.prompt.parameters()):
                mean += weight * parameter

    @torch.no_grad()
    def finish(self) -> None:
        for mean, parameter in zip(self.mean, self.model.prompt.parameters()):
            parameter.copy_(mean)
