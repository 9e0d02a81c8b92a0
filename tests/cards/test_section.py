"""One section in cards of every kind: found, placed, replaced; all bytes outside stay."""

import pytest
from markdown_it import MarkdownIt

from hf_ci.cards.metadata import set_field
from hf_ci.cards.section import FRONT_MATTER, current, find, replace
from hf_ci.errors import CardError

SECTION = "<!-- hf-ci:begin verdict=clean -->\n## Safety: backdoor scan\n\ntext\n<!-- hf-ci:end -->"
OTHER = SECTION.replace("text", "other text\n\n| a | b |\n|---|---|\n| 1 | 2 |")
FRONT = "---\nlicense: mit # a comment\ntags: [clip,   peft]\n---\n"
TEMPLATE = """# Model

## Uses

Some.

## Bias, Risks, and Limitations

More.

### Recommendations

None.

## Training
"""
PEFT_CARD = """---
base_model: openai/clip-vit-base-patch16
library_name: peft
tags:
- base_model:adapter:openai/clip-vit-base-patch16
---

# Model Card for Model ID

<!-- Provide a quick summary of what the model is/does. -->



## Model Details

### Model Description

<!-- Provide a longer summary of what this model is. -->

- **Developed by:** [More Information Needed]

## Bias, Risks, and Limitations

<!-- This section is meant to convey both technical and sociotechnical limitations. -->

[More Information Needed]

### Recommendations

Users (both direct and downstream) should be made aware.

## How to Get Started with the Model

Use the code below to get started with the model.

[More Information Needed]
### Framework versions

- PEFT 0.21.2"""
TRAINER_CARD = """---
library_name: transformers
model-index:
- name: clip
  results: []
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. You
should probably proofread and complete it, then remove this comment. -->

# clip

## Intended uses & limitations

More information needed

### Training results

| Training Loss | Epoch |
|:-------------:|:-----:|
| 0.1           | 1.0   |
"""

CARDS = {
    "empty": b"",
    "no front matter": b"# An adapter\n\ntext\n",
    "front matter only": FRONT.encode(),
    "front matter without a newline": FRONT.rstrip().encode(),
    "template": (FRONT + TEMPLATE).encode(),
    "peft": PEFT_CARD.encode(),
    "trainer": TRAINER_CARD.encode(),
    "crlf": (FRONT + TEMPLATE).replace("\n", "\r\n").encode(),
    "crlf without a last newline": (FRONT + "# A\n\nb").replace("\n", "\r\n").encode(),
    "mixed line endings": b"# A\r\nb\nc\r\n\nd",
    "old mac line endings": b"# A\rb\rc\r",
    "bom": b"\xef\xbb\xbf" + (FRONT + TEMPLATE).encode(),
    "bom without front matter": b"\xef\xbb\xbf# A\n",
    "windows-1252": "# Modèle “étrange” – déjà vu €\n\nnaïve\n".encode("cp1252"),
    "latin-1 with a next-line byte": b"# A\n\x85b\n",
    "shift-jis": "# モデル\n\n表\n".encode("shift_jis"),
    "gb18030": "# 模型\n\n说明\n".encode("gb18030"),
    "invalid utf-8": b"# A\n\xff\xc3(\n",
    "chinese": "# 适配器\n\n说明。\n".encode(),
    "right to left": "# مهايئ\n\nوصف النموذج\n\n# מתאם\n".encode(),
    "emoji and line separators": "# 🐸\u2028a\u2029b\n".encode(),
    "markers in a fence": f"# A\n\n```html\n{SECTION}\n```\n".encode(),
    "markers in a tilde fence": f"# A\n\n~~~~\n```\n{SECTION}\n```\n~~~~\n".encode(),
    "markers in an indented block": ("# A\n\n" + "".join(f"    {x}\n" for x in SECTION.splitlines())).encode(),
    "markers in pre": f"# A\n\n<pre>\n{SECTION.splitlines()[0]}\n</pre>\n\nb\n".encode(),
    "heading in a fence": b"# A\n\n```\n## Bias, Risks, and Limitations\n```\n",
    "heading in front matter": b"---\nx: |\n  ## Bias, Risks, and Limitations\n---\n# A\n",
    "setext headings": b"Model\n=====\n\nBias, Risks, and Limitations\n---\n\ntext\n\nEnd\n---\n",
    "no blank line before the next heading": b"## Bias, Risks, and Limitations\ntext\n## End\n",
    "risks at the end": b"# A\n\n### Bias, Risks & Limitations\nnone",
    "risks deep": b"# A\n\n###### Bias Risks and Limitations\n\nx\n",
    "two front matters": (FRONT + FRONT + "# A\n").encode(),
    "tabs in front matter": b"---\nlicense:\tmit\ntags:\n\t- clip\n---\n# A\n",
    "invalid yaml": b"---\na: [\n---\n# A\n",
    "front matter never closed": b"---\na: b\n\n# A\n",
    "rules": b"# A\n\n---\n\nb\n\n---\n",
    "html": b"<div align='center'>\n<img src='a.png'>\n</div>\n\n<details>\n<summary>x</summary>\n\ny\n\n</details>\n",
    "html at the end": b"# A\n\n<div>\nopen",
    "list at the end": b"# A\n\n- a\n  - b\n    c",
    "table at the end": b"| a |\n|---|\n| b |",
    "blank lines at the end": b"# A\n\n\n\n\n",
    "windows editor's end": b"# A\r\n\x1a",
    "link references": b"# A\n\n[a]\n\n[a]: https://example.org\n",
}


