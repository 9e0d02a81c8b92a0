"""What a scan costs, as ratios measured in one run: absolute times drift from machine to machine, ratios hardly do.

plain   the paper's recipe: every class, 1,000 images, 77 tokens a text, all rivals (`PlainPromptedCLIP`)
exact   every class inverted whole against all rivals, 256 images, one tree of texts an image
ours    the default scan: screening, rounds, probes, each image's nearest classes
bare    the frozen encoders alone, pixels to features and tokens to features and back, as many as in a step of ours

What is compared is timed in turn, and medians are taken. A record a measurement; what is in the file already, from a
machine of the same description, is not measured again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_ci.detect import DETECTORS, Contrast
from hf_ci.errors import UsageError
from hf_ci.hub import fetch_base
from hf_ci.hub.base import EMBEDDED
from hf_ci.inversion import Inversion
from hf_ci.inversion.invert import descend
from hf_ci.inversion.job import VERSION
from hf_ci.inversion.objective import margin
from hf_ci.inversion.probes import Probed, probe
from hf_ci.lab.benchmarks.records import appending, read_records
from hf_ci.lab.cost import scale
from hf_ci.lab.cost.alone import in_a_process, untuned
from hf_ci.lab.cost.counting import BATCH, Shape
from hf_ci.lab.cost.plain import PAPER_IMAGES, PlainPromptedCLIP
from hf_ci.lab.cost.profiling import marked, shares
from hf_ci.lab.cost.timing import STEP, Bench, bare_step, fresh, our_step, plain_step, rounded, timed
from hf_ci.prompts import BesideReferences, write_adapter
from hf_ci.settings import ScanOptions, pick_device

METHODS = ("cocoop", "coop")
RIVALS = ("neural-cleanse", "pixel-backdoor")
TOGETHER = 10  # adapters that are scanned in one run

Case = tuple[dict[str, Any], Callable[[], dict[str, Any]]]  # what is measured, and how


def measure_speed(
    out: Path,
    sizes: Sequence[int],
    parts: Sequence[str] | None = None,
    base: str = EMBEDDED,
    device: str = "cpu",
    repeats: int = 3,
    images: int = ScanOptions.num_images,
) -> Iterator[dict[str, Any]]:
    """Yields each new record after it was written to `out`. Raises UsageError for a part that is none."""
    if unknown := set(parts or ()) - PARTS.keys():
        raise UsageError(f"--part {', '.join(sorted(unknown))}: no such part", f"there are {', '.join(PARTS)}")
    bench = Bench(fetch_base(base), pick_device(device), tuple(sizes), repeats, images)
    where = {"base": bench.base.id, "device": bench.device.type, "threads": torch.get_num_threads(), "images": images}
    known = read_records(out)
    if any(not where.items() <= record.items() for record in known if record["part"] != "scale"):
        raise UsageError(
            f"{out} holds measurements of other settings or another machine", "name another file with --out"
        )
    with appending(out) as append:
        for part in parts or PARTS:
            for key, measure in PARTS[part](bench):
                key = {"part": part} | key | ({} if part == "scale" else where)  # nothing of this machine is in that
                if not any(key.items() <= record.items() for record in known):
                    yield append(key | {"version": VERSION} | measure())


# ---------------------------------------------------------------- parts


def scans(bench: Bench) -> Iterator[Case]:
    """The whole scan, timed whole; the paper's recipe and the exact scan by their steps and classes."""

    def measure(method: str, classes: int) -> dict[str, Any]:
        kept: dict[str, list[Inversion]] = {}
        model = bench.prompted(method, classes, bench.precision)
        with model.frozen_prompt():
            beside, images, turn = BesideReferences(model), bench.pool[: bench.images], cycle(range(classes))
            inverter = Contrast().inverter(0)
            ways = {
                "plain": plain_step(PlainPromptedCLIP(model), bench.pool[:BATCH]),
                "exact class": lambda: inverter(beside, images, next(turn), BATCH),
                "probes": lambda: probe(beside.from_features, Probed(beside.adapted.clip.image_features, images)),
                "ours": lambda: kept.update(found=bench.scan(method, classes)),
            }
            one = timed(ways, bench.repeats)
        whole, shape = sum(not i.screened for i in kept["found"]), Shape.of(model)
        seconds = {
            "plain": one["plain"] * PAPER_IMAGES / BATCH * classes,
            "exact": one["exact class"] * classes + one["probes"],
            "ours": one["ours"],
        }
        steps = shape.steps(bench.images, whole)
        return {
            "seconds": rounded(seconds),
            "ratio": rounded({name: seconds["plain"] / seconds[name] for name in ("exact", "ours")}, 2),
            "counted": rounded(
                {
                    "exact": shape.plain() / shape.scan_exact(bench.images),
                    "ours": shape.plain() / sum(steps.values()),
                },
                2,
            ),
            "steps": rounded({name: cost / sum(steps.values()) for name, cost in steps.items()}, 3),
            "whole": whole,
        }

    for method in METHODS:
        for classes in bench.sizes:
            yield (
                {"method": method, "classes": classes, "precision": bench.precision},
                partial(measure, method, classes),
            )


