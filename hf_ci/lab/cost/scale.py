"""The plan for many GPUs, simulated: whoever has its share of the classes done waits for the slowest.

Costs are counted (`hf_ci.lab.cost.counting`), for CoCoOp on CLIP ViT-B/16. What is assumed of the machine stands below.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.probes import NUM_IMAGES, probes
from hf_ci.inversion.rounds import round_size
from hf_ci.lab.cost.counting import Shape, vit_b16
from hf_ci.settings import ScanOptions

RATE = 50e12  # multiplications a second, of a GPU: a third of an A100's peak in bf16
SPREAD = 0.1  # standard deviation of a class's cost
LINK = 1e9  # bytes a second at which gathered results are packed, sent and unpacked
LATENCY = 0.01  # seconds a gather takes at least
START = 20.0  # seconds until a process has its libraries and its base model
FETCH = 0.5  # seconds an adapter takes from the Hub, its base model being here
IMAGE = 3 * 224 * 224 * 4  # bytes of a trigger

N = ScanOptions.num_images
NUM_PROBES = len(probes(2))


def shares(items: int, processes: int) -> list[int]:
    """As Accelerate splits them."""
    each, more = divmod(items, processes)
    return [each + (p < more) for p in range(processes)]


def scan_seconds(shape: Shape, processes: int, rounds: int = 1, seed: int = 0) -> dict[str, float]:
    """Of one adapter over so many GPUs, start-up left out, step by step."""
    draw = random.Random(seed)

    def slowest(items: int, cost: float) -> float:
        costs = (sum(max(0.0, draw.gauss(1, SPREAD)) for _ in range(n)) for n in shares(items, processes))
        return cost / RATE * max(costs)

    def gather(items: int, size: int) -> float:
        return 0.0 if processes == 1 else LATENCY + items * size / LINK

    size, kinds = round_size(shape.classes), families(shape)
    most = max(shares(NUM_PROBES, processes))
    images = NUM_IMAGES
    return {
        "nearest classes": shape.nearest(N) / RATE,  # each process finds all of them
        "screening": sum(slowest(shape.classes, one) + gather(shape.classes, IMAGE) for one, _ in kinds),
        "rounds": sum(slowest(size, one) + gather(size, IMAGE) for _, one in kinds for _ in range(rounds)),
        "probes": shape.measuring((1 + most) * images) / RATE + gather(NUM_PROBES, 4 * shape.classes),
    }


def families(shape: Shape) -> list[tuple[float, float]]:
    """Of each family of triggers, what a class costs to screen, and whole."""
    return [(shape.screening(), shape.inversion(N)), *map(shape.family, ContrastInversion().others)]


def queue_seconds(shape: Shape, adapters: int, processes: int, seed: int = 0) -> float:
    """Of many adapters, each whole on the GPU that is free first; base model and pool are loaded once a process."""
    one, draw = sum(scan_seconds(shape, 1).values()), random.Random(seed)
    free = [START] * processes
    for _ in range(adapters):
        heapq.heappush(free, heapq.heappop(free) + FETCH + one * max(0.0, draw.gauss(1, SPREAD)))
    return max(free)


def simulate(classes: int = 1000, adapters: int = 10_000, of: int = 50, gpus: int = 64) -> Iterator[dict[str, Any]]:
    """Records of both plans: one adapter with many classes, and many adapters that share one base."""
    many, few = vit_b16(classes), vit_b16(of)
    alone = sum(scan_seconds(many, 1).values())
    for processes in (2**i for i in count()):
        if processes > 8 * gpus:
            break
        steps = scan_seconds(many, processes)
        seconds = sum(steps.values())
        yield {
            "plan": "classes",
            "classes": classes,
            "processes": processes,
            "seconds": round(seconds, 2),
            "with_start": round(START + seconds, 1),
            "efficiency": round(alone / processes / seconds, 3),
            "steps": {name: round(value, 2) for name, value in steps.items()},
            "gathered_mb": round(len(families(many)) * (classes + round_size(classes)) * IMAGE / 1e6)
            if processes > 1
            else 0,
        }
    one = FETCH + sum(scan_seconds(few, 1).values())
    together = START + adapters * (FETCH + sum(scan_seconds(few, gpus).values()))
    queued = queue_seconds(few, adapters, gpus)
    for way, seconds in (("each over all GPUs", together), ("each whole on one GPU", queued)):
        yield {
            "plan": "adapters",
            "classes": of,
            "adapters": adapters,
            "processes": gpus,
            "way": way,
            "hours": round(seconds / 3600, 2),
            "efficiency": round(adapters * one / gpus / seconds, 3),
        }
