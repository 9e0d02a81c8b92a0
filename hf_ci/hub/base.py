"""The frozen CLIP that an adapter was tuned on: the embedded one, a local folder, or a Hub repo."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from hf_ci.errors import BaseModelError, NothingToScan
from hf_ci.files import ENCODERS, INDEX, weights_of
from hf_ci.hub.client import download, is_merged, resolve
from hf_ci.hub.names import HUB, is_folder, may_be_repo
from hf_ci.hub.target import sha256
from hf_ci.kind import base_kind

EMBEDDED = "hf-ci-clip-64"  # no namespace: no repo on the Hub can carry this id
EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "clip"
NEEDED = (
    "config.json",
    ENCODERS,
    INDEX,
    "preprocessor_config.json",
    "processor_config.json",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class BaseModel:
    """`revision` is a commit sha on the Hub, the sha256 of the weights for a folder; of shards, that of their sha256s."""

    id: str
    revision: str
    folder: Path

    @property
    def digest(self) -> str:
        """Changes whenever anything does that a forward pass depends on: weights, config, tokenizer, processor."""
        small = [name for name in NEEDED if name not in (ENCODERS, INDEX) and (self.folder / name).is_file()]
        return " ".join([self.revision, *(sha256(self.folder / name) for name in small)])


def named_base(model: str, revision: str | None, override: str | None = None) -> tuple[str, str | None]:
    """Id and revision of an adapter's base model: what the adapter names, or `override` (a folder or id[@revision]).

    An adapter's own word is good for the embedded model and the Hub alone: a folder could have come with it, and hide its
    backdoor. Raises BaseModelError for anything else.
    """
    if override is None:
        if model and model != EMBEDDED and not may_be_repo(model):
            raise BaseModelError(
                f"the adapter names {model!r} as its base model, a folder on the machine where it was tuned",
                "name the CLIP that it was tuned on with --base: a Hub id, or a folder that you trust",
            )
        return model, revision
    id, _, at = (override, "", "") if is_folder(override) else override.partition("@")
    return id, at or None


def fetch_base(id: str, revision: str | None = None) -> BaseModel:
    """Raises BaseModelError when there is no such model or it is of a kind that is not read, HubError when the Hub cannot be asked, UsageError when `id`
    is both a folder here and an id on the Hub."""
    if not id:
        raise BaseModelError("the adapter names no base model", "name it with --base")
    if id == EMBEDDED or is_folder(id):
        folder = EMBEDDED_FOLDER if id == EMBEDDED else Path(id)
        if not weights_of(folder):
            raise BaseModelError(f"base model {id!r}: no {ENCODERS} in {folder}", "only safetensors are read")
        base_kind(folder, f"base model {id!r}")
        return BaseModel(id, revision_of(folder), folder)
    id = id.removeprefix(HUB)
    try:
        snapshot = resolve(id, revision)
    except NothingToScan as error:
        raise BaseModelError(f"base model: {error.message}", "name another one with --base") from error
    sha, present = snapshot.sha, snapshot.paths
    shards = [p for p in present if re.fullmatch(r"model-.+\.safetensors", p) and ENCODERS not in present]
    wanted = sorted(present & set(NEEDED)) + sorted(shards)
    if not any(p.endswith(".safetensors") for p in wanted):
        raise BaseModelError(
            f"base model {id}@{sha[:7]} has no safetensors weights",
            "name a revision that has them (org/model with --base and a revision such as refs/pr/N)",
        )
    if "config.json" not in present:
        raise BaseModelError(
            f"base model {id}@{sha[:7]}: no config.json", "name the same model in the form of transformers with --base"
        )
    base_kind(download(id, sha, ["config.json"]), f"base model {id}@{sha[:7]}")  # before gigabytes come
    return BaseModel(id, sha, download(id, sha, wanted))


def revision_of(folder: Path) -> str:
    """sha256 of a folder's weights; of shards, that of their names and sha256s, with their index's."""
    parts = weights_of(folder)
    if len(parts) == 1 and parts[0].name == ENCODERS:
        return sha256(parts[0])
    lines = [f"{sha256(path)}  {path.name}" for path in (*parts, folder / INDEX)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_merged(id: str, revision: str | None, base: BaseModel) -> list[str]:
    """Warnings about a base model that an adapter names by `id` and `revision`, and that turned out to be `base`.

    Raises BaseModelError where it is no part of that repo yet: the adapter's author may have put it into a pull request.
    """
    if id == EMBEDDED or revision in (None, "main"):
        return []
    merged = is_merged(id.removeprefix(HUB), revision, base.revision)
    if merged is None:
        return [
            f"offline, it is not known whether revision {revision[:40]} of the base model {id} is on a branch of it"
        ]
    if not merged:
        raise BaseModelError(
            f"the adapter names revision {revision[:40]} of {id} as its base model, which is on no branch and no tag: "
            "anybody can put a model there, in a pull request",
            f"if you trust it, give --base {id}@{base.revision}",
        )
    return []
