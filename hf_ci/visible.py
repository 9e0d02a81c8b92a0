"""Foreign text as it can be shown: letters that cannot be seen, move others or pass for others.

A name on the Hub, a folder or a class may hold escape codes, bidi overrides, tags (letters of a second, invisible alphabet)
or a Cyrillic a. None of them may reach an output as it is, and in a class name they shift what is judged.
"""

from __future__ import annotations

import re
import unicodedata

CATEGORIES = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # control, format (bidi, tags, joiners), surrogate, private, none
# Letters and marks by their category, and yet drawn as nothing: Unicode's other default ignorables, and a blank.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
INSTEAD = "\ufffd"
LONGEST = 2000  # letters of a reason or a warning


def is_invisible(letter: str) -> bool:
    return unicodedata.category(letter) in CATEGORIES or bool(BLANK.match(letter))


def visible(text: str, instead: str = INSTEAD, keep: str = "") -> str:
    """`text` with something to be seen for each letter that is not; those in `keep` stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(instead if c not in keep and is_invisible(c) else c for c in text)


def in_one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def code_points(letters: str) -> str:
    """Such as "U+202E, U+E0041": each once, at most five."""
    found = list(dict.fromkeys(letters))
    return ", ".join(f"U+{ord(c):04X}" for c in found[:5]) + (" and others" if len(found) > 5 else "")


def invisible_in(text: str) -> str:
    """The letters of `text` that cannot be seen."""
    return "".join(c for c in text if is_invisible(c))


def lookalikes_in(text: str) -> str:
    """The letters of `text` that may pass for others: of another alphabet within a word that has Latin ones, or another
    form of a common letter (full width, mathematical, ligatures)."""
    found = [c for c in text if not c.isascii() and c.isalnum() and unicodedata.normalize("NFKC", c).isascii()]
    for word in re.findall(r"\w+", text):
        if any(is_latin(c) for c in word):
            found += [c for c in word if c.isalpha() and not is_latin(c) and c not in found]
    return "".join(found)


def is_latin(letter: str) -> bool:
    return letter.isalpha() and unicodedata.name(letter, "").startswith("LATIN")


def cut(text: str, most: int = LONGEST) -> str:
    """Whoever wrote a file decides how long a reason that quotes it would be."""
    return text if len(text) <= most else f"{text[: most - 40]} ... ({len(text)} letters in all)"
