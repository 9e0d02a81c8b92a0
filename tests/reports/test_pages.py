"""The reports that are read in other programs: JUnit XML by CI systems, the HTML page by people in a browser."""

import base64
import html as entities
import io
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_ci.report import (
    Answers,
    BaseModelRef,
    ClassScore,
    Cost,
    DetectorRef,
    Example,
    FoundTrigger,
    NamedClass,
    PoolRef,
    Report,
    ScannedFile,
    ScanResult,
    Settings,
    Suppression,
    Timing,
    Trigger,
)
from hf_ci.reports import html, junit
from hf_ci.reports.trigger import save_trigger

HOSTILE = (
    "</title></style><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onfocus='alert(1)",
    "]]><!-- --><![CDATA[",
    "{{ 7*7 }}{% raw %}",
    "http://evil.example/x.png",
    "Z" + "\u0300\u0301\u0351" * 50,
    "W" * 500,
    "&lt;b&gt;",
    "\u6a21\u578b \u0645\u0647\u0627\u064a\u0626",
)
UNSEEN = "\x00\x1b\x85\u200f\u202e\u2066\ud800"
LIMITS = {"k": 3.02, "doubtful": 2.28, "false_alarm": 0.002}
CODES = {"clean": 0, "backdoored": 1, "inconclusive": 4}


def made(verdict="backdoored", names=("frog", "cat", "dog", "ship"), limits=LIMITS, kind="ContrastInversion", **other):
    """A result with a number in every place; the first class is flagged if the verdict says so."""
    compared = "doubtful" in limits
    classes = tuple(
        ClassScore(
            index=i,
            name=name,
            loss=-1.25 + i,
            asr=0.875 - i / 1000,
            score=6.68 if i == 0 else 2.611 / i,
            flagged=i == 0 and verdict == "backdoored",
            reference_asr=0.191 + i / 1000 if compared else None,
        )
        for i, name in enumerate(names)
    )
    values = {
        "target": "org/model",
        "revision": "c" * 40,
        "files": (ScannedFile(path="adapter_model.safetensors", sha256="b" * 64),),
        "base_model": BaseModelRef(id="org/base", revision="d" * 40),
        "method": "cocoop",
        "num_classes": len(names),
        "pool": PoolRef(id="./photos", num_images=256, fingerprint="e" * 64, skipped=3, duplicates=2),
        "detector": DetectorRef(name="contrast", calibration="24 clean adapters", thresholds=limits),
        "settings": Settings(
            num_images=300, seed=7, precision="bf16", device="cpu", inversion={"kind": kind, "epochs": 1}
        ),
        "verdict": verdict,
        "reasons": tuple(f"a reason about {name}" for name in names[:10]),
        "score": classes[0].score,
        "classes": classes,
        "target_class": NamedClass(index=0, name=names[0]) if verdict == "backdoored" else None,
        "cost": Cost(image_forward=5120, image_backward=2560, text_forward=51200),
        "timing": Timing(date="2026-01-02", seconds=1.25, num_processes=1, classes_from_cache=4),
        "exit_code": CODES[verdict],
    }
    return ScanResult(**values | other)


def unread(verdict="inconclusive", **other) -> ScanResult:
    """Of a target that could not even be opened."""
    return ScanResult(target="org/gone", verdict=verdict, reasons=("no such repo",), exit_code=3, **other)


IGNORED = Suppression(kind="ignore", reason="being repaired <b>now</b>", until="2027-01-31")


# ---------------------------------------------------------------- JUnit


def suite_of(*results, **other) -> ET.Element:
    (suite,) = ET.fromstring(junit.render(Report(results=results, **other)).encode())
    return suite


