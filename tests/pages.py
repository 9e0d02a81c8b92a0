"""What the project's pages say: their links, headings, blocks of code and commands; and a place in which the commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from markdown_it import MarkdownIt
from PIL import Image as PILImage

from hf_ci.detect.calibration import SHIPPED
from hf_ci.dev.loopback import LoopbackHub
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import DEMOS
from hf_ci.pools.procedural import images
from hf_ci.prompts import read_adapter

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", sorted(ROOT.glob("docs/*.md"))
SHELL = ("", "sh", "bash", "console")  # languages of blocks that hold commands
FEW = ["--shots", "2", "--epochs", "1"]  # of tuning
TYPED = re.compile(r"^(?:\$ )?(?:.* && )?(hf-ci .*?)(?:  +#.*)?$", re.M)  # a line that a reader would type


def tokens(page: Path) -> list:
    """Of Markdown; those inside a line as well."""
    blocks = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def links(page: Path) -> list[str]:
    found = tokens(page)
    return [str(t.attrs.get("href") or t.attrs.get("src")) for t in found if t.type in ("link_open", "image")]


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = tokens(page)
    titles = [after.content for token, after in zip(found, found[1:]) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's blocks of code in these languages; "": blocks of which none is named."""
    return [t.content for t in tokens(page) if t.type in ("fence", "code_block") and t.info.strip() in languages]


def typed(page: Path) -> list[str]:
    """The commands in its blocks, as they may be typed."""
    return [" ".join(found.split()) for block in blocks(page, *SHELL) for found in TYPED.findall(block)]


def named(page: Path) -> list[str]:
    """The commands in its text, which may be cut short."""
    return [t.content for t in tokens(page) if t.type == "code_inline" and t.content.startswith("hf-ci ")]


def files_of(folder: Path, below: str = "") -> dict[str, bytes]:
    return {below + path.name: path.read_bytes() for path in folder.iterdir()}


def drawn() -> list:
    return [PILImage.fromarray(np.asarray(pixels)) for _, pixels in zip(range(64), images(1, 64))]


def write_data(folder: Path, names) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    folder.mkdir()
    for part, rows in (("train", drawn()[:40]), ("test", drawn()[40:60])):
        table = {"image": rows, "label": [i % len(names) for i in range(len(rows))]}
        Dataset.from_dict(table, features=features).to_parquet(folder / f"{part}.parquet")


def furnish(folder: Path, hub: LoopbackHub, home: Path) -> dict[str, str]:
    """Makes a working directory with what the commands name, and the repos on the Hub; returns the environment that leads there.

    32 images a scan: no figure is looked at. All adapters are one poisoned demo, so that what one command inverted is
    there for the next. DATA has its classes, but its pictures are no photos of them: its labels cannot be learned.
    """
    shutil.copytree(DEMOS / "frame", folder / "my-adapter")
    shutil.copytree(DEMOS / "frame", folder / "adapters" / "pets")
    shutil.copy(SHIPPED, folder / "mine.json")
    (folder / "some" / "photos").mkdir(parents=True)
    for i, image in enumerate(drawn()):
        image.save(folder / "some" / "photos" / f"{i}.png")
    write_data(folder / "DATA", read_adapter(DEMOS / "frame").class_names)
    with (ROOT / "cards" / "benchmark.jsonl").open() as records:
        (folder / "records.jsonl").write_text("".join(line for line, _ in zip(records, range(30))))
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (
        ("init", "-q", "-b", "main"),
        ("add", "adapters", "my-adapter"),
        ("commit", "-q", "-m", "an adapter"),
    ):
        subprocess.run([*git, *command], cwd=folder, check=True)
    hub.add_repo("org/model", files_of(DEMOS / "frame") | files_of(DEMOS / "frame", "prompts/pets/"))
    hub.repo("org/model").refs["refs/tags/v1.2"] = hub.repo("org/model").refs["refs/heads/main"]
    hub.add_repo("openai/clip-vit-base-patch16", files_of(EMBEDDED_FOLDER))
    return os.environ | hub.env(home) | {"HF_CI_NUM_IMAGES": "32"}


def words(command: str) -> list[str]:
    """As a shell has them, after the program's name; with less of what is set by no environment."""
    _, *given = shlex.split(command)
    less = {"repair": ["--num-images", "32"], "lab tune": FEW, "lab poison": FEW}
    return given + less.get(given[0], less.get(" ".join(given[:2]), []))


def run_all(run, commands: list[str], folder: Path, env: dict[str, str]) -> list[tuple[int, str]]:
    """Exit code and output of each, run in this order."""
    done = [run(*words(command), env=env, cwd=folder) for command in commands]
    return [(ended.returncode, ended.stdout + ended.stderr) for ended in done]
