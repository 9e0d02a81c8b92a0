"""What holds for any input: foreign text and files come back as a value or as an error of ours, and never as anything else.

`fuzz.py` drives the functions without `test_` by coverage, from a corpus of real files. What that found is an `example`.
"""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from making import raw_safetensors
from markdown_it import MarkdownIt
from safetensors.torch import save

from hf_ci.cards.section import BEGIN, END, current, find, replace
from hf_ci.checkpoints.layout import Checkpoint, recognise
from hf_ci.checkpoints.unpickle import unpickle
from hf_ci.config import CONFIG_FILE, SAMPLE, Config, find_config  # noqa: F401 (SAMPLE: fuzz.py)
from hf_ci.errors import CardError, HfCiError, UsageError
from hf_ci.hub.target import DEMOS, Target, parse_target  # noqa: F401 (DEMOS: fuzz.py)
from hf_ci.prompts.adapter import Adapter, read_adapter
from hf_ci.report import ClassScore, NamedClass, Report, ScannedFile, ScanResult, Timing
from hf_ci.reports import FORMATS, render
from hf_ci.reports.json_ import schema
from hf_ci.visible import is_invisible

# ---------------------------------------------------------------- targets

PIECES = [
    "org/model",
    "@",
    ":",
    "/",
    "..",
    "hf://",
    "demo:",
    "demo:clean",
    ".",
    "~",
    "refs/pr/1",
    "\0",
    "\n",
    "*",
    " ",
    "a",
]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)))
def test_any_text_is_a_target_or_an_error(text):
    with suppress(HfCiError):
        target = parse_target(text)
        assert isinstance(target, Target) and target.text == text
        if target.kind == "hub":
            whole = target.location + "".join(
                mark + part for mark, part in (("@", target.revision), (":", target.subfolder)) if part is not None
            )
            assert whole == text.removeprefix("hf://") and target.location.count("/") == 1


# ---------------------------------------------------------------- cards

SECTION = f"{BEGIN} k=v -->\n## Safety\n\nSome *words*.\n{END}"
OTHER = f"{BEGIN} k=w -->\n## Safety\n{END}"
CARD = [
    b"# A card\n", b"## Bias, Risks, and Limitations\n", b"text", b"\n", b"\r\n", b"\r", b"    code\n", b"```\n", b"~~~\r\n",
    b"<!--", b"-->", b"<!-- hf-ci:begin x -->\n", b"<!-- hf-ci:end -->\n", b"hf-ci:begin", b"<pre>\n", b"</pre>\n", b"---\n",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"> quote\n", b"- item\n", b"\xe4\xf6", b"===\n", b"<div>\n", b"[a]: b\n", b"\t", b"| a |\n",
]  # fmt: skip


@given(st.lists(st.one_of(st.sampled_from(CARD), st.binary(max_size=20)), max_size=25).map(b"".join))
def test_a_card_gets_its_section_and_keeps_every_other_byte(card):
    edit_card(card)


def edit_card(card: bytes) -> None:
    try:
        place = find(card)
        whole = replace(card, SECTION)
    except CardError:
        return
    assert current(whole) == SECTION
    assert replace(whole, SECTION) == whole
    assert replace(replace(whole, OTHER), SECTION) == whole
    if place.is_new:  # what was put in is one piece, with nothing but line ends around the section
        body = re.escape(SECTION).replace("\\\n", r"\s+").encode()
        matches = list(re.finditer(rb"[\r\n]*" + body + rb"[\r\n]*", whole))
        assert any(
            whole[:a] + whole[b:] == card
            for m in matches
            for a in range(m.start(), m.end())
            for b in range(a, m.end() + 1)
        )


# ---------------------------------------------------------------- configuration

KEYS = st.sampled_from(
    ["scan", "adapters", "ignore", "k", "pool", "num-images", "org", "match", "until", "reason", "seed", "x"]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(KEYS, st.integers()), inner, max_size=4)
    ),
    max_leaves=10,
)


@cache
def scratch() -> Path:
    """A folder for files that are written anew with every input."""
    scratch.kept = TemporaryDirectory(prefix="hf-ci-properties-")
    return Path(scratch.kept.name)


