"""Records of measurements: a file of JSON lines, one a measurement, which a run that was stopped goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_ci.errors import UsageError


def read_records(path: Path) -> list[dict[str, Any]]:
    """All complete lines: a killed run may have left half of one."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_some(path: Path, command: str) -> list[dict[str, Any]]:
    """Raises UsageError when there is no record in it; command: what would have written some."""
    if not (records := read_records(path)):
        raise UsageError(f"{path} holds no records", f"name the file that {command} wrote")
    return records


@contextmanager
def appending(out: Path) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that writes a record at once and returns it. The half line that a killed run has left goes first."""
    if out.is_file() and not out.read_bytes().endswith(b"\n"):
        out.write_text("".join(json.dumps(record) + "\n" for record in read_records(out)), encoding="utf-8")
    with out.open("a", encoding="utf-8") as file:

        def append(record: dict[str, Any]) -> dict[str, Any]:
            file.write(json.dumps(record) + "\n")
            file.flush()
            return record

        yield append
