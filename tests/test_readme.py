"""The README's commands exist, with the options that it shows, and its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from hf_ci.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WHOLE = sorted(set(re.findall(r"^    (?:.* && )?(hf-ci .*?)(?:  +#.*)?$", README, re.M)))  # as they may be typed
COMMANDS = WHOLE + sorted({found for found in re.findall(r"`(hf-ci [^`]+)`", README) if "\n" not in found})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    group, context = typer.main.get_command(app), None
    while words and hasattr(group, "commands"):
        assert words[0].startswith("-") or words[0] in group.commands, command
        if words[0].startswith("-"):
            break
        context = group.make_context(words[0], [], parent=context, resilient_parsing=True)
        group, words = group.commands[words[0]], words[1:]
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    known = {name for parameter in group.params for name in parameter.opts} | {"--help", "-h"}
    assert given <= known, command
    if command in WHOLE:
        group.make_context(words[0] if words else "", words, parent=context)
    elif not hasattr(group, "commands"):
        group.make_context(words[0] if words else "", words, parent=context, resilient_parsing=True)


def test_there_are_commands_and_pictures():
    assert len(COMMANDS) > 25
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
