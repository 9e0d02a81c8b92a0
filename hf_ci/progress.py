"""Progress of a scan: an object that is passed down, with a do-nothing default for library users."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from hf_ci.certain import certain
from hf_ci.errors import Inconclusive
from hf_ci.visible import in_one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

LONG = 600  # seconds to go that are worth a word, where no bar shows them


class Inverted(Protocol):
    """What a bar shows of an `hf_ci.inversion.Inversion`."""

    @property
    def c(self) -> int: ...

    @property
    def loss(self) -> float: ...

    @property
    def asr(self) -> float: ...


class Silent:
    def step(self, text: str) -> None:
        """Something that may last has begun."""

    def inversions(self, target: str, class_names: Sequence[str], total: int) -> None:
        """The classes of one target are about to be inverted, in `total` steps or more."""

    def inverted(self, inversion: Inverted) -> None:
        """One class is done, or screened."""

    def count(self, text: str, done: int, total: int) -> None:
        """So many of `total` are done, elsewhere."""

    def done(self) -> None:
        """The target is done, or has failed."""


class Bar(Silent):
    """A bar on stderr that names class, loss and ASR as they come."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Progress | None = None
        self.names: Sequence[str] = ()

    def _start(self) -> Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        live.start()
        self.task = live.add_task("", total=None)
        return live

    def step(self, text: str) -> None:
        if self.live is None:
            self.live = self._start()
        self.live.update(self.task, description=in_one_line(text))

    def inversions(self, target: str, class_names: Sequence[str], total: int) -> None:
        self.names = class_names
        live = certain(self.live)
        live.update(self.task, description=in_one_line(f"{target}: inverting"), total=total, completed=0)

    def inverted(self, inversion: Inverted) -> None:
        found = f"{self.names[inversion.c]}: loss {inversion.loss:.2f}, ASR {inversion.asr:.0%}"
        certain(self.live).update(self.task, advance=1, description=in_one_line(found))

    def count(self, text: str, done: int, total: int) -> None:
        self.step(text)
        certain(self.live).update(self.task, completed=done, total=total)

    def done(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def within(timeout: float, started: float, target: str, total: int, progress: Silent) -> Callable[[Inverted], None]:
    """`progress.inverted`, which says once on stderr when a scan of `total` steps will take long, unless a bar shows it.

    It raises Inconclusive when `timeout` seconds have passed since `started` (of time.perf_counter); 0: never.
    """
    begun, done, said = time.perf_counter(), 0, isinstance(progress, Bar)

    def inverted(inversion: Inverted) -> None:
        nonlocal done, said
        progress.inverted(inversion)
        done += 1
        now = time.perf_counter()
        to_go = (now - begun) / done * (total - done)
        if not said and to_go > LONG and now - begun > 5:
            said = True
            print(f"hf-ci: {in_one_line(target)}: about {to_go / 60:.0f} minutes to go", file=sys.stderr)
        if timeout and now - started > timeout:
            raise Inconclusive(
                f"not done after {timeout:g} seconds, which --timeout allows",
                "the same command goes on from there; more time, fewer --num-images or several --num-processes help",
            )

    return inverted


def on_stderr() -> Silent:
    """A bar where someone is looking, nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        return Silent()
    from rich.console import Console

    return Bar(Console(stderr=True))
