"""One field of a card's front matter, set in its text: comments, order and lists of the others stay as they were."""

from __future__ import annotations

import re

from hf_ci.cards.section import FRONT_MATTER, newline_of
from hf_ci.errors import CardError


def set_field(card: bytes, name: str, value: str) -> bytes:
    """The card with `name: value` in its front matter, which is made where there is none.

    Raises CardError when the field is there already in a form that spans lines.
    """
    newline = newline_of(card)
    line = f"{name}: {value}".encode("ascii")
    front = FRONT_MATTER.match(card)
    if front is None:
        bom = b"\xef\xbb\xbf" if card.startswith(b"\xef\xbb\xbf") else b""
        return bom + newline.join([b"---", line, b"---", b""]) + card[len(bom) :]
    text, rest = front[0], card[front.end() :]
    there = re.compile(rb"(?<=[\r\n])" + re.escape(name.encode()) + rb":[^\r\n]*")
    found = there.findall(text)
    if len(found) > 1 or found and found[0].rstrip().endswith((b":", b"|", b">")):
        raise CardError(f"the card's {name} is not on one line", "set it by hand")
    if found:
        return there.sub(lambda _: line, text) + rest
    end = text.rindex(b"---")
    return text[:end] + line + newline + text[end:] + rest
