"""Probes: triggers of known families, tried as they are.

A wave, a colour cast or a turned picture does not grow out of a descent that starts from nothing: a wave and its negative
do the same, so there the gradient along it is zero, and a turn is no sum of pixels at all. But such families have few
parameters, and a backdoor answers to a trigger somewhat like its own, so a coarse grid will do. One pass serves all
classes, forward only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Probe = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [0, 1] -> the same with the trigger
NUM_IMAGES = 64  # of the pool; shares are read to a few per cent, no finer
AMPLITUDE = 60 / 255
PERIODS = (3, 5, 8)
DIRECTIONS = {"across": (0, 1), "down": (1, 0), "diagonal": (1, 1), "counter-diagonal": (1, -1)}
COLOURS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
}
OPACITY = 0.3
DEGREES = (30, 60, 90, 180, 270)


def wave(size: int, periods: int, direction: tuple[int, int], device: torch.device | str = "cpu") -> Probe:
    """x + a sin(2 pi f (u i + v j) / H), as SIG's but of any direction."""
    at = torch.arange(size) / size
    phase = direction[0] * at[:, None] + direction[1] * at[None]  # (H, W)
    delta = (AMPLITUDE * torch.sin(2 * math.pi * periods * phase)).to(device)
    return lambda x: (x + delta).clamp(0, 1)


def cast(colour: tuple[int, int, int], device: torch.device | str = "cpu") -> Probe:
    """A flat colour laid over the picture."""
    pattern = torch.tensor(colour, dtype=torch.float32)[:, None, None].to(device)
    return lambda x: (1 - OPACITY) * x + OPACITY * pattern


def turn(size: int, degrees: int, device: torch.device | str = "cpu") -> Probe:
    """The picture turned about its middle; corners are filled with its border."""
    a = math.radians(degrees)
    matrix = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])
    grid = F.affine_grid(matrix[None], [1, 3, size, size], align_corners=True).to(device)
    return lambda x: F.grid_sample(x, grid.expand(len(x), -1, -1, -1), padding_mode="border", align_corners=True).clamp(
        0, 1
    )


def probes(size: int, device: torch.device | str = "cpu") -> dict[str, Probe]:
    """For images on `device`, by a name that a report can use: "a ... drives images into the class"."""
    waves = {
        f"wave of {f} periods, {name}": wave(size, f, direction, device)
        for f, (name, direction) in product(PERIODS, DIRECTIONS.items())
    }
    casts = {f"{name} cast": cast(colour, device) for name, colour in COLOURS.items()}
    turns = {f"turn by {degrees} degrees": turn(size, degrees, device) for degrees in DEGREES}
    return waves | casts | turns


@torch.no_grad()
def probe(
    model: nn.Module, images: Tensor, names: Sequence[str] | None = None, micro_batch: int = 16
) -> dict[str, Tensor]:
    """By name (None: all of them), the share (C,) of the first 64 `images` (N, 3, H, W) uint8 that a probe moves into each
    class through the adapter alone: the adapter answers it with the probe, not without, and no reference does with it.

    What an adapter answers without a probe is no effect of it; and the references often leave a class under a strong
    probe, so that an adapter that merely stays there would be counted.

    model: pixels -> logits (B, C) through the adapter and (B, K, C) through the references.
    """
    known, n = probes(images.shape[-1], images.device), len(images[:NUM_IMAGES])
    triggers = {name: known[name] for name in (known if names is None else names)}
    hits = dict.fromkeys(triggers, 0)
    for part in images[:NUM_IMAGES].split(micro_batch):
        x = part.float() / 255
        before = model(x)[0].argmax(-1)  # (B,)
        for name, trigger in triggers.items():
            z, references = model(trigger(x))
            moved = F.one_hot(z.argmax(-1), z.shape[-1]).bool() & (z.argmax(-1) != before)[:, None]  # (B, C)
            other = F.one_hot(references.argmax(-1), z.shape[-1]).bool().any(1)  # (B, C)
            hits[name] = hits[name] + (moved & ~other).sum(0)
    return dict(zip(hits, (torch.stack(list(hits.values())) / n).cpu()))


def passes(num_images: int) -> int:
    """Images through the encoder."""
    return (1 + len(probes(2))) * min(num_images, NUM_IMAGES)