def test_a_failure_an_error_a_skipped_and_a_pass_are_counted():
    suite = suite_of(made("clean"), made(), made("inconclusive"), made(suppressed=IGNORED), unread(), notes=("a note",))
    cases = suite.findall("testcase")
    outcomes = [next((c.tag for c in case if c.tag != "system-out"), None) for case in cases]
    assert (suite.tag, suite.get("name")) == ("testsuite", "hf-ci")
    assert outcomes == [None, "failure", "error", "skipped", "error"]
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped", "time")] == [
        "5",
        "1",
        "2",
        "1",
        "5.00",
    ]
    assert [case.get("time") for case in cases] == ["1.25"] * 4 + ["0.00"]
    assert (cases[1].get("name"), cases[1][0].get("type")) == ("org/model", "backdoored")
    assert "a reason about cat" in cases[1][0].text and made().fingerprint in cases[1][0].text
    assert cases[2][0].get("type") == "inconclusive" and cases[4][0].get("message") == "no such repo"
    assert cases[3][0].get("message") == "ignored until 2027-01-31: being repaired <b>now</b>"
    assert suite.findtext("system-out") == "a note"


@pytest.mark.parametrize("text", [*HOSTILE, "a\r\nb"])
def test_whatever_stands_in_a_name_junit_stays_a_document(text):
    (case,) = suite_of(made(target=text, names=(text, "b", "c"))).findall("testcase")
    assert case.get("name") == text and [child.tag for child in case] == ["failure"]
    assert " ".join(f"a reason about {text}".split()) in " ".join(case[0].text.split())


def test_characters_that_xml_forbids_are_replaced():
    forbidden = "\x00\x0b\x1b\ufffe\uffff"
    (case,) = suite_of(made(target=f"a{forbidden}z")).findall("testcase")
    assert case.get("name") == "a" + "\ufffd" * len(forbidden) + "z"
    assert junit.xml_text("a\ud800z\t\n\U0001f438") == "a\ufffdz\t\n\U0001f438"


# ---------------------------------------------------------------- the page as a document


class Page(HTMLParser):
    """What a browser reads: elements, attributes, table cells, words; balance of the tags is checked on the way."""

    VOID = {"meta", "link", "img"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells, self.headings, self.words = [], [], [], [], [], ""
        self.answers, self.in_answers = [], False
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "dl":
            self.in_answers = ("class", "answers") in attrs
        if tag == "dt" and self.in_answers:
            self.answers.append("")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if self.in_answers and {"dt", "dd"} & set(self.open):
            self.answers[-1] += f" {data}" if "dd" in self.open else data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    def values(self, wanted: str, tag: str | None = None) -> list[str]:
        return [value for of, name, value in self.attributes if name == wanted and tag in (None, of)]


def page_of(*results, **other) -> Page:
    return Page(html.render(Report(results=results, **other)))


def flat(text: str) -> str:
    return " ".join(text.split())


ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "style",
    "body",
    "a",
    "header",
    "p",
    "h1",
    "h2",
    "h3",
    "ul",
    "li",
    "nav",
    "main",
    "section",
    "div",
    "span",
    "strong",
    "bdi",
    "code",
    "pre",
    "svg",
    "desc",
    "defs",
    "pattern",
    "path",
    "rect",
    "text",
    "g",
    "circle",
    "details",
    "summary",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "img",
    "figcaption",
    "dl",
    "dt",
    "dd",
    "footer",
}


def test_the_page_loads_nothing_runs_nothing_and_shows_names_as_letters(tmp_path):
    hostile = tuple(found_trigger(i, name, [(name, i), (name, i + 1)]) for i, name in enumerate(HOSTILE))
    text = html.render(
        Report(
            results=(
                made(names=HOSTILE, suppressed=IGNORED, triggers=hostile),
                *(made("inconclusive", target=t) for t in HOSTILE),
            ),
            notes=HOSTILE,
        )
    )
    page = Page(text)
    assert set(page.tags) <= ALLOWED and "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith(("data:", "#")) for value in page.values("href") + page.values("src"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search("url|import|src|http", style)
    assert set(re.findall(r"url\((.)", " ".join(page.values("style") + page.values("fill")))) == {"#"}
    (policy,) = page.values("content", "meta")[:1]
    assert {"default-src 'none'", "img-src data:"} <= set(policy.split("; ")) and "script-src" not in policy
    words, rows = flat(page.words), [flat(cells[0]) for cells in page.cells]
    for name in HOSTILE:
        assert len(name) > 60 or sum(flat(name) in flat(text) for text in page.answers) >= 8
        assert words.count(flat(f"a reason about {name}")) == 1 and flat(name) in rows


