"""Where a step's time goes: the image encoder, the text encoder, and the rest, each there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "a step"
BACKWARD = "autograd::engine::evaluate_function"


@contextmanager
def marked(model: nn.Module, method: str, name: str) -> Iterator[None]:
    """Within this block, calls of the method stand under `name` in a profile."""
    plain = getattr(model, method)

    def call(*args: object) -> object:
        with record_function(name):
            return plain(*args)

    setattr(model, method, call)
    try:
        yield
    finally:
        delattr(model, method)


def shares(way: Callable[[], object], names: list[str], device: str = "cpu") -> dict[str, float]:
    """The share of `way`'s time that calls marked with each name take, there and back; "rest" is what remains.

    A way back is told by its sequence number, which it has from the operation that it belongs to.
    """
    gpu = device == "cuda"
    way()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as made:
        with record_function(STEP):
            way()
            if gpu:
                torch.cuda.synchronize()
    events = made.events()
    seconds: Callable[[FunctionEvent], float] = lambda e: e.device_time_total if gpu else e.cpu_time_total

    def mark(event: FunctionEvent | None) -> str | None:
        while event is not None and event.name not in names:
            event = event.cpu_parent
        return None if event is None else str(event.name)

    whole = sum(seconds(e) for e in events if e.name == STEP)
    taken = {name: sum(seconds(e) for e in events if e.name == name) for name in names}
    origin = {e.sequence_nr: name for e in events if e.sequence_nr >= 0 and (name := mark(e))}
    for event in events:
        if event.name.startswith(BACKWARD) and (name := origin.get(event.sequence_nr)):
            taken[name] += seconds(event)
    found = {name: value / whole for name, value in taken.items()}
    return found | {"rest": 1 - sum(found.values())}
