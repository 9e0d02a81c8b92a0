"""hf-ci convert: stock PEFT of a checkpoint that training code saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from hf_ci.console import complain, printable, write_stdout
from hf_ci.errors import NothingToScan, UsageError


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A file, its folder, or org/model[@revision][:path].", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder that does not exist yet.", show_default=False)],
    base: Annotated[Optional[str], typer.Option(help="The CLIP that it was tuned on.")] = None,
    classes: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="Class names, one a line, if it does not tell.")
    ] = None,
    position: Annotated[
        Optional[Literal["end", "middle", "front"]],
        typer.Option(help="Where the class name stands, if it does not tell."),
    ] = None,
) -> None:
    """Make a PEFT adapter of a checkpoint of CoOp, CoCoOp, KgCoOp, ProGrad, BadCLIP, BAPLe, MaPLe, IVLP, PromptSRC or VPT.

    Nothing in the checkpoint is run. It is not scanned: hf-ci scan takes either.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", "name another folder with --out")
    from hf_ci.hub import fetch_base, fetch_text
    from hf_ci.places import check_base
    from hf_ci.settings import read_class_names

    names = read_class_names(classes) if classes else None
    if base is not None:
        check_base(base)
    fetched = fetch_text(checkpoint)
    if fetched.checkpoint is None:
        raise NothingToScan(f"no checkpoint found in {checkpoint}", "name the file; an adapter needs no conversion")
    from hf_ci.checkpoints.read import read_checkpoint
    from hf_ci.prompts import FrozenCLIP, PromptedCLIP, load_clip, write_adapter

    clips: dict[Path, FrozenCLIP] = {}  # by folder

    def load(folder: Path) -> FrozenCLIP:
        return clips.setdefault(folder, load_clip(folder))

    adapter, remarks = read_checkpoint(fetched.folder, fetched.checkpoint, fetch_base, load, base, names, position)
    (clip,) = clips.values()
    PromptedCLIP.from_adapter(adapter, clip)  # raises where it does not fit its base model
    try:
        write_adapter(adapter, out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror or error}", "nothing was written") from error
    for remark in [*remarks, *fetched.remarks]:
        complain(remark)
    shown = ", ".join(adapter.class_names[:5]) + (", ..." if len(adapter.class_names) > 5 else "")
    what = f"{adapter.method}, {len(adapter.class_names)} classes ({shown}), on {adapter.base_model}"
    write_stdout(printable(f"{out}: {what}, class name at the {adapter.class_token_position}\n"))