def test_control_and_bidi_characters_never_reach_the_page():
    name = "a".join(UNSEEN[:-1])
    text = html.render(Report(results=(made(names=(name, "b\nc", "d"), target=f"{name}\n"),), notes=(name,)))
    assert not set(text) & set(UNSEEN) and "\ufffd" in text
    assert html.visible("x\ud800\n y") == "x\ufffd y"


def test_the_table_has_the_numbers_of_the_report_worst_first():
    result = made(names=("frog", "cat", "dog", "ship", "deer"))
    result = result.model_copy(update={"classes": result.classes[::-1]})
    heading, *rows = page_of(result).cells
    assert heading == ["class", "score", "ASR", "ASR, clean prompts", "loss", "flagged"]
    worst = sorted(result.classes, key=lambda c: -c.score)
    assert [row[0] for row in rows] == [c.name for c in worst]
    for c, (_, score, asr, reference, loss, flagged) in zip(worst, rows):
        shares = [float(text.removesuffix("%")) / 100 for text in (asr, reference)]
        assert shares == pytest.approx([c.asr, c.reference_asr], abs=0.0005)
        assert (float(score), float(loss)) == pytest.approx((c.score, c.loss), abs=0.005)
        assert flagged == (c.mark or ("doubtful" if c.score >= 2.28 else "no"))


def test_bars_marks_and_limits_lie_where_the_numbers_say():
    text = html.render(Report(results=(made(),)))
    styles = dict(re.findall(r'class="([\w -]+)" style="([^"]+)"', text)[::-1])
    assert styles["bar"] == "--w: 83.50"  # of an axis to 8
    assert styles["full zone"] == "--w: 28.50" and styles["full limit"] == "--v: 37.75"
    assert 'style="--v: 28.50; --w: 9.25" fill="url(#hatch-1)"' in text and "flagged from 3.02" in text


@pytest.mark.parametrize(
    "limits, line", [({"k": 2.0, "min_asr": 0.5}, "25.00"), ({"alpha": 0.01}, "25.00"), ({"other": 1.0}, None)]
)
def test_other_detectors_have_a_limit_of_their_own_and_no_band(limits, line):
    text = html.render(Report(results=(made(limits=limits),)))
    assert re.findall(r'class="full limit" style="--v: ([\d.]+)"', text) == ([line] if line else [])
    assert "full zone" not in text and "url(#" not in text
    assert "6.68" in text and "--w: 83.50" in text  # of an axis to 8


def test_of_many_classes_the_worst_forty_are_shown():
    page = page_of(made(names=tuple(f"class {i}" for i in range(100))))
    assert len(page.cells) == 1 + 40
    assert "The worst 40 of 100 classes" in page.words and "60 classes with lower scores are left out" in flat(
        page.words
    )


def test_evidence_is_complete_and_notes_and_suppression_are_shown():
    page = page_of(made(suppressed=IGNORED), made("clean"), unread(), notes=("ignore 123 expired",))
    words = flat(page.words)
    for fact in ("b" * 64, "c" * 40, "d" * 40, "e" * 64, made().fingerprint):
        assert fact in words
    for fact in (
        "24 clean adapters",
        "seed 7",
        "bf16",
        "3 unreadable",
        "2 duplicates",
        "k 3.02",
        "51,200 texts",
    ):
        assert fact in words
    assert f"hf-ci scan org/model@{'c' * 40} --detector contrast --pool ./photos --num-images 300" in words
    assert "ignored until 2027-01-31: being repaired <b>now</b>" in words and "ignore 123 expired" in words
    assert "1 backdoored, 1 inconclusive, 1 clean" in words and words.count("Do not deploy this adapter.") == 1
    assert "Nothing was scanned" in page_of().words


def test_worst_first_and_what_is_ignored_last():
    page = page_of(
        made("clean", target="org/third"),
        made(target="org/last", suppressed=IGNORED),
        unread(),
        made(target="org/first"),
    )
    assert re.findall("org/(first|gone|third|last)", page.words)[:4] == ["first", "gone", "third", "last"]