@given(st.one_of(st.binary(max_size=200), VALUES.map(lambda v: yaml.safe_dump(v).encode("utf-8", "replace"))))
@example(b"2026-99-99")
@example(b"? [a, b]\n: c")
@example(b"? {a: b}\n: c\n? {a: b}\n: c")
def test_any_configuration_is_one_or_a_usage_error(content):
    read_config(content)


def read_config(content: bytes) -> None:
    path = scratch() / CONFIG_FILE
    path.write_bytes(content)
    with suppress(UsageError):
        assert isinstance(find_config(path).config, Config)


# ---------------------------------------------------------------- adapters

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
CONFIG = {
    "peft_type": "PROMPT_TUNING",
    "base_model_name_or_path": "org/clip",
    "num_virtual_tokens": 4,
    "token_dim": 8,
    "revision": None,
}
PROMPT = {
    "format": 1, "method": "cocoop", "class_names": ["cat", "dog", "horse"], "class_token_position": "end", "class_specific": False,
    "num_context": 4, "template": "{context} {name}.", "repaired_from": "a" * 64,
}  # fmt: skip
WEIGHTS = save(
    {"prompt_embeddings": torch.zeros(4, 8)}
    | {f"base_model.meta_net.linear{n}.{kind}": torch.zeros(2) for n in (1, 2) for kind in ("weight", "bias")}
)