def encoders(bench: Bench) -> Iterator[Case]:
    """A step of the inversion against the bare encoders."""

    def measure(method: str, classes: int, precision: str) -> dict[str, Any]:
        model, images = bench.prompted(method, classes, precision), bench.pool[:BATCH]
        with model.frozen_prompt():
            beside = BesideReferences(model, images)
            ways = {"ours": our_step(beside, images), "bare": bare_step(beside, images)}
            seconds = timed(ways, 3 * bench.repeats)
        return {"seconds": rounded(seconds, 5), "share": round(seconds["bare"] / seconds["ours"], 3)}

    for precision in dict.fromkeys(("fp32", bench.precision)):
        for method in METHODS:
            for classes in bench.sizes:
                key: dict[str, Any] = {"method": method, "classes": classes, "precision": precision}
                yield key, partial(measure, **key)


def growth(bench: Bench) -> Iterator[Case]:
    """Whole scans, each in a fresh process: time, and the peak of memory."""

    def measure(method: str, classes: int) -> dict[str, Any]:
        runs = [in_a_process(bench.asked(method, classes)) for _ in range(bench.repeats)]
        middle = {name: median(run[name] for run in runs) for name in ("seconds", "before", "peak")}
        return middle | {"seconds": round(middle["seconds"], 2), "whole": runs[0]["whole"]}

    for method in METHODS:
        for classes in bench.sizes:
            yield (
                {"method": method, "classes": classes, "precision": bench.precision},
                partial(measure, method, classes),
            )


def processes(bench: Bench) -> Iterator[Case]:
    """Two processes, a core each, against one on one core; and the most that the machine allows: two scans that have
    nothing to do with each other, at the same time."""

    def measure(classes: int) -> dict[str, Any]:
        def scan(num_processes: int) -> dict[str, Any]:
            return in_a_process(bench.asked("cocoop", classes, num_processes=num_processes), OMP_NUM_THREADS="1")

        one, two, apart = [], [], []
        for _ in range(bench.repeats):
            one.append(scan(1))
            two.append(scan(2))
            if bench.device.type == "cpu":  # two programs would take the same GPU
                with ThreadPoolExecutor(2) as at_once:
                    apart.append(max(run["seconds"] for run in at_once.map(scan, (1, 1))))
        seconds = {"one": median(r["seconds"] for r in one), "two": median(r["seconds"] for r in two)}
        start_up = median(r["start_up"] for r in two)
        return {
            "seconds": rounded(seconds | {"start_up": start_up}, 2),
            "speedup": round(seconds["one"] / seconds["two"], 2),
            "speedup_started": round(seconds["one"] / (seconds["two"] - start_up), 2),
            "most": round(2 * seconds["one"] / median(apart), 2) if apart else None,
            "equal": len({run["digest"] for run in one + two}) == 1,
        }

    if bench.device.type == "cpu" or torch.accelerator.device_count() > 1:
        for classes in bench.sizes:
            yield {"method": "cocoop", "classes": classes, "precision": bench.precision}, partial(measure, classes)