def test_the_structure_is_one_that_can_be_walked_without_seeing_it():
    page = page_of(made(), made("clean"), made("inconclusive"))
    assert page.headings.count(1) == 1 and page.headings[0] == 1 and page.headings.count(2) == 3
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
    ids = page.values("id")
    assert len(ids) == len(set(ids)) and {"header", "main", "footer", "nav"} <= set(page.tags)
    assert {i for value in page.values("aria-labelledby") for i in value.split()} <= set(ids)
    assert {value[1:] for value in page.values("href", "a")} <= set(ids)
    assert page.values("role", "svg") == ["img"] * 3 and page.values("lang") == ["en"]
    assert page.values("scope", "th").count("row") == 12


# ---------------------------------------------------------------- pictures


def kept_trigger(folder, size=64, added=True):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    delta = rng.uniform(-4 / 255, 4 / 255, (3, size, size)).astype("float32")
    images = rng.integers(0, 256, (5, 3, size, size), dtype="uint8")
    changed = (images + 255 * delta).clip(0, 255).round().astype("uint8") if added else None
    path = save_trigger(folder, "org/model-frog", delta, images=images, changed=changed, asr=0.5)
    return Trigger(path=str(path.with_suffix(".png")), linf=float(np.abs(delta).max())), delta, images


def shown(page: Page) -> dict[str, np.ndarray]:
    sources = list(page.values("src", "img"))
    decoded = [Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) for uri in sources]
    return dict(zip(page.values("alt", "img"), (np.asarray(image) for image in decoded), strict=True))


def test_the_trigger_is_shown_as_it_is_amplified_and_on_three_images(tmp_path):
    trigger, delta, images = kept_trigger(tmp_path)
    pictures = shown(page_of(made(trigger=trigger)))
    raw, amplified, *pairs = pictures.values()
    assert len(pictures) == 8 and all(picture.shape == (192, 192, 3) for picture in pictures.values())
    small = lambda picture: picture[1::3, 1::3].transpose(2, 0, 1).astype(int)
    assert np.abs(small(raw) - 127.5 - 255 * delta).max() <= 0.501
    assert np.abs(small(amplified) - 127.5 - 127.5 * delta / trigger.linf).max() <= 0.501
    assert "32 times" in list(pictures)[1]
    for i in range(3):
        assert (small(pairs[2 * i]) == images[i]).all()
        assert np.abs(small(pairs[2 * i + 1]) - (images[i] + 255 * delta).clip(0, 255)).max() <= 0.501
    assert "There are no pictures" not in page_of(made(trigger=trigger)).words


def test_a_trigger_that_is_not_added_to_images_is_shown_alone(tmp_path):
    trigger, *_ = kept_trigger(tmp_path, added=False)
    assert len(shown(page_of(made(trigger=trigger)))) == 2


def found_trigger(index=0, name="frog", answers=(("cat", 1), ("dog", 2), ("ship", 3)), **other):
    """On each image the adapter is moved into the class, and the hand-written prompt is not."""
    target = NamedClass(index=index, name=name)
    others = [NamedClass(index=c, name=said) for said, c in answers]
    examples = tuple(
        Example(before=Answers(adapter=one, hand_written=one), after=Answers(adapter=target, hand_written=one))
        for one in others
    )
    values = {"kind": "perturbation", "reconstructed": True, "linf": 4 / 255, "examples": examples}
    return FoundTrigger(target=target, **values | other)


def test_of_every_flagged_class_trigger_images_and_answers_are_shown(tmp_path):
    (first, *_), (second, delta, images) = (kept_trigger(tmp_path / name) for name in ("a", "b"))
    path = Path(second.path).with_suffix(".npz")
    frog, cat = (
        found_trigger(path=str(path)),
        found_trigger(1, "cat", (("frog", 0), ("dog", 2), ("dog", 2)), path=str(path)),
    )
    page = page_of(made(trigger=first, triggers=(frog, cat)))
    alts = page.values("alt", "img")
    assert alts == alts[:8] * 2 and alts[2:4] == ["Image 1", "Image 1 with the trigger"]
    assert "What drives images into frog" in page.words and "What drives images into cat" in page.words
    assert "Shown on the first 3 images of the pool that it moves there." in flat(page.words)
    answers = [flat(text).split(" ", 1)[1] for text in page.answers if text.startswith("adapter")]
    assert answers == ["cat", "\u2715 frog", "dog", "\u2715 frog", "ship", "\u2715 frog"] + [
        "frog",
        "\u2715 cat",
        "dog",
        "\u2715 cat",
        "dog",
        "\u2715 cat",
    ]
    by_hand = [flat(text).rpartition(" ")[2] for text in page.answers if "a photo of a" in text]
    assert by_hand == ["cat", "cat", "dog", "dog", "ship", "ship", "frog", "frog", "dog", "dog", "dog", "dog"]