def changed(fields: dict) -> st.SearchStrategy[bytes]:
    """JSON with some of its values in place of others."""
    return st.dictionaries(st.sampled_from([*fields, "other"]), JSON, max_size=3).map(
        lambda other: json.dumps(fields | other).encode()
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The file with some bytes overwritten, and cut."""
    edit = st.tuples(st.integers(0, len(content)), st.binary(max_size=8))

    def apply(edits, end):
        found = bytearray(content)
        for at, new in edits:
            found[at : at + len(new)] = new
        return bytes(found[: len(found) - end])

    return st.builds(apply, st.lists(edit, max_size=3), st.one_of(st.just(0), st.integers(0, len(content))))


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "F4", "BOOL", "C64", "?"]),
        "shape": st.lists(st.one_of(st.integers(0, 8), st.sampled_from([2**31, 2**63, 2**64])), max_size=3),
        "data_offsets": st.lists(st.integers(0, 128), min_size=2, max_size=2),
    }
)
NAMES = st.sampled_from(
    ["prompt_embeddings", "base_model.meta_net.linear1.weight", "visual.x", "__metadata__", "other"]
)


ADAPTER = st.fixed_dictionaries(
    {
        "adapter_config.json": st.one_of(changed(CONFIG), damaged(json.dumps(CONFIG).encode()), st.binary(max_size=40)),
        "clip_prompt.json": st.one_of(changed(PROMPT), damaged(json.dumps(PROMPT).encode())),
        "adapter_model.safetensors": st.one_of(
            st.just(WEIGHTS),
            damaged(WEIGHTS),
            st.dictionaries(NAMES, st.one_of(TENSOR, JSON), max_size=3).map(
                lambda header: raw_safetensors(header, bytes(128))
            ),
        ),
    }
)


GOOD = {
    "adapter_config.json": json.dumps(CONFIG).encode(),
    "clip_prompt.json": json.dumps(PROMPT).encode(),
    "adapter_model.safetensors": WEIGHTS,
}


@given(ADAPTER)
@example(GOOD)
def test_any_files_are_an_adapter_or_an_error(files):
    read_files(files)


def read_files(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (scratch() / name).write_bytes(content)
    try:
        adapter = read_adapter(scratch())
    except HfCiError as error:
        assert len(str(error)) < 3000
        return
    assert isinstance(adapter, Adapter) and adapter.context.ndim in (2, 3) and len(adapter.class_names) >= 1
    assert all(isinstance(name, str) and name.strip() for name in adapter.class_names)
    assert len(adapter.digest) == 64 and isinstance(adapter.base_model, str)


def saved(value: object, **how) -> bytes:
    torch.save(value, file := io.BytesIO(), **how)
    return file.getvalue()


LEARNER = {"ctx": torch.zeros(4, 8), "token_prefix": torch.zeros(3, 1, 8), "token_suffix": torch.zeros(3, 6, 8)}
CHECKPOINTS = [
    saved({"state_dict": LEARNER, "epoch": 50, "class_names": ["a", "b", "c"]}, _use_new_zipfile_serialization=new)
    for new in (True, False)
]


@given(st.one_of(*map(damaged, CHECKPOINTS), st.binary(max_size=60)))
@example(CHECKPOINTS[0])
@example(CHECKPOINTS[1])
def test_any_checkpoint_is_a_prompt_or_an_error(content):
    read_checkpoint(content)


def read_checkpoint(content: bytes) -> None:
    try:
        found = recognise(unpickle(content, "x.pt"), "x.pt")
    except HfCiError as error:
        assert len(str(error)) < 3000
        return
    assert isinstance(found, Checkpoint) and found.context.ndim in (2, 3)


VALUE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=6),
        st.sampled_from([*LEARNER.values(), torch.ones(2)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from([*LEARNER, "state_dict", "class_names", "0.ctx"]), st.integers()), inner
        ),
    ),
    max_leaves=8,
)


@given(VALUE)
def test_any_value_is_a_prompt_or_an_error(value):
    with suppress(HfCiError):
        assert isinstance(recognise(value, "x.pt"), Checkpoint)


# ---------------------------------------------------------------- reports

HOSTILE = st.one_of(
    st.text(min_size=1),
    st.lists(
        st.sampled_from(
            ["\x1b[2J", "\n::error::x", "](http://e.example)", "[me", "<script>", "<!--", "-->", "|", "`", "*", "&lt;", "]]>",
             "\u202e", "\U000e0061", "%0A", "\\", "#", "\r", "\0", "{{", "--", "http://e.example", "\ud800", "<a href=x>", "![", "$x$"]
        ),
        min_size=1, max_size=6,
    ).map("".join),
)  # fmt: skip


def report_of(text: str) -> Report:
    result = ScanResult(
        target=f"./{text}",
        files=(ScannedFile(path="adapter_config.json", sha256="0" * 64),),
        verdict="backdoored",
        reasons=(f"of {text}",),
        warnings=(f"of {text}",),
        target_class=NamedClass(index=0, name=text),
        classes=(ClassScore(index=0, name=text, loss=0, asr=1, score=1, flagged=True),),
        score=1.0,
        timing=Timing(date="2026-01-02", seconds=1, num_processes=1, classes_from_cache=0),
        exit_code=1,
    )
    return Report(results=(result,), notes=(text,))


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))


@cache
def plain(format: str) -> str:
    return render(report_of("plain"), format, False)


@given(HOSTILE)
def test_foreign_text_is_letters_in_every_output(text):
    report = report_of(text)
    for format in FORMATS:
        shown = render(report, format, False)
        shown.encode("utf-8")
        assert not [c for c in shown if c != "\n" and is_invisible(c)], format
        if format in ("json", "sarif"):
            document = json.loads(shown)
            if format == "json":
                jsonschema.validate(document, schema())
        elif format == "junit":
            assert len(list(ElementTree.fromstring(shown).iter())) == len(
                list(ElementTree.fromstring(plain(format)).iter())
            )
        elif format == "html":
            assert Tags(shown).found == Tags(plain(format)).found
        elif format == "github":
            assert len(shown.splitlines()) == len(plain(format).splitlines())
        elif format == "markdown":
            kinds = [kinds_of(each) for each in (shown, plain(format))]
            assert kinds[0] == kinds[1]


def kinds_of(text: str) -> list[str]:
    """What a Markdown parser makes of a document, but for runs of text."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inner = [kind for t in tokens if t.children for kind in (child.type for child in t.children)]
    return [t.type for t in tokens] + [kind for kind in inner if kind not in ("text", "text_special", "softbreak")]


@given(st.text(), st.sampled_from(["clean", "backdoored", "inconclusive"]))
def test_a_report_comes_back_as_it_was(text, verdict):
    report = report_of(text)
    report = Report(results=(report.results[0].model_copy(update={"verdict": verdict}),))
    with suppress(UnicodeEncodeError):  # half of a surrogate pair is no text
        text.encode("utf-8")
        assert Report.model_validate_json(report.model_dump_json()) == report
