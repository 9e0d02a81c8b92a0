"""One section of a model card, found, placed and replaced; every byte outside it stays as it was.

    <!-- hf-ci:begin key=value ... -->
    ...
    <!-- hf-ci:end -->

A card is bytes in whatever ASCII-compatible encoding its author used; the section is pure ASCII, so it fits them all.
Structure is read by a Markdown parser (CommonMark): what looks like a marker inside a code block is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from hf_ci.certain import certain
from hf_ci.errors import CardError

BEGIN, END = "<!-- hf-ci:begin", "<!-- hf-ci:end -->"
LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
FRONT_MATTER = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*---[ \t]*(?:\r\n|\r|\n).*?(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\r|\n|$)", re.S
)
RISKS = re.compile(r"bias,? risks,? (?:and|&) limitations", re.I)  # the heading in the Hub's own template
LITERAL = ("fence", "code_block")


@dataclass(frozen=True)
class Place:
    """Lines [start, stop) of the card hold the section; an empty range is where it would go.

    heading: what a heading there has to be, such as "### Backdoor scan (hf-ci)".
    """

    start: int
    stop: int
    heading: str

    @property
    def is_new(self) -> bool:
        return self.start == self.stop


def split_lines(card: bytes) -> list[bytes]:
    return LINE.findall(card)


def find(card: bytes) -> Place:
    """Where the section stands or would go.

    Raises CardError for a card that is no ASCII-compatible text, and for markers that are not one pair in order.
    """
    if card.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in card:
        raise CardError("the card is UTF-16 or holds NUL bytes", "save it as UTF-8")
    lines = split_lines(card)
    tokens = parse(card)
    hidden = {n for t in tokens if t.type in LITERAL or is_raw_html(t) for n in range(*certain(t.map))}
    front = front_matter_lines(card)
    marked = [
        (n, kind)
        for n, line in enumerate(lines)
        if n >= front and n not in hidden
        for kind in ("begin", "end")
        if b"hf-ci:" + kind.encode() in line
    ]
    begins, ends = ([n for n, kind in marked if kind == wanted] for wanted in ("begin", "end"))
    for n in begins + ends:
        text = lines[n].strip()
        if not (text.startswith(BEGIN.encode() + b" ") and text.endswith(b"-->") or text == END.encode()):
            raise CardError(f"line {n + 1} of the card holds a damaged hf-ci marker", "restore or remove it by hand")
    if begins and len(begins) == len(ends) == 1 and begins[0] < ends[0]:
        return Place(begins[0], ends[0] + 1, heading_at(tokens, begins[0]))
    if marked:
        where = ", ".join(f"{kind} in line {n + 1}" for n, kind in marked)
        raise CardError(
            f"the card's hf-ci markers are not one pair: {where}", "leave one begin and one end, or none at all"
        )
    end = end_of_risks(tokens, len(lines))
    return Place(end, end, heading_at(tokens, end))


def replace(card: bytes, section: str, place: Place | None = None) -> bytes:
    """The card with `section` (ASCII, lines end in LF, without the final one) where it belongs.

    Raises CardError where the section would not be read as one, such as at the end of an open code block.
    """
    place = place or find(card)
    lines = split_lines(card)
    newline = newline_of(card)
    before, after = b"".join(lines[: place.start]), b"".join(lines[place.stop :])
    body = section.encode("ascii").replace(b"\n", newline)
    if not place.is_new:
        old = lines[place.stop - 1]
        whole = before + body + old[len(old.rstrip(b"\r\n")) :] + after
    else:
        gap = b"" if not before else newline if before.endswith((b"\n", b"\r")) else 2 * newline
        blank = before.endswith((2 * newline, b"\n\n")) or not before
        whole = before + (b"" if blank else gap) + body + newline + (newline if after.strip() else b"") + after
    hidden = CardError(
        "the section would stand inside a code block or a comment that the card leaves open", "close it, then try again"
    )
    try:
        found = find(whole)
    except CardError as error:
        raise hidden from error
    if found.is_new or b"".join(split_lines(whole)[found.start : found.stop]).rstrip(b"\r\n") != body:
        raise hidden
    return whole


def current(card: bytes) -> str | None:
    """The section as it stands, lines ending in LF; None without one. Raises CardError as `find` does."""
    place = find(card)
    if place.is_new:
        return None
    text = b"".join(split_lines(card)[place.start : place.stop]).decode("utf-8", "replace")
    return re.sub(r"\r\n|\r", "\n", text).rstrip("\n")


# ---------------------------------------------------------------- structure


def parse(card: bytes) -> list[Token]:
    """Block tokens with line numbers of the whole card. Latin-1 maps bytes to letters one to one."""
    front = front_matter_lines(card)
    lines = split_lines(card)
    # Without front matter in the way, which Markdown would read as a rule and a heading; blank lines keep the count.
    text = "\n" * front + b"".join(lines[front:]).decode("latin-1").replace("\0", " ")
    return MarkdownIt("commonmark").disable(["inline", "text_join", "reference"], True).parse(text)


def front_matter_lines(card: bytes) -> int:
    match = FRONT_MATTER.match(card)
    return len(split_lines(match[0])) if match else 0


def is_raw_html(token: Token) -> bool:
    """HTML whose content is no Markdown: <pre>, <script>, <style>, <textarea>, or a comment of several lines."""
    if token.type != "html_block":
        return False
    text = token.content.lstrip().lower()
    several = text.startswith("<!--") and "-->" not in text.split("\n", 1)[0]
    return several or text.startswith(("<pre", "<script", "<style", "<textarea"))


def headings(tokens: Sequence[Token]) -> list[tuple[int, int, str]]:
    """(line, level, text) of every heading at the top level."""
    return [
        (certain(token.map)[0], int(token.tag[1]), tokens[i + 1].content)
        for i, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]


def end_of_risks(tokens: Sequence[Token], count: int) -> int:
    """The line after the section on risks, or after everything."""
    found = headings(tokens)
    for i, (_, level, text) in enumerate(found):
        if RISKS.search(text):
            return next((line for line, other, _ in found[i + 1 :] if other <= level), count)
    return count


def heading_at(tokens: Sequence[Token], line: int) -> str:
    """The section's heading when it stands at `line`: one level below the risks' own, or a section by itself."""
    parents: list[tuple[int, str]] = []  # of the line, outermost first
    for at, level, text in headings(tokens):
        if at >= line:
            break
        parents = [p for p in parents if p[0] < level] + [(level, text)]
    for level, text in parents:
        if RISKS.search(text):
            return "#" * min(level + 1, 6) + " Backdoor scan (hf-ci)"
    return "## Safety: backdoor scan"


def newline_of(card: bytes) -> bytes:
    """The line ending that the card uses most."""
    crlf, cr = card.count(b"\r\n"), card.count(b"\r")
    lf = card.count(b"\n") - crlf
    return max([(lf, 2, b"\n"), (crlf, 1, b"\r\n"), (cr - crlf, 0, b"\r")])[2]
