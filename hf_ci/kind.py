"""Whether a folder holds a prompt-tuned CLIP adapter, as its small files tell; the weights are not looked at."""

from __future__ import annotations

import json
from pathlib import Path

from hf_ci.errors import AdapterError, NothingToScan
from hf_ci.files import CONFIG, PROMPT

POSITIONS = ("end", "middle", "front")  # where the class name may stand in a prompt


def check_kind(folder: Path, read=Path.read_bytes) -> dict:
    """The PEFT config of a prompt-tuned adapter.

    Raises NothingToScan where the folder holds none, or one of another kind. What says anywhere that it is a prompt, or
    brings a file of ours along, is never of another kind: who loads it may not look where we do. AdapterError then.
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
    found = f"peft_type {kind!r}" + (f", task_type {task!r}" if kind == "PROMPT_TUNING" else "")
    raise (AdapterError if ours or kind == "PROMPT_TUNING" else NothingToScan)(
        f"not a prompt-tuned CLIP adapter: {found}, expected 'PROMPT_TUNING' for 'FEATURE_EXTRACTION'",
        "hf-ci scans prompts of CLIP; nothing is known about this adapter",
    )


def read_json(path: Path, read=Path.read_bytes) -> dict:
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
