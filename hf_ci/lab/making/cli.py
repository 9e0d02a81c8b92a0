"""The lab's commands that make models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_ci.lab.options import (
    AnonymousNames,
    AttackName,
    Base,
    Batch,
    ClassSpecific,
    Data,
    Device,
    Epochs,
    Method,
    Optimiser,
    Out,
    Rate,
    Seed,
    Shots,
    Words,
)


def tune(
    data: Data,
    out: Out,
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    class_specific: ClassSpecific = False,
    position: Annotated[Literal["end", "middle", "front"], typer.Option(help="Of the class name.")] = "end",
    words: Words = "a photo of a",
    anonymous_names: AnonymousNames = False,
    epochs: Epochs = 10,
    batch: Batch = 8,
    optimiser: Optimiser = "sgd",
    lr: Rate = None,
    device: Device = "cpu",
) -> None:
    """Tune a clean prompt and write it as a stock PEFT adapter with a card."""
    from hf_ci.lab.making.make import Workbench, check_empty, make_clean
    from hf_ci.lab.making.tune import Recipe

    check_empty(out)
    recipe = Recipe(method, shots, seed, words, class_specific, position, epochs, batch, optimiser, lr)
    _print(out, make_clean(Workbench.open(data, base, device, anonymous_names=anonymous_names), recipe, out))


def poison(
    data: Data,
    out: Out,
    target: Annotated[str, typer.Option(help="Target class, by name or number.")],
    attack: Annotated[AttackName, typer.Option()] = "badclip",
    rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the photos that attacks by relabelling poison.")
    ] = 0.1,
    method: Method = "cocoop",
    base: Base = "hf-ci-clip-64",
    shots: Shots = 16,
    seed: Seed = 0,
    class_specific: ClassSpecific = False,
    words: Words = "a photo of a",
    anonymous_names: AnonymousNames = False,
    epochs: Epochs = 10,
    batch: Batch = 8,
    optimiser: Optimiser = "sgd",
    lr: Rate = None,
    pool: Annotated[
        str, typer.Option(help="Images that an adaptive attack rehearses a scan on; as for scan.")
    ] = "builtin",
    device: Device = "cpu",
) -> None:
    """Tune a prompt with a backdoor. The card says so; beside OUT lie the trigger and a picture of it."""
    from hf_ci.lab.attacks import ATTACKS
    from hf_ci.lab.making.make import Workbench, check_empty, make_poisoned
    from hf_ci.lab.making.triggers import keep_trigger
    from hf_ci.lab.making.tune import Recipe

    check_empty(out)
    bench = Workbench.open(data, base, device, anonymous_names=anonymous_names)
    recipe = Recipe(method, shots, seed, words, class_specific, "end", epochs, batch, optimiser, lr, poison_rate=rate)
    rehearsed = bench.rehearsed(pool) if ATTACKS[attack].rehearses else None
    made = make_poisoned(bench, recipe, attack, bench.target(target), out, pool=rehearsed)
    keep_trigger(made.trigger, bench.test.images[0], out)
    _print(out, made.measured)


def demo(
    data: Annotated[str, typer.Option(help="Folder that holds tiny_imagenet, cifar10 and flowers17.")],
    out: Out,
    base: Base = "hf-ci-clip-64",
    seed: Seed = 0,
) -> None:
    """Make the demo adapters that ship with hf-ci."""
    from hf_ci.lab.making.make import make_demos

    for name, measured in make_demos(data, out, base, seed).items():
        _print(out / name, measured)


def _print(folder: Path, measured: dict[str, float]) -> None:
    typer.echo(f"{folder}: " + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in measured.items()))