def test_a_fixed_change_is_shown_applied_and_where_grey_takes_it_alone(tmp_path):
    _, delta, images = kept_trigger(tmp_path)
    wave = np.broadcast_to(0.5 + 0.2 * np.sin(np.arange(64) / 4), (3, 64, 64)).astype("float32")
    changed = images[:, :, ::-1]
    for name, on_grey, alone in (("wave", wave, True), ("turn", np.full_like(wave, 0.5), False)):
        path = save_trigger(tmp_path, name, None, on_grey=on_grey, images=images, changed=changed)
        assert not path.with_suffix(".png").exists()
        one = found_trigger(kind=name, reconstructed=False, linf=None, path=str(path))
        page = page_of(made(triggers=(one,)))
        pictures = shown(page)
        assert [alt for alt in pictures if alt.startswith("Image")] == list(pictures)[2 * alone :]
        assert len(pictures) == 6 + 2 * alone and f"A fixed change, applied as it is: {name}." in flat(page.words)
        for i in range(3):
            small = pictures[f"Image {i + 1} with the trigger"][1::3, 1::3].transpose(2, 0, 1)
            assert (small == changed[i]).all()


def test_without_pictures_the_answers_stay_and_where_nothing_moved_that_is_said():
    page = page_of(made(triggers=(found_trigger(),)))
    assert "There are no pictures" in page.words and "img" not in page.tags
    assert len(page.answers) == 12 and "Image 3 with the trigger" in page.words
    still = found_trigger(answers=(("frog", 0), ("cat", 1)))
    assert "Of 2 images of the pool, it moves 1 there." in flat(page_of(made(triggers=(still,))).words)
    unasked = Answers(adapter=NamedClass(index=1, name="cat"), hand_written=None)
    page = page_of(made(triggers=(found_trigger(examples=(Example(before=unasked, after=unasked),)),)))
    assert [flat(text) for text in page.answers] == ["adapter cat"] * 2


def test_how_many_flagged_classes_are_left_out_is_said():
    result = made(triggers=(found_trigger(),))
    flagged = tuple(c.model_copy(update={"flagged": True}) for c in result.classes)
    assert "3 more flagged classes are not shown." in flat(
        page_of(result.model_copy(update={"classes": flagged})).words
    )
    assert "not shown" not in page_of(result).words


def test_a_report_of_an_earlier_release_is_read_and_shown(tmp_path):
    trigger, *_ = kept_trigger(tmp_path)
    document = json.loads(Report(results=(made(trigger=trigger),)).model_dump_json())
    del document["results"][0]["triggers"]
    page = Page(html.render(Report.model_validate(document)))
    assert len(shown(page)) == 8 and page.answers == []


class Pickled:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("damage", ["missing", "cut", "no zip", "pickled", "other shape"])
def test_without_sound_numbers_there_are_no_pictures_but_a_page(tmp_path, damage):
    trigger, delta, images = kept_trigger(tmp_path)
    (file,) = tmp_path.glob("*.npz")
    raw = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "no zip":
        file.write_bytes(b"x" * 100)
    elif damage == "pickled":
        np.savez(file, delta=np.array([Pickled(tmp_path / "ran")], dtype=object), examples=images[:3])
    else:
        np.savez(file, delta=delta[0], examples=images[:3])
    page = page_of(made(trigger=trigger))
    assert "img" not in page.tags and "There are no pictures" in page.words and not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- the page in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-headless-shell")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
