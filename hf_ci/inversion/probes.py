"""Probes: triggers of known families, tried as they are.

A wave, a colour cast or a turned picture does not grow out of a descent that starts from nothing: a wave and its
negative do the same, so there the gradient along it is zero, and a turn, a warp or a blur is no sum of pixels at all.
But such families have few parameters, and a backdoor answers to a trigger somewhat like its own, so a coarse grid will
do. One pass serves all classes, forward only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.inversion import maps
from hf_ci.inversion.engine import read_arrays, write_arrays

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
PROBE_KINDS = ("waves", "colour casts", "turned pictures", "warps", "blur", "JPEG", "loss of colour", "few levels")
FLOWS = (1, 2)  # seeds of the warps
CELLS, SHIFT = 4, 1 / 16  # of a flow, along a side; by how much of it pixels move on average
SIGMAS = (1, 2)  # of a blur, pixels of 64
QUALITY, LEVELS = 10, 4  # of JPEG, and of each channel
UNTOUCHED = "untouched"  # stands beside the probes' names


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
    return sampled(F.affine_grid(matrix[None], [1, 3, size, size], align_corners=True).to(device))


def warp(size: int, seed: int, device: torch.device | str = "cpu") -> Probe:
    """The picture moved along a smooth random flow, as WaNet's but seen with the eye."""
    flow = torch.rand(1, 2, CELLS, CELLS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    flow = 2 * SHIFT * flow / flow.abs().mean()  # the side is 2 long
    flow = F.interpolate(flow, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)  # (1, H, W, 2)
    return sampled((F.affine_grid(torch.eye(2, 3)[None], [1, 3, size, size], align_corners=True) + flow).to(device))


def sampled(grid: Tensor) -> Probe:
    """The picture sampled at grid (1, H, W, 2), coordinates (x, y) in [-1, 1]."""
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
    warps = {f"warp {seed}": warp(size, seed, device) for seed in FLOWS}
    blurs: dict[str, Probe] = {
        f"blur of {sigma} in 64 pixels": partial(maps.blur, sigma=sigma * size / 64) for sigma in SIGMAS
    }
    losses: dict[str, Probe] = {
        f"JPEG of quality {QUALITY}": partial(maps.jpeg, quality=QUALITY),
        "loss of colour": maps.grey,
        f"quantisation to {LEVELS} levels": partial(maps.quantise, levels=LEVELS),
    }
    return waves | casts | turns | warps | blurs | losses


class Probed:
    """What the image encoder makes of a pool, untouched, and of its first 64 images under each probe: the same for every
    adapter on one CLIP, so that it is found once, when first asked for.

    encode: pixels (B, 3, H, W) in [0, 1] -> features (B, D); images: the pool (N, 3, H, W) uint8, on the device; place: a
    folder where features are kept for other runs, whose name stands for all that they depend on; None: in memory alone.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], images: Tensor, place: Path | None = None):
        self.encode, self.pool, self.images, self.place = encode, images, images[:NUM_IMAGES], place
        self._features: dict[str, Tensor] = {}

    @cached_property
    def known(self) -> dict[str, Probe]:
        return probes(self.images.shape[-1], self.images.device)

    @torch.no_grad()
    def features(self, name: str, micro_batch: int = 16) -> Tensor:
        """(n, D) of the images under a probe, or of the whole pool UNTOUCHED."""
        if name not in self._features:
            kept = read_arrays(self.place, name).get("features")
            images = self.pool if name == UNTOUCHED else self.images
            if kept is None or len(kept) != len(images):
                change: Probe = self.known.get(name, lambda x: x)
                parts = [self.encode(change(part.float() / 255)) for part in images.split(micro_batch)]
                self._features[name] = torch.cat(parts)
                write_arrays(self.place, name, {"features": self._features[name].cpu().numpy()})
            else:
                self._features[name] = torch.from_numpy(kept).to(self.images.device)
        return self._features[name]


@torch.no_grad()
def probe(
    answers: Callable[[Tensor], tuple[Tensor, Tensor]],
    probed: Probed,
    names: Sequence[str] | None = None,
    micro_batch: int = 16,
) -> dict[str, Tensor]:
    """By name (None: all of them), the share (C,) of the images that a probe moves into each class through the adapter
    alone: the adapter answers it with the probe, not without, and no reference does with it.

    What an adapter answers without a probe is no effect of it; and the references often leave a class under a strong
    probe, so that an adapter that merely stays there would be counted.

    answers: features (B, D) -> logits (B, C) through the adapter and (B, K, C) through the references.
    """

    def answered(name: str) -> tuple[Tensor, Tensor]:
        """Which class each image is answered with (n,), and with which any reference does (n, C)."""
        parts = [answers(part) for part in probed.features(name)[:NUM_IMAGES].split(micro_batch)]
        z, references = (torch.cat(of) for of in zip(*parts))
        return z.argmax(-1), F.one_hot(references.argmax(-1), z.shape[-1]).bool().any(1)

    before, others = answered(UNTOUCHED)
    shares = {}
    for name in probed.known if names is None else names:
        now, other = answered(name)
        moved = F.one_hot(now, others.shape[-1]).bool() & (now != before)[:, None]  # (n, C)
        shares[name] = (moved & ~other).float().mean(0)
    return dict(zip(shares, torch.stack(list(shares.values())).cpu())) if shares else {}


@torch.no_grad()
def distance(answers: Callable[[Tensor], tuple[Tensor, Tensor]], probed: Probed, micro_batch: int = 16) -> float:
    """Share of the untouched pool that the adapter answers as no reference does; `answers` as for `probe`."""
    pairs = [answers(part) for part in probed.features(UNTOUCHED).split(micro_batch)]
    alone = [(z.argmax(-1)[:, None] != references.argmax(-1)).all(1) for z, references in pairs]
    return torch.cat(alone).float().mean().item()


def passes(num_images: int) -> int:
    """Images through the encoder."""
    return num_images + len(probes(2)) * min(num_images, NUM_IMAGES)