def strip_added(whole: bytes) -> bytes:
    """The card without what was added: the section, and the blank lines that set it off."""
    place = find(whole)
    from hf_ci.cards.section import split_lines

    lines = split_lines(whole)
    return b"".join(lines[: place.start]), b"".join(lines[place.stop :])


def test_there_are_cards_enough():
    assert len(CARDS) >= 30


@pytest.mark.parametrize("name", CARDS)
def test_a_card_goes_through_unharmed(name):
    card = CARDS[name]
    once = replace(card, SECTION)
    assert replace(once, SECTION) == once  # twice gives the same bytes
    assert current(once) == SECTION
    before, after = strip_added(once)
    kept = before.rstrip(b"\r\n"), after.lstrip(b"\r\n")
    assert card.startswith(kept[0]) and card.endswith(kept[1])
    assert card[len(kept[0]) : len(card) - len(kept[1])].strip(b"\r\n") == b""  # nothing between them was lost
    assert len(before) + len(after) - len(card) in range(6)  # and at most some line ends were added

    changed = replace(once, OTHER)
    assert current(changed) == OTHER and strip_added(changed) == (before, after)
    assert replace(changed, SECTION) == once  # and back, to the byte
    assert b"\n" not in once.replace(b"\r\n", b"") or b"\r\n" not in card or name == "mixed line endings"


@pytest.mark.parametrize("name", CARDS)
def test_the_section_is_read_as_markdown(name):
    """A reader sees a heading of ours, whatever stands before it."""
    whole = replace(CARDS[name], SECTION).decode("latin-1")
    html = MarkdownIt("commonmark", {"html": True}).render(whole.replace("\r\n", "\n").replace("\r", "\n"))
    assert "<h2>Safety: backdoor scan</h2>" in html


@pytest.mark.parametrize(
    "name, heading, before",
    [
        ("template", "### Backdoor scan (hf-ci)", b"## Training\n"),
        ("peft", "### Backdoor scan (hf-ci)", b"## How to Get Started"),
        ("risks at the end", "#### Backdoor scan (hf-ci)", b""),
        ("risks deep", "###### Backdoor scan (hf-ci)", b""),
        ("setext headings", "### Backdoor scan (hf-ci)", b"End\n---"),
        ("heading in a fence", "## Safety: backdoor scan", b""),
        ("heading in front matter", "## Safety: backdoor scan", b""),
        ("no front matter", "## Safety: backdoor scan", b""),
    ],
)
def test_its_place_is_under_the_risks_or_at_the_end(name, heading, before):
    place = find(CARDS[name])
    assert place.heading == heading and place.is_new
    whole = replace(CARDS[name], SECTION)
    assert find(whole).heading == heading
    assert whole.partition(b"hf-ci:end -->")[2].lstrip(b"\r\n").startswith(before)
    assert bool(before) == bool(whole.rpartition(b"hf-ci:end -->")[2].strip())


BEGIN, END = SECTION.splitlines()[0], SECTION.splitlines()[-1]


@pytest.mark.parametrize(
    "card, said",
    [
        (f"{SECTION}\n\n{SECTION}\n", "not one pair"),
        (f"{BEGIN}\ntext\n", "not one pair"),
        (f"text\n{END}\n", "not one pair"),
        (f"{END}\n\n{BEGIN}\n", "not one pair"),
        (f"{BEGIN}\n```\n{END}\n", "not one pair"),
        (f"> {BEGIN}\n> {END}\n", "damaged"),
        ("a <!-- hf-ci:begin x --> b\n\n<!-- hf-ci:end -->\n", "damaged"),
        ("<!-- hf-ci:begin verdict=clean\n-->\n\n<!-- hf-ci:end -->\n", "damaged|not one pair"),
        ("# A\n\n```\nopen", "leaves open"),
        ("# A\n\n<!-- open\n", "leaves open"),
        ("# A\n\n<script>\nopen\n", "leaves open"),
    ],
)
def test_a_card_that_cannot_be_changed_safely_is_refused(card, said):
    with pytest.raises(CardError, match=said):
        replace(card.encode(), SECTION)


def test_utf_16_is_refused():
    with pytest.raises(CardError, match="UTF-16"):
        replace("# A\n".encode("utf-16"), SECTION)


def test_a_card_of_two_megabytes_takes_seconds():
    import time

    card = (TEMPLATE + "word " * 20 + "\n\n") * 8000
    assert len(card) > 1.5e6
    started = time.perf_counter()
    once = replace(card.encode(), SECTION)
    assert replace(once, SECTION) == once
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize("name", CARDS)
def test_one_field_of_the_front_matter_is_set_and_nothing_else_changes(name):
    card = CARDS[name]
    once = set_field(card, "new_version", "org/model-repaired")
    line = b"new_version: org/model-repaired"
    assert once.count(line) == 1 and set_field(once, "new_version", "org/model-repaired") == once
    assert set_field(once, "new_version", "org/x").replace(b"org/x", b"org/model-repaired") == once
    lines = [x for x in once.splitlines(keepends=True) if line not in x]
    kept = b"".join(lines)
    if card.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"---") and FRONT_MATTER.match(card):
        assert kept == card
    else:  # front matter was made
        assert kept.replace(b"---", b"", 2).lstrip(b"\r\n").endswith(card.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"))


def test_a_field_of_several_lines_is_refused():
    with pytest.raises(CardError, match="not on one line"):
        set_field(b"---\nnew_version:\n  - a\n---\n", "new_version", "org/x")
