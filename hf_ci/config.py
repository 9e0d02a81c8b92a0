"""The configuration: `.hf-ci.yaml` in the working directory, or `[tool.hf-ci]` in its pyproject.toml.

    scan:       settings of every scan, by the names of its flags
    adapters:   what `hf-ci run` scans
    ignore:     findings that are accepted, each with a reason and a last day

What is scanned does not say how it is judged: a file that lies in an adapter's folder, or anywhere below one, came with
it, and is left out unless it is named (`--config`).

Its JSON Schema is published as ``hf_ci/schema/config.schema.json``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from difflib import get_close_matches
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from hf_ci.errors import UsageError
from hf_ci.files import FILES, WEIGHTS_LIKE, most_bytes
from hf_ci.settings import ScanOptions

CONFIG_FILE, PYPROJECT = ".hf-ci.yaml", "pyproject.toml"


def flag_name(field: str) -> str:
    return field.replace("_", "-")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=flag_name, populate_by_name=True)


NOT_HERE = ("cache", "save_trigger")  # places on a machine; a cache that comes with the files could hold forged results
FIELDS: dict[str, Any] = {field.name: (field.type, None) for field in fields(ScanOptions) if field.name not in NOT_HERE}
ScanSection = create_model(
    "ScanSection",
    __base__=Section,
    __doc__="Settings of every scan, by the names of its flags; see hf-ci scan --help.",
    **FIELDS,
)
ScanSection.model_rebuild(_types_namespace={"Path": Path})


class Organisation(Section):
    """The prompt-tuned CLIP adapters of a user or an organisation on the Hub."""

    org: str = Field(min_length=1)
    match: str = Field("*", description="shell pattern that a model's name has to match")
    exclude: tuple[str, ...] = Field((), description="shell patterns of names to leave out")
    targets: tuple[str, ...] | None = Field(
        None, description="what was found when the Hub was last asked: these are scanned, and it is not asked again"
    )


class Ignore(Section):
    """A finding that is accepted until a day."""

    fingerprint: str = Field(pattern="^[0-9a-f]{64}$", description="as every report gives it")
    reason: str = Field(min_length=1)
    until: date = Field(description="last day on which it is ignored")


class Config(Section):
    scan: ScanSection = ScanSection()
    adapters: tuple[Annotated[str, Field(min_length=1)] | Organisation, ...] = Field(
        (), description="org/model[@revision][:subfolder], shell patterns of local folders, or whole organisations"
    )
    ignore: tuple[Ignore, ...] = ()


class Distinct(yaml.SafeLoader):
    """Refuses a key that a mapping has already, which YAML forbids and PyYAML takes for the last word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: list[Any] = []
        for key, _ in node.value:
            if key.value in known:
                raise yaml.constructor.ConstructorError(None, None, f"a second key {key.value!r}", key.start_mark)
            known.append(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Found:
    """origin: the file that it was read from; None where there is none. note: why one was left out."""

    config: Config
    origin: str | None = None
    note: str = ""


def find_config(path: Path | None = None, words: Iterable[str] = ()) -> Found:
    """Read `path`, or what lies in the working directory and did not come with an adapter.

    words: of the command line; a folder among them may be what is scanned, whatever it holds. Raises UsageError that names
    each entry at fault.
    """
    named = path is not None
    if path is None:
        path = next((p for p in (Path(CONFIG_FILE), Path(PYPROJECT)) if p.is_file()), None)
        if path is None:
            return Found(Config())
        if holds_settings(path) and (folder := came_with(path, words)):
            return Found(
                Config(),
                note=f"{path} was left out: it lies in {folder}, which holds or is what is scanned, and an adapter does "
                f"not say how it is judged; if it is yours, give --config {path}",
            )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            table = tomllib.loads(text).get("tool", {}).get("hf-ci")
            if table is None and named:
                raise UsageError(f"{path}: no table [tool.hf-ci]", "add it, or name another file")
            if table is None:
                return Found(Config())
        else:
            table = yaml.load(text, Loader=Distinct)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "name a file, or leave --config out") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}", "correct the file or remove it") from error
    try:
        return Found(Config.model_validate({} if table is None else table), path.as_posix())
    except ValidationError as error:
        faults = "; ".join(explain(fault) for fault in error.errors())
        raise UsageError(f"{path}: {faults}", "hf-ci init writes a sample") from error


def holds_settings(path: Path) -> bool:
    """Whether there may be any for us in it: most projects' pyproject.toml has none."""
    return path.name == CONFIG_FILE or path.stat().st_size > most_bytes(path.name) or b"hf-ci" in path.read_bytes()


def came_with(path: Path, words: Iterable[str]) -> Path | None:
    """The folder around `path`, or around what it links to, that holds an adapter or is named among `words`."""
    named = {os.path.realpath(word) for word in words if os.path.isdir(word)}
    # a file that may be scanned by itself stands for its folder
    named |= {
        os.path.realpath(Path(word).parent) for word in words if WEIGHTS_LIKE.search(word) and os.path.isfile(word)
    }
    around = [folder for file in (path.absolute(), path.resolve()) for folder in file.parents]
    holding = (f for f in around if os.path.realpath(f) in named or any(os.path.lexists(f / name) for name in FILES))
    return next(holding, None)


def line_of(origin: str | None, entry: str) -> str:
    """Where an entry of adapters stands in the file that it was read from: "FILE, line N", as far as that can be told."""
    if origin is None:
        return "adapters"
    whole = re.compile(rf"(?<![^\s'\"\[,]){re.escape(entry)}(?![^\s'\"\],])")
    lines = enumerate(Path(origin).read_text(encoding="utf-8").splitlines(), 1)
    below = dropwhile(lambda line: not re.match(r"\s*[\"']?adapters\b", line[1]), lines)
    number = next((n for n, line in below if not line.lstrip().startswith("#") and whole.search(line)), None)
    return f"{origin}, line {number}" if number else f"{origin}: adapters"


def explain(fault: Mapping[str, Any]) -> str:
    where = [str(part) for part in fault["loc"] if part not in ("str", "Organisation")]
    at = ".".join(where) or "the file"
    if fault["type"] != "extra_forbidden":
        return f"{at}: {fault['msg']}"
    sections: dict[str, type[Section]] = {"scan": ScanSection, "adapters": Organisation, "ignore": Ignore}
    section = sections.get(where[0], Config)
    known = [flag_name(name) for name in (section if len(where) > 1 else Config).model_fields]
    close = get_close_matches(flag_name(where[-1]), known, n=1)
    return f"{at}: unknown key" + (f", did you mean {close[0]!r}?" if close else f", known are {', '.join(known)}")


def schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema()


SAMPLE = """\
# hf-ci: which adapters are scanned for backdoors, and how. `hf-ci config` shows every value and its origin.

scan:                      # by the names of the flags of `hf-ci scan`
  # pool: ./photos         # a few hundred unlabelled images of anything but your classes; they judge more surely
  num-images: 256

adapters:                  # what `hf-ci run` scans
  - ./adapters/*           # local folders, shell patterns
  # - org/model            # a repo on the Hub: main, or @revision, and :subfolder
  # - org: my-organisation # all its prompt-tuned CLIP adapters
  #   match: "*-clip-*"
  #   exclude: ["*-draft"]

ignore: []                 # accepted findings: all three keys are required
  # - fingerprint: 0000000000000000000000000000000000000000000000000000000000000000
  #   reason: planted on purpose, for a talk
  #   until: 2030-01-31
"""
