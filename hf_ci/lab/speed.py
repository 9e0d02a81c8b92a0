"""What a scan costs, as ratios measured in one run: absolute times drift from machine to machine, ratios hardly do.

plain   the paper's recipe: every class, 1,000 images, 77 tokens a text, all rivals (`PlainPromptedCLIP`)
ours    the default scan: every class, 256 images, one tree of texts an image
bare    the frozen encoders alone, forward and back to the pixels, on the images and tokens of `ours`

A step is one batch of 32 images, forward and backward. Steps of what is compared are timed in turn, and medians taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from hf_ci.hub import fetch_base
from hf_ci.hub.base import EMBEDDED
from hf_ci.inversion import LinfInversion
from hf_ci.inversion.objective import margin
from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.plain import PlainPromptedCLIP
from hf_ci.lab.tune import Recipe, new_prompt
from hf_ci.pools import load_pool
from hf_ci.prompts import FrozenCLIP, PromptedCLIP, load_clip
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.learners import CoCoOp
from hf_ci.settings import ScanOptions, pick_device, pick_precision

BATCH = LinfInversion.batch
PAPER_IMAGES = 1000
OURS_IMAGES = ScanOptions.num_images
PLAIN_TEXTS = 400  # texts of the plain way at a time: they are kept for the way back


def measure_speed(out: Path, sizes: list[int], base: str = EMBEDDED, device: str = "cpu", repeats: int = 3) -> Iterator:
    """Yields a record for each method, precision and number of classes, after it was written to `out`."""
    model, where = fetch_base(base), pick_device(device)
    images = load_pool("builtin", BATCH, 0, load_processor(model.folder)).images.to(where)
    with out.open("w", encoding="utf-8") as file:
        for precision in dict.fromkeys(("fp32", pick_precision("auto", where))):
            clip = load_clip(model.folder, where, precision)
            for method in ("cocoop", "coop"):
                for num_classes in sizes:
                    record = one(clip, images, method, num_classes, repeats)
                    record |= dict(
                        precision=precision, base=model.id, device=where.type, threads=torch.get_num_threads()
                    )
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    yield record


def one(clip: FrozenCLIP, images: torch.Tensor, method: str, num_classes: int, repeats: int) -> dict:
    names = tuple(f"thing number {i}" for i in range(num_classes))
    prompted = new_prompt(clip, names, Recipe(method=method)).requires_grad_(False)
    plain = PlainPromptedCLIP(prompted)
    with prompted.frozen_prompt():
        small = max(1, PLAIN_TEXTS // num_classes) if method == "cocoop" else BATCH
        ways = {
            "plain": lambda: step(plain, images, small),
            "ours": lambda: step(prompted, images, BATCH),
            "bare": lambda: bare(prompted, images),
        }
        seconds = timed(ways, repeats)
    tokens = sum(len(tree.position) for tree in prompted.trees)
    counted = {
        "plain": flop(clip, PAPER_IMAGES, PAPER_IMAGES * num_classes * clip.max_length if method == "cocoop" else 0),
        "ours": flop(clip, OURS_IMAGES, OURS_IMAGES * tokens if method == "cocoop" else 0),
    }
    per_class = {"plain": seconds["plain"] * PAPER_IMAGES / BATCH, "ours": seconds["ours"] * OURS_IMAGES / BATCH}
    return dict(
        method=method,
        classes=num_classes,
        step_seconds={name: round(value, 5) for name, value in seconds.items()},
        step_ratio=round(seconds["plain"] / seconds["ours"], 2),
        scan_ratio=round(per_class["plain"] / per_class["ours"], 2),
        scan_ratio_counted=round(counted["plain"] / counted["ours"], 2),
        of_the_bare_encoders=round(seconds["bare"] / seconds["ours"], 3),
        scan_seconds=round(per_class["ours"] * num_classes, 2),
    )


def timed(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each, in turn, so that all see the same machine; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            found[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in found.items()}


def step(model: torch.nn.Module, images: torch.Tensor, micro_batch: int) -> None:
    trigger = LinfTrigger(images.shape[-1], LinfInversion.epsilon).to(images.device)
    adam = torch.optim.Adam(trigger.parameters(), lr=LinfInversion.step)
    for part in images.split(micro_batch):
        (margin(model(trigger(part.float() / 255)), 0).sum() / len(images)).backward()
    adam.step()
    trigger.project()


def bare(model: PromptedCLIP, images: torch.Tensor) -> None:
    """Both towers on the same images and tokens, and back, with nothing between or around them."""
    pixels = (images.float() / 255).requires_grad_()
    features = model.clip.image_features(pixels)
    total = features.sum()
    if isinstance(model.prompt, CoCoOp):
        for tree in model.trees:
            tokens = torch.zeros(len(images), len(tree.position), model.clip.token_dim, device=images.device)
            total = total + model.clip.text_features(tokens.requires_grad_(), tree).sum()
    total.backward()


def flop(clip: FrozenCLIP, images: int, tokens: int) -> float:
    """Of the linear layers, forward and back to the inputs: 4 a weight and token. Attention itself is left out."""
    weights = lambda module: sum(p.numel() for n, p in module.named_parameters() if p.ndim == 2 and "embed" not in n)  # noqa: E731
    vision, text = clip.model.vision_model, clip.model.text_model
    patches = (clip.image_size // clip.model.config.vision_config.patch_size) ** 2 + 1
    return 4.0 * (images * patches * weights(vision) + tokens * weights(text))
