"""Whether a folder holds a prompt-tuned CLIP adapter, or a base model of one, as its small files and the names of its
tensors tell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_ci.errors import AdapterError, BaseModelError, NothingToScan
from hf_ci.files import CONFIG, PROMPT, WEIGHTS, most_bytes
from hf_ci.visible import cut

POSITIONS = ("end", "middle", "front")  # where the class name may stand in a prompt
BASES = ("clip", "siglip")  # model types of `transformers`; what sets each apart is in hf_ci.prompts.families

PROMPTS = {
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
}
PROMPT_TENSOR = re.compile(r"prompt|(^|[._])ctx([._]|$)|meta_net|context", re.IGNORECASE)  # as a prompt's are called


def read_whole(path: Path) -> bytes:
    """A small file, or an adapter's weights. Raises AdapterError, before anything is read, for one that is too large."""
    most = check_bytes(path)
    with path.open("rb") as file:  # it may grow meanwhile, or be no plain file
        content = file.read(most + 1)
    if len(content) > most:
        raise AdapterError(f"{path.name} has no end: {most} bytes were read", "it is none of a prompt's files")
    return content


def check_bytes(path: Path) -> int:
    """The most bytes that a file of this name may have. Raises AdapterError for one that has more."""
    size, most = path.stat().st_size, most_bytes(path.name)
    if size > most:
        raise AdapterError(
            f"{path.name} has {size / 1e6:,.0f} MB, at most {most / 1e6:,.0f} are read",
            "it is none of a prompt's files",
        )
    return most


def base_kind(folder: Path, name: object = None) -> str:
    """The model type of a base model. Raises BaseModelError for a folder without one, and for one of another type.

    name: what the model is called where it is not the folder.
    """
    name = name or folder
    advice = "give a CLIP, or a SigLIP of fixed resolution, in the form of transformers with --base"
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{name}: no config.json", advice)
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except AdapterError as error:
        raise BaseModelError(f"{name}: {error.message}", "fetch it again") from error
    if kind not in BASES:
        expected = " or ".join(map(repr, BASES))
        raise BaseModelError(f"{name}: model_type is {cut(repr(kind), 80)}, expected {expected}", advice)
    return str(kind)


def check_kind(folder: Path, read: Callable[[Path], bytes] = read_whole) -> dict[str, Any]:
    """The PEFT config of a prompt-tuned adapter.

    Raises NothingToScan where the folder holds none, or one of another kind. What says anywhere that it is a prompt, says
    nothing, or brings a file of ours or a prompt's tensors along, is never of another kind: who loads it may not look where
    we do. AdapterError then.
    """
    ours = (folder / PROMPT).is_file()
    if not (folder / CONFIG).is_file():
        if ours:
            raise AdapterError(f"there is a {PROMPT}, but no {CONFIG}", "fetch the whole adapter")
        raise NothingToScan(
            f"no adapter found: there is no {CONFIG}", "name the adapter's folder, as org/model:subfolder"
        )
    config = read_json(folder / CONFIG, read)
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind == "PROMPT_TUNING" and task in (None, "FEATURE_EXTRACTION"):
        for key in ("base_model_name_or_path", "revision"):
            if not isinstance(config.get(key), str | None):
                raise AdapterError(f"{CONFIG}: {key} is no text")
        return config
    found = f"peft_type {cut(repr(kind), 80)}" + (
        f", task_type {cut(repr(task), 80)}" if kind == "PROMPT_TUNING" else ""
    )
    known = isinstance(kind, str) and kind not in PROMPTS and not holds_prompt(folder / WEIGHTS)
    empty = kind != "PROMPT_TUNING" and not any((folder / name).is_file() for name in (WEIGHTS, "adapter_model.bin"))
    other = not ours and (known or empty)
    raise (NothingToScan if other else AdapterError)(
        f"not a prompt-tuned CLIP adapter: {found}, expected 'PROMPT_TUNING' for 'FEATURE_EXTRACTION'",
        "hf-ci scans prompts of CLIP; nothing is known about this adapter",
    )


def holds_prompt(weights: Path) -> bool:
    """Whether any tensor of another kind of adapter is called like one of a prompt's; what cannot be read may be."""
    from safetensors import safe_open

    if not weights.is_file():
        return False
    try:
        with safe_open(weights, framework="numpy") as file:
            return any(PROMPT_TENSOR.search(name) for name in file.keys())
    except Exception:
        return True


def read_json(path: Path, read: Callable[[Path], bytes] = read_whole) -> dict[str, Any]:
    """read: for whoever wants to know what was read."""
    try:
        value = json.loads(read(path))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(
            f"{path.name} is not readable JSON: {error}", "the file is damaged; fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path.name} holds a {type(value).__name__}, expected an object")
    return value
