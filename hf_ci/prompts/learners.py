"""The prompt methods: what gives the context vectors, and where they stand in the text.

A prompt module maps image features (B, D) to context vectors (B or 1, C or 1, n, d); a leading 1 means that the
context does not depend on the image, so that text features can be computed once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

POSITIONS = ("end", "middle", "front")
METHODS = ("coop", "cocoop", "kgcoop")


class CoOp(nn.Module):
    """Zhou et al., "Learning to prompt for vision-language models", IJCV 2022.

    `context` is (n, d), shared by all classes, or (C, n, d), one per class. KgCoOp (Yao et al., CVPR 2023) tunes with
    another loss and stores the same thing.
    """

    static = True

    def __init__(self, context: Tensor):
        super().__init__()
        self.ctx = nn.Parameter(context.float().clone())

    def forward(self, image_features: Tensor | None = None) -> Tensor:
        ctx = self.ctx if self.ctx.ndim == 3 else self.ctx[None]
        return ctx[None]  # (1, C or 1, n, d)


class CoCoOp(nn.Module):
    """Zhou et al., "Conditional prompt learning for vision-language models", CVPR 2022.

    A two-layer meta-net turns the image's features into one vector that is added to every context vector.
    """

    static = False

    def __init__(self, context: Tensor, meta_net: nn.Module):
        super().__init__()
        self.ctx = nn.Parameter(context.float().clone())
        self.meta_net = meta_net

    def forward(self, image_features: Tensor) -> Tensor:
        bias = self.meta_net(image_features)  # (B, d)
        return (self.ctx[None] + bias[:, None])[:, None]  # (B, 1, n, d)


def build_meta_net(feature_dim: int, token_dim: int, hidden: int | None = None) -> nn.Sequential:
    """feature_dim -> feature_dim / 16 -> token_dim, with CoCoOp's own key names."""
    hidden = hidden or max(1, feature_dim // 16)
    return nn.Sequential(
        OrderedDict(
            linear1=nn.Linear(feature_dim, hidden),
            relu=nn.ReLU(inplace=False),
            linear2=nn.Linear(hidden, token_dim),
        )
    )


@dataclass(frozen=True)
class TextLayout:
    """Where context, class name, full stop and EOT stand, for every class; text is cut after the longest EOT.

    base: (C, L, d) token embeddings with anything in the context's places
    slot: (C, L) index of the context vector that stands there, -1 for a token
    eot:  (C,) position of the EOT
    """

    base: Tensor
    slot: Tensor
    eot: Tensor

    def place(self, context: Tensor, classes: Tensor | None = None) -> Tensor:
        """Context (S, C or 1, n, d) -> prompt embeddings (S, C, L, d)."""
        base, slot = (self.base, self.slot) if classes is None else (self.base[classes], self.slot[classes])
        rows = torch.arange(len(slot), device=slot.device)[:, None] if context.shape[1] > 1 else slot.new_zeros(1, 1)
        if classes is not None and context.shape[1] > 1:
            rows = classes[:, None]
        vectors = context[:, rows, slot.clamp(min=0)]  # (S, C, L, d)
        return torch.where(slot[None, :, :, None] >= 0, vectors, base[None].to(vectors.dtype))


def layout(clip, class_names: list[str], num_context: int, position: str = "end", cut: bool = True) -> TextLayout:
    """Lay out "[SOS] ctx name . [EOT]" (class name at the end, in the middle of the context, or in front of it).

    As in the CoOp code, underscores become blanks and a full stop follows. Raises ValueError when a name leaves no
    room for itself in the text tower.
    """
    config = clip.model.config.text_config
    sos, eot_id, pad = clip.tokenizer.bos_token_id, clip.tokenizer.eos_token_id, config.pad_token_id or 0
    rows, slots = [], []
    for name in class_names:
        name, stop = name.replace("_", " "), clip.tokenise(".")
        name_ids = clip.tokenise(name)
        if position == "end":  # tokenised as one text: after a symbol the full stop may belong to the same token
            name_ids, stop = clip.tokenise(name + "."), []
        half = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
        ctx = list(range(num_context))
        ids = [sos] + [pad] * half + name_ids + [pad] * (num_context - half) + stop + [eot_id]
        slot = [-1] + ctx[:half] + [-1] * len(name_ids) + ctx[half:] + [-1] * (len(stop) + 1)
        if len(ids) > clip.max_length:
            raise ValueError(f"class name {name[:40]!r} and its context take {len(ids)} tokens, "
                             f"the text tower reads {clip.max_length}")
        rows.append(ids), slots.append(slot)
    eot = torch.tensor([len(r) - 1 for r in rows])
    length = int(eot.max()) + 1 if cut else clip.max_length
    ids = torch.tensor([r + [pad] * (length - len(r)) for r in rows], device=clip.device)
    slot = torch.tensor([s + [-1] * (length - len(s)) for s in slots], device=clip.device)
    with torch.no_grad():
        base = clip.token_embeddings(ids)
    return TextLayout(base, slot, eot.to(clip.device))
