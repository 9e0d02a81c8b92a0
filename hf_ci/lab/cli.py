"""`hf-ci lab`: make adapters on purpose. The only place of the lab that prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

Data = Annotated[
    str, typer.Option(help="Folder with train and test files, or a data set's Hub id; an image and a label column.")
]
Out = Annotated[Path, typer.Option(help="Folder of the new adapter.")]
Base = Annotated[str, typer.Option(help="Base model: a folder or a Hub id.")]
Method = Annotated[Literal["coop", "cocoop", "kgcoop"], typer.Option()]
Shots = Annotated[int, typer.Option(min=1, help="Photos of each class.")]
Seed = Annotated[int, typer.Option()]
Epochs = Annotated[int, typer.Option(min=1)]
Rate = Annotated[Optional[float], typer.Option("--lr", help="Learning rate.", show_default="by the text tower's width")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]


@app.callback()
def lab() -> None:
    """Make adapters on purpose, clean and poisoned, to see how far a scan can be trusted on your model and data."""


@app.command("tune")
def tune_(
    data: Data,
    out: Out,
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    class_specific: Annotated[bool, typer.Option("--class-specific", help="A context for each class (CoOp).")] = False,
    position: Annotated[Literal["end", "middle", "front"], typer.Option(help="Of the class name.")] = "end",
    words: Annotated[str, typer.Option(help="The context starts from these words.")] = "a photo of a",
    epochs: Epochs = 10,
    lr: Rate = None,
    device: Device = "cpu",
) -> None:
    """Tune a clean prompt and write it as a stock PEFT adapter with a card."""
    from hf_ci.lab.make import Workbench, check_empty, make_clean
    from hf_ci.lab.tune import Recipe

    check_empty(out)
    recipe = Recipe(method, shots, seed, words, class_specific, position, epochs, lr=lr)
    _print(out, make_clean(Workbench.open(data, base, device), recipe, out))


@app.command("poison")
def poison(
    data: Data,
    out: Out,
    target: Annotated[str, typer.Option(help="Target class, by name or number.")],
    attack: Annotated[Literal["badclip"], typer.Option()] = "badclip",
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    epochs: Epochs = 10,
    lr: Rate = None,
    device: Device = "cpu",
) -> None:
    """Tune a prompt with a backdoor. The card says so."""
    from hf_ci.lab.make import Workbench, check_empty, make_poisoned
    from hf_ci.lab.tune import Recipe

    check_empty(out)
    bench = Workbench.open(data, base, device)
    _print(
        out, make_poisoned(bench, Recipe(method, shots, seed, epochs=epochs, lr=lr), attack, bench.target(target), out)
    )


@app.command("demo")
def demo(data: Data, out: Out, base: Base = "hf-ci-clip-64", seed: Seed = 0) -> None:
    """Make the demo adapters that ship with hf-ci."""
    from hf_ci.lab.make import make_demos

    for name, measured in make_demos(data, out, base, seed).items():
        _print(out / name, measured)


def _print(folder: Path, measured: dict[str, float]) -> None:
    typer.echo(f"{folder}: " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in measured.items()))
