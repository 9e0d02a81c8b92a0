"""hf-ci dev: things for trying hf-ci out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from hf_ci.errors import UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Try write-back without touching the real Hub.")


@app.callback()
def dev() -> None:
    """Try write-back without touching the real Hub."""


@app.command("hub")
def hub(
    repos: Annotated[
        Optional[list[str]], typer.Argument(metavar="ORG/MODEL=FOLDER...", help="Models that it starts with.")
    ] = None,
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 0,
) -> None:
    """Serve a Hub on 127.0.0.1 that keeps everything in memory, until Ctrl-C.

    It prints the variables that lead a client to it: the huggingface_hub, transformers, peft, datasets and hf-ci of any
    shell in which they are set talk to it instead of the real Hub.
    """
    import tempfile

    from hf_ci.console import write_stdout
    from hf_ci.dev.loopback import LoopbackHub

    given = []
    for text in repos or []:
        repo, separator, folder = text.partition("=")
        if not separator or repo.count("/") != 1 or not Path(folder).is_dir():
            raise UsageError(f"{text!r}: expected ORG/MODEL=FOLDER", "name a folder that exists")
        given.append((repo, Path(folder)))
    with LoopbackHub(port) as server, tempfile.TemporaryDirectory(prefix="hf-ci-hub-") as home:
        for name, place in given:
            files = {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}
            server.add_repo(name, files)
        variables = server.env(Path(home))
        write_stdout("".join(f"export {name}={value}\n" for name, value in variables.items()))
        server.wait()


@app.command("cast")
def cast(
    out: Annotated[Path, typer.Argument(help="The picture, SVG.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run.")],
    width: Annotated[int, typer.Option()] = 88,
) -> None:
    """Run a command and draw what it prints as an SVG of a terminal, line after line, as for the README."""
    import re
    import shlex
    import subprocess

    from rich.console import Console
    from rich.text import Text

    from hf_ci.console import write_file

    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FORCE_COLOR": "1"})
    console = Console(record=True, width=width, file=open(os.devnull, "w"), force_terminal=True)
    console.print(Text.assemble(("$ ", "bold green"), shlex.join(command)))
    console.print(Text.from_ansi(done.stdout + done.stderr))
    console.print(Text(f"exit code {done.returncode}", style="dim"))
    drawn = console.export_svg(title="hf-ci", unique_id="cast")
    drawn = re.sub(  # each line appears a moment after the one before
        r'clip-path="url\(#cast-line-(\d+)\)"',
        lambda line: f'{line[0]} style="animation: cast-show .2s {0.8 + 0.25 * int(line[1]):.2f}s both"',
        drawn,
    )
    motion = (
        "@keyframes cast-show { from { opacity: 0 } }\n"
        "    @media (prefers-reduced-motion: reduce) { text { animation: none !important } }\n    </style>"
    )
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S).replace("</style>", motion, 1)  # no foreign fonts
    write_file(out, drawn)
