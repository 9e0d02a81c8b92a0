"""Options that several commands of the lab share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

Data = Annotated[
    str, typer.Option(help="Folder with train and test files, or a data set's Hub id; an image and a label column.")
]
Out = Annotated[Path, typer.Option(help="Folder of the new adapter.")]
Base = Annotated[str, typer.Option(help="Base model: a folder or a Hub id.")]
MethodName = Literal["coop", "cocoop", "kgcoop", "maple", "ivlp", "promptsrc", "vpt-shallow", "vpt-deep"]
Method = Annotated[MethodName, typer.Option()]
AttackName = Literal[
    "badclip",
    "blended",
    "siba",
    "wanet",
    "wanet-strong",
    "badnets",
    "sig",
    "baple",
    "learned-8",
    "badclip-margin",
    "badclip-adaptive",
    "colour-cast",
    "rotation",
    "one-source",
    "frame",
    "patch-anywhere",
    "photo-blend",
    "blur",
    "jpeg",
    "grey",
    "quantise",
    "smooth-noise",
    "static",
    "decoys",
    "dead-unit",
    "adaptive-near",
    "adaptive-faint",
    "adaptive-unseen",
    "adaptive-level",
    "adaptive-two-keys",
    "adaptive-drift",
]
Shots = Annotated[int, typer.Option(min=1, help="Photos of each class.")]
Seed = Annotated[int, typer.Option()]
Epochs = Annotated[int, typer.Option(min=1)]
Rate = Annotated[Optional[float], typer.Option("--lr", help="Learning rate.", show_default="by the text tower's width")]
Optimiser = Annotated[Literal["sgd", "adam"], typer.Option(help="SGD with momentum, or Adam.")]
Batch = Annotated[int, typer.Option(min=1, help="Photos of a step.")]
Words = Annotated[str, typer.Option(help="The context starts from these words.")]
ClassSpecific = Annotated[bool, typer.Option("--class-specific", help="A context for each class (CoOp).")]
AnonymousNames = Annotated[
    bool, typer.Option("--anonymous-names", help='Call the classes "category a", ...: names that mean nothing.')
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Spec = Annotated[Path, typer.Argument(help="As for bench.")]
DataRoot = Annotated[Path, typer.Option(resolve_path=True, help="Folder that holds the data sets' folders.")]
KeptZoo = Annotated[Path, typer.Option(resolve_path=True, help="Models are kept here.")]
Resumed = Annotated[Path, typer.Option(help="JSON lines; what is in it already is not done again.")]
ResumedWithCard = Annotated[
    Path, typer.Option(help="JSON lines; what is in it already is not done again. A card goes beside it.")
]