def rivals(bench: Bench) -> Iterator[Case]:
    """One class of a rival at its stated budget, times the classes; through our forward pass, and the plain one."""

    def measure(detector: str, classes: int) -> dict[str, Any]:
        model, turn = bench.prompted("cocoop", classes, bench.precision), cycle(range(classes))
        inverter, images = DETECTORS[detector]().inverter(0), bench.pool[:BATCH]
        order = [torch.arange(BATCH, device=images.device)]
        one = timed(
            {
                "theirs": lambda: inverter(model, bench.pool, next(turn), BATCH),
                "ours": lambda: bench.scan("cocoop", classes),
                "plain step": plain_step(PlainPromptedCLIP(model), images),
                "step": lambda: descend(fresh(images), STEP, images, order, BATCH, lambda x, _: margin(model(x), 0)),
            },
            bench.repeats,
        )
        theirs = one["theirs"] * classes
        seconds = {"plain": theirs * one["plain step"] / one["step"], "shared": theirs, "ours": one["ours"]}
        ratio = {name: seconds[name] / seconds["ours"] for name in ("plain", "shared")}
        return {"seconds": rounded(seconds, 2), "ratio": rounded(ratio, 1)}

    for detector in RIVALS:
        for classes in sorted(bench.sizes)[:2]:
            key: dict[str, Any] = {"detector": detector, "classes": classes}
            yield key | {"precision": bench.precision}, partial(measure, **key)


def recalled(bench: Bench) -> Iterator[Case]:
    """An unchanged adapter a second time; ten adapters in one run against one. From start to exit of the program."""

    def program(*args: str | Path) -> None:
        command = [sys.executable, "-m", "hf_ci", "scan", *map(str, args), "--device", bench.device.type]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1, 4):  # verdicts
            raise RuntimeError(done.stderr)

    def again() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            program("demo:clean", "--cache", cache)
            first = time.perf_counter() - started
            second = timed({"again": lambda: program("demo:clean", "--cache", cache)}, bench.repeats)["again"]
        return {"seconds": rounded({"first": first, "again": second}, 2)}

    def together() -> dict[str, Any]:
        clip, classes = bench.clip(bench.precision), min(bench.sizes)
        with tempfile.TemporaryDirectory() as place:
            folders = [Path(place) / f"adapter-{seed}" for seed in range(TOGETHER)]
            for seed, folder in enumerate(folders):
                write_adapter(untuned(clip, bench.base.id, "cocoop", classes, seed), folder)
            options = ("--no-cache", "--base", bench.base.id, "--num-images", str(bench.images))
            ways = {"one": lambda: program(folders[0], *options), "ten": lambda: program(*folders, *options)}
            seconds = timed(ways, bench.repeats)
        return {"seconds": rounded(seconds, 2), "ratio": round(seconds["ten"] / seconds["one"], 2), "classes": classes}

    yield {"what": "unchanged"}, again
    yield {"what": "ten adapters"}, together


def profiles(bench: Bench) -> Iterator[Case]:
    """Where the time of a step goes, before and after."""

    def measure(method: str, classes: int, way: str, precision: str) -> dict[str, Any]:
        model, images = bench.prompted(method, classes, precision), bench.pool[:BATCH]
        with ExitStack() as stack:
            stack.enter_context(model.frozen_prompt())
            plain = PlainPromptedCLIP(model)
            step = plain_step(plain, images) if way == "plain" else our_step(BesideReferences(model, images), images)
            stack.enter_context(marked(model.clip, "image_features", "image encoder"))
            stack.enter_context(marked(plain if way == "plain" else model, "text_features", "text encoder"))
            return {"shares": rounded(shares(step, ["image encoder", "text encoder"], bench.device.type), 3)}

    for method in METHODS:
        for way in ("plain", "ours"):
            key: dict[str, Any] = {"method": method, "classes": sorted(bench.sizes)[len(bench.sizes) // 2], "way": way}
            key |= {"precision": bench.precision}
            yield key, partial(measure, **key)


def scaled(bench: Bench) -> Iterator[Case]:
    """The plan for many GPUs, simulated."""
    for record in scale.simulate():
        key: dict[str, Any] = {name: record[name] for name in ("plan", "classes", "processes", "way") if name in record}
        yield key, partial(dict, record)


PARTS: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "scan": scans,
    "encoders": encoders,
    "growth": growth,
    "processes": processes,
    "rivals": rivals,
    "cache": recalled,
    "profile": profiles,
    "scale": scaled,
}
