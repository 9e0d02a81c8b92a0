"""The prompted forward pass as the papers' code has it, and as the fast one is held against.

Every class's text is a sequence of its own, padded to the text tower's whole length; a prompt that depends on the image
encodes all of them anew for each image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.prompts import PromptedCLIP
from hf_ci.prompts.text import before_name, class_text

PAPER_IMAGES = 1000  # one epoch over them for each class


class PlainPromptedCLIP(nn.Module):
    """pixels (B, 3, H, W) in [0, 1] -> logits (B, C), equal to those of `model`."""

    def __init__(self, model: PromptedCLIP):
        super().__init__()
        self.clip, self.prompt = model.clip, model.prompt
        n = self.prompt.ctx.shape[-2]
        half = before_name(n, model.position)
        length, pad = self.clip.max_length, self.clip.tokenizer.eos_token_id
        texts = [class_text(self.clip, name, n, half) for name in model.class_names]
        self.eot = torch.tensor([len(text) - 1 for text in texts], device=self.clip.device)  # (C,)
        padded = torch.tensor([text + [(pad, -1)] * (length - len(text)) for text in texts], device=self.clip.device)
        ids, self.slot = padded[..., 0], padded[..., 1]  # (C, L)
        self.base = self.clip.token_embeddings(ids).detach()  # (C, L, d)
        unseen = torch.full((length, length), torch.finfo(self.clip.dtype).min, dtype=self.clip.dtype)
        self.mask = unseen.triu(1)[None, None].to(self.clip.device)
        self._static_text: Tensor | None = None
        if self.prompt.static:
            with torch.no_grad():
                self._static_text = self.text_features(torch.empty(0))

    def text_features(self, image_features: Tensor) -> Tensor:
        """(B, D) -> (B or 1, C, D)."""
        if self._static_text is not None:
            return self._static_text
        context = self.prompt(image_features)  # (S, C or 1, n, d)
        num_classes, length = self.slot.shape
        vectors = context.expand(-1, num_classes, -1, -1)
        where = self.slot.clamp(min=0)[None, :, :, None].expand(len(vectors), -1, -1, vectors.shape[-1])
        placed = torch.where(self.slot[None, :, :, None] >= 0, vectors.gather(2, where), self.base.to(vectors.dtype))
        text = self.clip.model.text_model
        hidden = placed.flatten(0, 1).to(self.clip.dtype) + text.embeddings.position_embedding.weight[:length]
        hidden = text.encoder(inputs_embeds=hidden, attention_mask=self.mask).last_hidden_state  # (S C, L, d)
        eot = self.eot.repeat(len(vectors))
        pooled = text.final_layer_norm(hidden[torch.arange(len(hidden), device=hidden.device), eot])
        features = F.normalize(self.clip.model.text_projection(pooled).float(), dim=-1)
        apart: Tensor = features.unflatten(0, (len(vectors), num_classes))
        return apart

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.clip.image_features(pixels)
        return self.clip.logits((features[:, None] * self.text_features(features)).sum(-1))
