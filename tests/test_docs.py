"""What the pages say holds: they build, links lead somewhere, commands exist and run, and blocks of code are what they say."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from urllib.parse import unquote, urlsplit

import pages
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from hf_ci.cli import app
from hf_ci.config import find_config

PAGES = [*sorted(pages.ROOT.glob("*.md")), *pages.DOCS, *sorted(pages.ROOT.glob("cards/*.md"))]
PROGRAM = typer.main.get_command(app)
OURS = [pages.README, *pages.DOCS]
of = lambda page: str(page.relative_to(pages.ROOT))

RUN = {  # in this order, and the exit codes that they may end with; frame is the poisoned demo, and all adapters are it
    "hf-ci scan org/model": {1},
    "hf-ci scan org/model@v1.2:prompts/pets": {1},
    "hf-ci scan 'org/model:*'": {1},
    "hf-ci scan org/model --output json=report.json --output html=report.html": {1},
    "hf-ci scan ./my-adapter --pool ./some/photos": {0, 1, 4},  # so few images tell little
    "hf-ci scan ./my-adapter --data DATA": {0, 1, 4},
    "hf-ci scan org/model --pool ./some/photos --calibration mine.json": {0, 1, 4},
    "hf-ci card ./my-adapter --write": {0},
    "hf-ci scan org/model --push pr": {1},
    "hf-ci card org/model --check": {4},  # not merged yet
    "hf-ci badge org/model": {0},
    "hf-ci init": {0},
    "hf-ci run": {1},
    "hf-ci run --changed-since main": {0},
    "hf-ci config": {0},
    "hf-ci repair org/model --out repaired --data DATA": {4},  # labels of drawn pictures cannot be learned
    "hf-ci repair org/model --out repaired --forget": {0},
    "hf-ci repair org/model --push pr --data DATA": {4},
    "hf-ci lab tune --data DATA --out clean-adapter --base openai/clip-vit-base-patch16": {0},
    "hf-ci lab poison --data DATA --out bad-adapter --base openai/clip-vit-base-patch16 --target cat": {0},
    "hf-ci lab table records.jsonl --out benchmark.md": {0},
}
ELSEWHERE = {  # in which tests they run, with less of everything or with names that mean something
    "hf-ci scan demo:coop demo:far demo:frame": "test_readme.py",
    "hf-ci scan ./output/seed1": "checkpoints/test_scan.py",
    "hf-ci scan org/model:seed1/prompt_learner/model.pth.tar-50": "checkpoints/test_scan.py",
    "hf-ci scan './output/**'": "checkpoints/test_scan.py",
    "hf-ci convert ./output/seed1 --out adapter --position end": "checkpoints/test_scan.py",
    "hf-ci webhook --watch NAME --requirement SOURCE": "hub/test_webhook.py",
    "hf-ci dev hub user/adapter=./my-adapter": "test_dev_hub.py",
    "hf-ci calibrate --base org/clip --data DATA --data MORE --pool ./some/photos --out mine.json": "lab/test_calibrate.py",
    "hf-ci lab bench paper --data DATA_ROOT --out records.jsonl --zoo ZOO": "lab/test_bench.py",
    "hf-ci scan clean-adapter bad-adapter": "lab/test_bench.py",
    "hf-ci scan org/model --num-processes 4": "test_scan.py",
    "hf-ci explain TARGET": "test_explain.py",
    "hf-ci scan org/model --detector clip-inspector --num-images 1000": "test_scan.py",
    "hf-ci --install-completion": "test_cli.py",
    "hf-ci run --shard 3/64 --output json=shard-3.json": "test_merge.py",
    "hf-ci run org:NAME --jobs 4 --flavor a10g-small --requirement SOURCE --dry-run": "test_jobs.py",
    "hf-ci merge shard-*.json --output html=report.html": "test_merge.py",
}


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_every_link_leads_somewhere(page):
    for link in pages.links(page):
        to = urlsplit(link)
        if to.scheme or to.netloc:
            assert to.scheme in ("https", "mailto"), link
            continue
        there = (page.parent / unquote(to.path)).resolve() if to.path else page
        assert there.exists() and there.is_relative_to(pages.ROOT), f"{link}: nothing there"
        if to.fragment and there.suffix == ".md":
            assert to.fragment in pages.anchors(there), f"{link}: no such heading"


def command_in(words):
    """The command that words name, its own words, and the context above it."""
    command, context = PROGRAM, None
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, words
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        command, words = command.commands[words[0]], words[1:]
    return command, words, context


@pytest.mark.parametrize("page", [*OURS, pages.ROOT / "CONTRIBUTING.md"], ids=of)
def test_every_command_exists_with_the_options_that_it_is_given(page):
    whole = pages.typed(page)
    for text in whole + pages.named(page):
        command, words, context = command_in([word for word in shlex.split(text)[1:] if word != "..."])
        given = {word.split("=")[0] for word in words if word.startswith("-")}
        known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
        assert given <= known, f"{text}: no {', '.join(given - known)}"
        if not hasattr(command, "commands"):
            command.make_context("hf-ci", words, parent=context, resilient_parsing=text not in whole)


def test_there_are_commands_and_they_are_told_apart_from_others():
    assert len([text for page in OURS for text in pages.typed(page)]) > 30
    with pytest.raises(AssertionError):
        command_in(["scann", "org/model"])


def test_every_command_of_the_docs_runs(run, hub, hub_home, tmp_path):
    typed = {text for page in pages.DOCS for text in pages.typed(page)}
    unknown = typed - RUN.keys() - ELSEWHERE.keys()
    assert RUN.keys() <= typed and not unknown, f"add to RUN, or to ELSEWHERE what runs in other tests: {unknown}"
    assert all((pages.ROOT / "tests" / ELSEWHERE[text]).is_file() for text in typed & ELSEWHERE.keys())
    env = pages.furnish(tmp_path, hub, hub_home)
    done = dict(zip(RUN, pages.run_all(run, [*RUN], tmp_path, env)))
    wrong = [f"{text}: {code}\n{said}" for text, (code, said) in done.items() if code not in RUN[text]]
    assert not wrong, "\n".join(wrong)
    for made in ("benchmark.md", "bad-adapter/adapter_model.safetensors", "repaired/repair.json", "report.html"):
        assert (tmp_path / made).is_file(), made


def test_configurations_are_valid(tmp_path):
    schema = Draft202012Validator(json.loads((pages.ROOT / "hf_ci/schema/config.schema.json").read_text()))
    found = 0
    for page in OURS:
        for block in pages.blocks(page, "yaml") + pages.blocks(page, "toml"):
            name = block.splitlines()[0].removeprefix("# ")
            if name not in (".hf-ci.yaml", "pyproject.toml"):
                continue
            (tmp_path / name).write_text(block)
            find_config(tmp_path / name)  # raises UsageError for what is not valid
            table = yaml.safe_load(block) if name == ".hf-ci.yaml" else tomllib.loads(block)["tool"]["hf-ci"]
            schema.validate(json.loads(json.dumps(table, default=str)))
            found += 1
    assert found >= 3


def test_hooks_and_inputs_that_are_shown_exist():
    hooks = {hook["id"] for hook in yaml.safe_load((pages.ROOT / ".pre-commit-hooks.yaml").read_text())}
    inputs = yaml.safe_load((pages.ROOT / "action.yml").read_text())["inputs"].keys()
    shown, used = set(), []
    for block in (yaml.safe_load(block) for page in OURS for block in pages.blocks(page, "yaml")):
        if isinstance(block, list):
            used += [step.get("with", {}).keys() for step in block if step["uses"].startswith("<this repository>@")]
        shown |= (
            {hook["id"] for repo in block.get("repos", []) for hook in repo["hooks"]}
            if isinstance(block, dict)
            else set()
        )
    assert shown == hooks and len(used) >= 2 and all(given <= inputs for given in used)


def test_blocks_of_code_are_what_they_say():
    found = {
        "yaml": yaml.safe_load,
        "toml": tomllib.loads,
        "json": json.loads,
        "python": lambda text: compile(text, "page", "exec"),
    }
    read = [
        (language, read(block))
        for page in OURS
        for language, read in found.items()
        for block in pages.blocks(page, language)
    ]
    assert {"yaml", "toml", "python"} <= {language for language, _ in read}
    known = {*pages.SHELL, "text", "diff", *found}
    for page in OURS:
        assert {t.info.strip() for t in pages.tokens(page) if t.type == "fence"} <= known, page


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path / "site"]
    done = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {f"{page.stem}.html" for page in pages.DOCS} | {"cards/benchmark.html"} <= built.keys()
    for name, page in built.items():
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=[\"']?([^\"' >]+)", page)
        loaded += re.findall(r"<link[^>]* rel=[\"']?stylesheet[^>]* href=[\"']?([^\"' >]+)", page)
        loaded += re.findall(r"<link[^>]* href=[\"']?([^\"' >]+)[^>]* rel=[\"']?stylesheet", page)
        assert loaded and not [link for link in loaded if urlsplit(link).netloc], f"{name}: {loaded}"
