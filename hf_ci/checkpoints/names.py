"""What a checkpoint tells of its base model and its classes: both lie in it as rows of the base model's token table.

Training code looks the tokens of "[SOS] X X X X name . [EOT]" up once and saves the vectors beside the context: the first
as token_prefix, those after the context as token_suffix, in fp16 by default. A row is recognised by its bits in fp16, so
that both precisions are, and nothing that merely resembles a token; only where a method saves means over epochs, rounded,
the nearest token is looked for.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from hf_ci.certain import certain
from hf_ci.errors import AdapterError, BaseModelError
from hf_ci.files import weights_of
from hf_ci.prompts.clip import FrozenCLIP
from hf_ci.prompts.encoders import opened

NEAR = 0.02  # distance of a rounded row from its token's, as a share of its length; other tokens are about 1 away
TABLE = "text_model.embeddings.token_embedding.weight"


class TokenTable:
    """A base model's token embeddings (V, d), as they lie in its file: loaded in bf16 they would be others."""

    def __init__(self, base: Path):
        for path in weights_of(base):
            with opened(path) as file:
                if TABLE in file.keys():
                    self.rows = file.get_tensor(TABLE)
                    break
        else:
            raise BaseModelError(f"{base}: no tensor {TABLE}", "name a CLIP with --base")
        self.dim = self.rows.shape[-1]
        self.token_of = {bits: id for id, bits in reversed(list(enumerate(bits_of(self.rows))))}

    def find(self, rows: Tensor, averaged: bool = False) -> list[int | None]:
        """(N, d) -> the token that each row is, None for a row that is none. averaged: but for the rounding of a mean."""
        return self.nearest(rows) if averaged else [self.token_of.get(bits) for bits in bits_of(rows)]

    def nearest(self, rows: Tensor) -> list[int | None]:
        """(N, d) -> the token that each row is nearest to, None where none is near."""
        distinct, which = rows.float().unique(dim=0, return_inverse=True)
        table, found = self.rows.float(), []
        lengths = table.square().sum(1)  # (V,)
        for part in distinct.split(256):
            own = part.square().sum(1)  # (N,)
            square, token = (own[:, None] - 2 * part @ table.T + lengths).min(1)
            found += [t if near else None for t, near in zip(token.tolist(), square <= NEAR**2 * own)]
        return [found[i] for i in which.tolist()]


def bits_of(rows: Tensor) -> list[bytes]:
    """(N, d) -> each row in fp16, one kind of zero."""
    return [row.tobytes() for row in (rows.half() + 0).numpy()]


def is_base_of(table: TokenTable, prefix: Tensor, start: int, averaged: bool = False) -> bool:
    """Whether every class's text begins with this table's token `start`. prefix: (C, 1, d)."""
    return table.dim == prefix.shape[-1] and set(table.find(prefix[:, 0], averaged)) == {start}


def name_tokens(
    suffix: Tensor, table: TokenTable, clip: FrozenCLIP, base: str, averaged: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The tokens that stand behind the context, for each class, up to the [EOT]. suffix: (C, L, d).

    Raises AdapterError for a vector before the [EOT] that is no token of this base model.
    """
    found: list[tuple[int, ...]] = []
    length = suffix.shape[1]
    every = table.find(suffix.flatten(0, 1), averaged)
    for c in range(len(suffix)):
        tokens = every[c * length : (c + 1) * length]
        end = tokens.index(clip.tokenizer.eos_token_id) if clip.tokenizer.eos_token_id in tokens else len(tokens)
        if None in tokens[:end] or end in (0, len(tokens)):
            at = f"vector {tokens.index(None)}" if None in tokens[:end] else "its end"
            raise AdapterError(
                f"token_suffix: {at} of class {c} is no token of {base}",
                "name the base model that the prompt was tuned on with --base; if it is this one, the file was changed",
            )
        found.append(tuple(map(certain, tokens[:end])))
    return tuple(found)


def name_of(tokens: tuple[int, ...], clip: FrozenCLIP) -> str | None:
    """The class name that the tokens of "name." spell; None where none does.

    CLIP's tokens do not tell blanks around signs: of the ways to write them that give the same tokens, the usual one.
    """
    text = clip.tokenizer.decode(list(tokens)).strip()
    if not text.endswith("."):
        return None
    plain = text[:-1].strip()
    close = re.sub(r"\s*([-'/])\s*", r"\1", re.sub(r"\s+([.,:;!?%)])", r"\1", re.sub(r"([(#$])\s+", r"\1", plain)))
    return next((name for name in (close, plain) if name and spells(name, tokens, clip)), None)


def spells(name: object, tokens: tuple[int, ...], clip: FrozenCLIP) -> bool:
    """Whether training code makes these tokens of a class of that name."""
    return isinstance(name, str) and tuple(clip.tokenise(name.replace("_", " ") + ".")) == tokens
