"""Where context, class names, full stops and EOTs stand in the text tower.

All class texts of one image begin alike: "[SOS] ctx ..." differs from class to class only where the name comes. Text
attention is causal in CLIP, so that common prefix need be encoded once. The texts are therefore laid out as a *tree*: one
sequence holds the prefix and then every class's own tokens, each attending to the prefix and to its own class alone, at
the positions it would have had. That is exact (the mask hides everything else), and pooling reads the EOTs, so nothing
after an EOT is encoded at all.

           [SOS] ctx1 ctx2 ctx3 ctx4 | cat . [EOT] | king penguin . [EOT] | ...
    pos      0    1    2    3    4      5  6   7      5     6     7   8

In SigLIP's text tower all tokens see all, and a text is read at the last of its 64 places, the padding's: its trees have no
common prefix, and every text has its whole length.

    ctx1 ctx2 ctx3 ctx4 cat . [EOT] [PAD] ... [PAD] | ctx1 ctx2 ctx3 ctx4 king penguin . [EOT] [PAD] ... [PAD] | ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hf_ci.prompts.clip import FrozenCLIP

LONGEST_TREE = 256  # tokens; attention is quadratic in them, so many classes make several trees


@dataclass(frozen=True)
class TextTree:
    """Some classes' texts in one sequence of T tokens.

    base: (T, d) token embeddings, anything in the context's places
    slot: (T,) index of the context vector that stands there, -1 for a token
    owner: (T,) class (in the whole list) that a token belongs to, the first one's for the prefix
    position: (T,) position in the class's own text
    mask: (1, 1, T, T) additive attention mask
    eot: (C,) where the classes' EOTs stand, or the last of their padding where that is read
    """

    base: Tensor
    slot: Tensor
    owner: Tensor
    position: Tensor
    mask: Tensor
    eot: Tensor

    def place(self, context: Tensor) -> Tensor:
        """Context (S, C or 1, n, d) -> prompt embeddings (S, T, d)."""
        rows = self.owner if context.shape[1] > 1 else torch.zeros_like(self.owner)
        vectors = context[:, rows, self.slot.clamp(min=0)]  # (S, T, d)
        return torch.where(self.slot[None, :, None] >= 0, vectors, self.base[None].to(vectors.dtype))

    def replace(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """What a layer made of the texts (S, T, d), with `vectors` (n, d) in the context's places."""
        return torch.where(self.slot[:, None] >= 0, vectors[self.slot.clamp(min=0)].to(hidden.dtype), hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        """(S, T, d) -> (S, C, d), where the classes are read."""
        return hidden[:, self.eot]


@dataclass(frozen=True)
class ShortTree:
    """A tree of R classes that differ from image to image: the prefix, then R places of equal length.

    What stands behind an EOT in its place is padding, which no EOT sees. base: (B, T, d); slot: (B, T); position: (T,);
    mask: (1, 1, T, T); eot: (B, R).
    """

    base: Tensor
    slot: Tensor
    position: Tensor
    mask: Tensor
    eot: Tensor

    def place(self, context: Tensor) -> Tensor:
        """Context (B, 1, n, d) -> prompt embeddings (B, T, d)."""
        where = self.slot.clamp(min=0)[..., None].expand(-1, -1, context.shape[-1])
        vectors = context[:, 0].gather(1, where)  # (B, T, d)
        return torch.where(self.slot[..., None] >= 0, vectors, self.base.to(vectors.dtype))

    def pool(self, hidden: Tensor) -> Tensor:
        return hidden.gather(1, self.eot[..., None].expand(-1, -1, hidden.shape[-1]))


class ShortTrees:
    """Makes `ShortTree`s; a context that is shared by all classes is taken for granted."""

    def __init__(self, clip: FrozenCLIP, class_names: tuple[str, ...], num_context: int, position: str):
        half = before_name(num_context, position)
        self.shared = common_prefix(clip, half)
        texts = [class_text(clip, name, num_context, half) for name in class_names]
        length, pad = max(map(len, texts)), (clip.end[-1], -1)
        table = torch.tensor([text + [pad] * (length - len(text)) for text in texts], device=clip.device)  # (C, L, 2)
        with torch.no_grad():
            self.base = clip.token_embeddings(table[..., 0])  # (C, L, d)
        self.slot = table[..., 1]  # (C, L)
        self.eot = torch.tensor([len(text) - 1 for text in texts], device=clip.device)  # (C,)
        self.dtype, self.causal = clip.dtype, clip.family.causal
        self.layout = cache(self._layout)

    def of(self, classes: Tensor) -> ShortTree:
        """classes: (B, R)."""
        p = self.shared

        def join(values: Tensor) -> Tensor:
            return torch.cat([values[classes[:, 0], :p], values[classes, p:].flatten(1, 2)], dim=1)

        position, mask, start = self.layout(classes.shape[1])
        return ShortTree(join(self.base), join(self.slot), position, mask, self.eot[classes] + start)

    def _layout(self, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (T,), mask (1, 1, T, T), and how far each place's tokens stand from where one class's would (R,)."""
        p, own, device = self.shared, self.slot.shape[1] - self.shared, self.slot.device
        at = torch.arange(p + num_classes * own, device=device)
        place, position = (at - p).div(own, rounding_mode="floor").clamp(min=-1), (at - p) % own + p
        position = torch.where(place < 0, at, position)
        seen = (place[None] < 0) | (place[None] == place[:, None])
        if self.causal:
            seen &= position[None] <= position[:, None]
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=device)
        mask = mask.masked_fill(~seen, torch.finfo(self.dtype).min)[None, None]
        return position, mask, own * torch.arange(num_classes, device=device)


def before_name(num_context: int, position: str) -> int:
    """How many context vectors stand before the class name."""
    return {"end": num_context, "middle": num_context // 2, "front": 0}[position]


def common_prefix(clip: FrozenCLIP, num_context: int) -> int:
    """With how many tokens all classes' texts begin alike, so that they are encoded once: the start token and so many
    context vectors; none where tokens see those behind them."""
    return len(clip.start) + num_context if clip.family.causal else 0


def build_trees(
    clip: FrozenCLIP, class_names: tuple[str, ...], num_context: int, position: str, class_specific: bool
) -> list[TextTree]:
    """Lay out "[SOS] ctx name . [EOT]" for all classes, in order, without the [SOS] where a tower has none.

    `position` of the class name: at the end, in the middle of the context, or in front of it. As in the CoOp code,
    underscores become blanks and a full stop follows. Raises ValueError when a name leaves no room in the text tower.
    """
    half = before_name(num_context, position)
    shared = common_prefix(clip, 0 if class_specific else half)
    trees: list[TextTree] = []
    texts = [class_text(clip, name, num_context, half) for name in class_names]
    first = 0
    while first < len(texts):
        last, tokens = first, shared
        while last < len(texts) and (last == first or tokens + len(texts[last]) - shared <= LONGEST_TREE):
            tokens += len(texts[last]) - shared
            last += 1
        trees.append(_tree(clip, texts[first:last], first, shared))
        first = last
    return trees


def class_text(clip: FrozenCLIP, name: str, num_context: int, half: int) -> list[tuple[int, int]]:
    """One class's text as (token id, context slot or -1)."""
    name = name.replace("_", " ")
    ids = clip.tokenise_behind(name + ".")  # as one text: after a symbol the full stop may belong to the same token
    length = len(clip.tokenise_behind(name))
    name_ids, stop_ids = ids[:length], ids[length:]
    context = [(clip.end[-1], i) for i in range(num_context)]
    token: Callable[[list[int]], list[tuple[int, int]]] = lambda ids: [(i, -1) for i in ids]
    text = token(clip.start) + context[:half] + token(name_ids) + context[half:] + token(stop_ids + clip.end)
    if len(text) > clip.max_length:
        raise ValueError(
            f"class name {name[:40]!r} and its context take {len(text)} tokens, the text tower reads {clip.max_length}"
        )
    return text if clip.family.causal else text + token([clip.tokenizer.pad_token_id] * (clip.max_length - len(text)))


def _tree(clip: FrozenCLIP, texts: list[list[tuple[int, int]]], first: int, shared: int) -> TextTree:
    nodes = [(*texts[0][p], first, p, True) for p in range(shared)]  # (id, slot, owner, position, in the prefix)
    eot = []
    for c, text in enumerate(texts, start=first):
        nodes += [(*text[p], c, p, False) for p in range(shared, len(text))]
        eot.append(len(nodes) - 1)
    ids, slot, owner, position, prefix = (torch.tensor(column, device=clip.device) for column in zip(*nodes))
    seen = prefix[None] | (owner[None] == owner[:, None])  # (T, T): i sees j
    seen &= prefix[None] | ~prefix[:, None]  # the prefix sees itself alone
    if clip.family.causal:
        seen &= position[None] <= position[:, None]
    mask = torch.zeros(seen.shape, dtype=clip.dtype, device=clip.device)
    mask = mask.masked_fill(~seen, torch.finfo(clip.dtype).min)[None, None]
    with torch.no_grad():
        base = clip.token_embeddings(ids)
    return TextTree(base, slot, owner, position, mask, torch.tensor(eot, device=clip.device))
