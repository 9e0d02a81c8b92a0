"""What the commands share: stdout, files named by the user, one line for an error. Nothing else prints."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from hf_ci.errors import UsageError
from hf_ci.files import write_whole
from hf_ci.visible import visible

FormatName = Literal["text", "json", "sarif", "markdown", "github", "junit", "html"]
FormatOption = Annotated[FormatName, typer.Option(help="What goes to stdout.")]
OutputOption = Annotated[
    Optional[list[str]], typer.Option(metavar="FORMAT=PATH", help="Write a file as well. Repeatable.")
]
BaselineOption = Annotated[
    Optional[Path], typer.Option(metavar="REPORT", help="A JSON report whose findings are known and do not fail.")
]
VERDICT_COLOURS = {"clean": "green", "backdoored": "red", "inconclusive": "yellow"}


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Text: a line a target, and one that counts.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Text: every class, every warning in full, the settings.")
]


def detail_of(quiet: bool, verbose: bool) -> Literal["quiet", "normal", "verbose"]:
    """How much a text says. Raises UsageError."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    return "quiet" if quiet else "verbose" if verbose else "normal"


def columns() -> int:
    """Letters of a line: the terminal's less one, or of COLUMNS; 79 where nobody looks, and no more than can be read."""
    return min(max(shutil.get_terminal_size((80, 24)).columns - 1, 39), 99)


def wants_colour() -> bool:
    """Whether stdout is a terminal that has not been asked for none (NO_COLOR)."""
    wanted = sys.stdout.isatty() or os.environ.get("FORCE_COLOR")
    return bool(wanted) and not os.environ.get("NO_COLOR")


def painted(text: str, verdict: str, colour: bool = True) -> str:
    return typer.style(text, fg=VERDICT_COLOURS[verdict], bold=True) if colour else text


def parse_output(text: str, formats: Collection[str]) -> tuple[str, Path]:
    """FORMAT=PATH, checked before any work is done. Raises UsageError."""
    name, separator, path = text.partition("=")
    if not separator or name not in formats or not path:
        raise UsageError(f"--output {text}: expected FORMAT=PATH", f"FORMAT is one of {', '.join(formats)}")
    check_writable(Path(path), f"--output {text}")
    return name, Path(path)


def check_writable(path: Path, named: str) -> None:
    """Raises UsageError when a file cannot be written there, before any work is done for it."""
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK) or path.is_dir():
        raise UsageError(f"{named}: cannot write in {parent}", "name an existing folder")


def write_file(path: Path, content: str | bytes) -> None:
    """Complete or not at all. Raises UsageError when it cannot be written."""
    try:
        write_whole(path, content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def write_stdout(text: str) -> None:
    """Plain, never through a rich console: machine formats must not be wrapped or coloured."""
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone: the exit code still tells the verdict
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def speaks() -> bool:
    """Whether this process prints: under torchrun or accelerate launch, one speaks for all."""
    if "accelerate" not in sys.modules:
        return True
    from accelerate import PartialState

    main: bool = PartialState().is_main_process
    return main


def show(text: str) -> None:
    """Several lines on stderr."""
    print(printable(text.rstrip("\n")), file=sys.stderr)


def complain(text: str) -> None:
    print(printable(f"hf-ci: {text}".replace("\n", " ")), file=sys.stderr)


def printable(text: str) -> str:
    """Text that may hold names of others, as it can be shown: no escape codes for a terminal, no commands for a CI
    runner, which takes them from every line that begins with `::` and from every `##[`."""
    shown = visible(text, "?", keep="\n")
    return re.sub(r"(?m)^(\s*):(?=:)", r"\1: ", shown).replace("##[", "## [")
