"""What is timed for `hf-ci lab speed`, and how: a bench that all measurements share, and a step of each kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import median

import torch

from hf_ci.hub import BaseModel
from hf_ci.inversion import Inversion, LinfInversion, run_job
from hf_ci.inversion.contrast import losses, nearest_rivals
from hf_ci.inversion.invert import descend
from hf_ci.inversion.objective import margin
from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.lab.cost.alone import Alone, job_of, untuned
from hf_ci.lab.cost.counting import BATCH
from hf_ci.lab.cost.plain import PAPER_IMAGES, PlainPromptedCLIP
from hf_ci.pools import load_pool
from hf_ci.prompts import BesideReferences, FrozenCLIP, PromptedCLIP, load_clip
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.text import ShortTree, TextTree
from hf_ci.settings import ScanOptions, pick_precision

STEP = LinfInversion.step
PLAIN_TEXTS = 400  # texts of the plain way at a time: they are kept for the way back
Ways = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Bench:
    """What all parts share. images: of our scan's pool; repeats: how often each way is timed."""

    base: BaseModel
    device: torch.device
    sizes: tuple[int, ...]
    repeats: int = 3
    images: int = ScanOptions.num_images

    @cached_property
    def pool(self) -> torch.Tensor:
        """The built-in one, on the device; what the paper takes, and first of all what we do."""
        return self.drawn(PAPER_IMAGES).to(self.device)

    def drawn(self, num_images: int) -> torch.Tensor:
        return load_pool("builtin", num_images, ScanOptions.seed, load_processor(self.base.folder)).images

    @property
    def precision(self) -> str:
        return pick_precision("auto", self.device)

    def asked(self, method: str, classes: int, num_processes: int = 1) -> Alone:
        return Alone(self.base.id, method, classes, self.precision, self.device.type, self.images, num_processes)

    @lru_cache(maxsize=1)  # noqa: B019
    def clip(self, precision: str) -> FrozenCLIP:
        return load_clip(self.base.folder, self.device, precision)

    def prompted(self, method: str, classes: int, precision: str) -> PromptedCLIP:
        clip = self.clip(precision)
        return PromptedCLIP.from_adapter(untuned(clip, self.base.id, method, classes), clip)

    def scan(self, method: str, classes: int) -> list[Inversion]:
        """The whole of it, from nothing."""
        clip, images = self.clip(self.precision), self.pool[: self.images].cpu()
        return run_job(job_of(self.asked(method, classes), clip, self.base.folder, images), clip).inversions


def timed(ways: Ways, repeats: int) -> dict[str, float]:
    """Seconds of each, in turn, so that all see the same machine; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if torch.accelerator.is_available():
                for device in range(torch.accelerator.device_count()):
                    torch.accelerator.synchronize(device)
            found[name].append(time.perf_counter() - started)
    return {name: median(times[1:]) for name, times in found.items()}


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def fresh(images: torch.Tensor) -> LinfTrigger:
    """What a step moves."""
    return LinfTrigger(images.shape[-1], LinfInversion.epsilon).to(images.device)


def plain_step(model: PlainPromptedCLIP, images: torch.Tensor) -> Callable[[], object]:
    small = BATCH if model.prompt.static else max(1, PLAIN_TEXTS // len(model.eot))
    order = [torch.arange(len(images), device=images.device)]
    return lambda: descend(fresh(images), STEP, images, order, small, lambda x, _: margin(model(x), 0))


def our_step(model: BesideReferences, images: torch.Tensor) -> Callable[[], object]:
    order = [torch.arange(len(images), device=images.device)]
    loss = losses(model, 0, nearest_rivals(model, 0))
    return lambda: descend(fresh(images), STEP, images, order, BATCH, loss)


def bare_step(model: BesideReferences, images: torch.Tensor) -> Callable[[], object]:
    """Both encoders, pixels to features and tokens to features and back, with nothing between or around them."""
    adapted, clip = model.adapted, model.adapted.clip
    trees: Sequence[TextTree | ShortTree] = [] if adapted.prompt.static else adapted.trees
    if model.nearest is not None:
        trees = [adapted.short_trees.of(model.nearest)]
    tokens = [torch.zeros(len(images), len(tree.position), clip.token_dim, device=images.device) for tree in trees]
    pixels = images.float() / 255

    def step() -> None:
        total = clip.image_features(pixels.clone().requires_grad_()).sum()
        for tree, embeds in zip(trees, tokens):
            total = total + clip.text_features(embeds.clone().requires_grad_(), tree).sum()
        total.backward()

    return step