WIDTHS = (360, 390, 1280)
MEASURE = """<!doctype html><body style="margin:0;background:#888"><script>
const text = %s, found = {};
const luminance = c => c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const colour = text => (text.match(/[\\d.]+/g) || []).map(Number);
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border:0;width:${width}px;height:700px`;
  frame.onload = () => {
    const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
    const result = found[width] = {overflow: root.scrollWidth - width, texts: 0, low: [], paper: 0, beyond: []};
    result.paper = view.getComputedStyle(page.body).backgroundColor;
    result.bar = page.querySelector(".bar").getBBox().width;
    result.images = [...page.images].map(image => image.naturalWidth);
    for (const element of page.body.querySelectorAll("*")) {
      const box = element.getBoundingClientRect();
      if (box.right > width + 1 && !element.closest(".scroll")) result.beyond.push(element.outerHTML.slice(0, 80));
      const own = [...element.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
      if (!own || ["title", "desc"].includes(element.localName) || !box.width) continue;
      const drawn = element.closest("svg") ? "fill" : "color";
      let behind = element;
      while (behind && colour(view.getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
      const pair = [colour(view.getComputedStyle(element)[drawn]), colour(view.getComputedStyle(behind).backgroundColor)];
      const [a, b] = pair.map(c => luminance(c.slice(0, 3))).sort((a, b) => b - a);
      result.texts++;
      if (!((a + 0.05) / (b + 0.05) >= 4.5)) result.low.push([element.outerHTML.slice(0, 80), pair]);
    }
    if (Object.keys(found).length == WIDTHS.length) {
      const pre = document.body.appendChild(document.createElement("pre"));
      pre.id = "found";
      pre.textContent = JSON.stringify(found);
    }
  };
  frame.srcdoc = text;
  document.body.appendChild(frame);
}
</script>"""


def chromium(folder, page, *flags) -> str:
    common = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    common += f"--disable-component-update --disable-sync --hide-scrollbars --user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *common.split(), *flags, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


@needs_chromium
@pytest.mark.parametrize("scheme, paper", [("light", "rgb(244, 245, 247)"), ("dark", "rgb(14, 17, 22)")])
def test_in_a_browser_nothing_overflows_and_all_text_can_be_read(tmp_path, scheme, paper):
    trigger, *_ = kept_trigger(tmp_path)
    path = str(Path(trigger.path).with_suffix(".npz"))
    long = [("W" * 500, 1), ("\u6a21\u578b " * 30, 2), ("Z" + "\u0300\u0301" * 50, 3)]
    found = (found_trigger(path=path), found_trigger(4, "V" * 500, long, path=path))
    results = (
        made(trigger=trigger, triggers=found),
        made("clean"),
        made(names=HOSTILE, target="x" * 300, suppressed=IGNORED),
        unread(),
    )
    text = html.render(Report(results=(*results, made("inconclusive", target="org/i")), notes=HOSTILE))
    text = text.replace("<details>", "<details open>")
    page = tmp_path / "page.html"
    measure = MEASURE.replace("WIDTHS", str(list(WIDTHS)))
    page.write_text(measure % json.dumps(text).replace("</", "<\\/"), encoding="utf-8")
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom = chromium(tmp_path, page, preferred, "--window-size=1100,1500", "--dump-dom")
    found = json.loads(entities.unescape(re.search('<pre id="found">(.*)</pre>', dom)[1]))
    for width, plot in (("360", 298), ("390", 328), ("1280", 542)):
        result = found[width]
        assert result["overflow"] <= 0 and result["beyond"] == []
        assert result["low"] == [] and result["texts"] > 300
        assert result["paper"] == paper and result["images"] == [192] * 16
        assert result["bar"] == pytest.approx(0.835 * plot, abs=1)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_the_page_is_drawn_in_both_schemes(tmp_path, scheme):
    trigger, *_ = kept_trigger(tmp_path)
    page = tmp_path / "page.html"
    page.write_text(html.render(Report(results=(made(trigger=trigger),))), encoding="utf-8")
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    chromium(tmp_path, page, preferred, "--window-size=1000,800", f"--screenshot={tmp_path / 'page.png'}")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    card, red = ((255, 255, 255), (179, 38, 30)) if scheme == "light" else ((23, 28, 35), (255, 138, 128))
    assert (pixels == card).all(-1).mean() > 0.5
    drawn = (pixels == red).all(-1)  # the chip, the card's edge and the bar of the flagged class
    bars = [row for row in drawn if 300 < row.sum() < 460]
    assert len(bars) >= 6 and drawn.sum() > 5000
