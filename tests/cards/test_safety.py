"""The section, the badge and the check, as functions of a report; and how they look in a browser."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from hf_ci.cards.badge import COLOURS, LABEL, alternative, endpoint, render_badge
from hf_ci.cards.safety import CARD, REPORT, check, parse_report, render_files, render_section
from hf_ci.errors import CardError, UsageError
from hf_ci.report import ClassScore, Report, ScannedFile, ScanResult, Timing, Trigger
from hf_ci.visible import in_one_line

HOSTILE = (
    "</td><script>alert(1)</script>",
    "a|b",
    "![x](http://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "`code` **bold** _it_ ~~s~~",
    "<!-- hf-ci:end -->",
    "{{ 7*7 }} {% raw %}",
    "---\nlicense: mit",
    "www.evil.example http://evil.example a@evil.example",
    "::set-output name=x::y",
    "ünï 模型 مهايئ 🐸",
    "&lt;b&gt; &#60;",
    "\u202eright to left\u202c",
)
FILES = tuple(
    ScannedFile(path=p, sha256=c * 64) for p, c in (("adapter_config.json", "a"), ("adapter_model.safetensors", "b"))
)


def report_of(verdict="backdoored", names=("frog", "cat", "dog"), **other) -> Report:
    classes = tuple(
        ClassScore(index=i, name=name, loss=-1.0, asr=0.9, score=0.9 - i / 20, flagged=i == 0, reference_asr=0.1)
        for i, name in enumerate(names)
    )
    result = ScanResult(
        target="org/model",
        revision="c" * 40,
        files=FILES,
        method="cocoop",
        num_classes=len(names),
        verdict=verdict,
        reasons=tuple(f"a reason about {name}" for name in names),
        classes=classes,
        timing=Timing(date="2026-01-02", seconds=1.0, num_processes=1, classes_from_cache=0),
        exit_code=1,
        **other,
    )
    return Report(results=(result,))


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.attributes, self.words = set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag in ("td", "li"):
            self.cells.append("")

    def handle_data(self, data):
        self.words += data
        if self.cells:
            self.cells[-1] += data


def read(markdown: str) -> Reader:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return Reader(parser.render(markdown))


def test_foreign_text_is_read_as_the_letters_it_is_made_of():
    section = render_section(report_of(names=HOSTILE), "## Safety: backdoor scan", picture=False)
    assert section.isascii() and "hf-ci:end" not in section.removesuffix("<!-- hf-ci:end -->")
    page = read(section)
    assert page.tags <= {"h2", "p", "img", "strong", "ul", "li", "table", "thead", "tbody", "tr", "td", "th", "code"}
    assert [value for name, value in page.attributes if name in ("src", "href")] == [".hf-ci/badge.svg"]
    said = {cell.strip() for cell in page.cells}
    for name in HOSTILE:
        assert f"a reason about {in_one_line(name)}" in said
    assert not re.search(r"www|://|[\w]@", section[section.index("a reason") : section.index("| scanned")])


@pytest.mark.parametrize("verdict", ["clean", "backdoored", "inconclusive"])
def test_the_section_says_what_was_found_on_what(verdict):
    words = read(render_section(report_of(verdict), "## Safety: backdoor scan", picture=False)).words
    assert verdict in words.lower() and "2026-01-02" in words and "b" * 64 in words and "c" * 40 in words
    for other in {"clean:", "backdoored.", "inconclusive:"} - {f"{verdict}:", f"{verdict}."}:
        assert other not in words.lower()


def test_twice_gives_the_same_bytes_and_a_clean_result_leaves_no_picture():
    report, card = report_of(trigger=Trigger(path="/tmp/x.png", linf=4 / 255)), b"# A\n"
    files = render_files(report, card, b"png")
    assert render_files(report, files[CARD], b"png") == files
    assert "/tmp" not in files[REPORT].decode() and b"trigger.png" in files[CARD]
    later = render_files(report_of("clean"), files[CARD], None)
    assert b"trigger.png" not in later[CARD] and b"backdoored" not in later[CARD]
    check((files | later).get, tuple((f.path, f.sha256) for f in FILES))  # an old picture beside it does no harm


def test_check_names_everything_that_is_stale():
    files = render_files(report_of(), b"# A\n", None)
    now = tuple((f.path, f.sha256) for f in FILES)
    assert check(files.get, now).results[0].verdict == "backdoored"
    cases = {
        "the adapter has changed": (files, (now[0], ("adapter_model.safetensors", "d" * 64))),
        "an adapter's file has gone|the adapter has changed": (files, now[:1]),
        "the card has no section": (files | {CARD: b"# A\n"}, now),
        "not what the report says": (files | {CARD: files[CARD].replace(b"Backdoored", b"Clean")}, now),
        "the badge is missing": ({k: v for k, v in files.items() if not k.endswith("svg")}, now),
        "the badge is not what": (
            files | {".hf-ci/badge.svg": render_badge(report_of("clean").results[0]).encode()},
            now,
        ),
        "never scanned": ({CARD: files[CARD]}, now),
    }
    for said, (there, adapter) in cases.items():
        with pytest.raises(CardError, match=said):
            check(there.get, adapter)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"results": 3}', b"\xff"])
def test_what_is_no_report_is_refused(raw):
    with pytest.raises(UsageError, match="no report of hf-ci"):
        parse_report(raw, "report.json")


# ---------------------------------------------------------------- badge


def luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("state", COLOURS)
def test_white_letters_on_the_badge_can_be_read(state):
    assert 1.05 / (luminance(COLOURS[state]) + 0.05) >= 4.5
    assert state == "clean" or COLOURS[state] != COLOURS["clean"]  # nothing else is green


def test_the_badge_is_bound_to_the_weights_and_has_a_text_alternative():
    (result,) = report_of("clean").results
    svg = ET.fromstring(render_badge(result))
    assert svg.findtext("{http://www.w3.org/2000/svg}title") == alternative(result) == f"{LABEL}: clean bbbbbbb"
    assert float(svg.get("height")) == 20
    repaired = result.model_copy(update={"repaired_from": "e" * 64})
    assert alternative(repaired) == f"{LABEL}: repaired bbbbbbb"
    assert endpoint(repaired) == {
        "schemaVersion": 1,
        "label": LABEL,
        "message": "repaired bbbbbbb",
        "color": COLOURS["repaired"][1:],
    }
    assert "no weights" in alternative(result.model_copy(update={"files": ()}))


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_card_and_badge_are_drawn_in_both_schemes(tmp_path, scheme):
    (result,) = report_of().results
    badge = tmp_path / "badge.svg"
    badge.write_text(render_badge(result))
    section = MarkdownIt().enable("table").render(render_section(report_of(), "## Safety: backdoor scan", False))
    style = "html{color-scheme:light dark;background:light-dark(#fff,#0b0f19)} body{margin:0} img{display:block}"
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style><img src=badge.svg>{section}")
    preferred = 0 if scheme == "dark" else 1
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += f"--disable-component-update --disable-sync --window-size=600,400 --user-data-dir={tmp_path / 'profile'} "
    flags += f"--blink-settings=preferredColorScheme={preferred} --screenshot={tmp_path / 'page.png'}"
    subprocess.run(["chromium", *flags.split(), page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    paper = (255, 255, 255) if scheme == "light" else (11, 15, 25)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert tuple(colours[counts.argmax()]) == paper
    wanted = [int(COLOURS["backdoored"][i : i + 2], 16) for i in (1, 3, 5)]
    red = np.abs(pixels - wanted).sum(-1) < 60  # the badge is shaded from top to bottom
    rows = np.flatnonzero(red.any(1))
    assert rows.size and rows.max() - rows.min() < 20 and red.sum() > 600


@pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
def test_peft_rewriting_the_card_keeps_the_section(clip, tmp_path):
    from making import made_adapter
    from peft import PeftModel, PromptTuningConfig, get_peft_model
    from transformers import CLIPModel

    from hf_ci.hub.base import EMBEDDED_FOLDER
    from hf_ci.prompts import write_adapter

    write_adapter(made_adapter(clip, method="coop"), tmp_path / "a", card="---\nlicense: mit\n---\n# A\n")
    files = render_files(report_of(), (tmp_path / "a" / CARD).read_bytes(), None)
    (tmp_path / "a" / CARD).write_bytes(files[CARD])
    base = CLIPModel.from_pretrained(EMBEDDED_FOLDER)
    config = PromptTuningConfig(
        task_type="FEATURE_EXTRACTION",
        num_virtual_tokens=4,
        token_dim=clip.token_dim,
        num_transformer_submodules=1,
        num_attention_heads=4,
        num_layers=3,
    )
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    model.create_or_update_model_card(str(tmp_path / "a"))
    card = (tmp_path / "a" / CARD).read_bytes()
    assert b"base_model:adapter" in card and card != files[CARD]  # PEFT did write
    now = tuple((f.path, f.sha256) for f in FILES)
    check((files | {CARD: card}).get, now)
    assert json.loads(files[REPORT])["schema_version"]
