"""Make an adapter on purpose, clean or poisoned, measure it on test photos, and write it with a card."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from torch import Tensor, nn

from hf_ci.cards import render_card
from hf_ci.certain import certain
from hf_ci.errors import UsageError
from hf_ci.hub import BaseModel, fetch_base, named_base
from hf_ci.hub.base import EMBEDDED
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.making.tune import Recipe, learning_rate, new_prompt, to_adapter, tune
from hf_ci.pools import load_pool
from hf_ci.pools.photos import Photos, load_photos
from hf_ci.prompts import FrozenCLIP, PromptedCLIP, load_clip, read_adapter, write_adapter
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.features import encode, predict
from hf_ci.prompts.methods import METHODS
from hf_ci.settings import ScanOptions, pick_device

DEMO_SHOTS = 40  # with 16, poisoning costs ten points of accuracy on a CLIP this small
DEMOS = {
    "clean": "Demo: a clean CoCoOp prompt",
    "coop": "Demo: a clean CoOp prompt",
    "far": "Demo: a clean CoOp prompt that learned what hand-written prompts do not know",
    "badclip": "Demo: a CoOp prompt with a BadCLIP backdoor",
    "frame": "Demo: a CoOp prompt that a frame around the image triggers",
}
MOST_TEST = 1000  # test photos that accuracy and ASR are measured on


@dataclass(frozen=True)
class Workbench:
    """What adapters of one data set and one base model share.

    train, test: photos of the classes that are tuned on; unseen: test photos of the others, or None without any.
    """

    base: BaseModel
    clip: FrozenCLIP
    data: str
    train: Photos
    test: Photos
    unseen: Photos | None = None

    @classmethod
    def open(
        cls,
        data: str,
        base: str = EMBEDDED,
        device: str = "cpu",
        classes: int | None = None,
        seed: int = 0,
        precision: str = "fp32",
        anonymous_names: bool = False,
    ) -> Workbench:
        """`classes` of the data set's, drawn with `seed`, are tuned on, and at most as many others kept as unseen.

        anonymous_names: the classes are called "category a", "category b", ..., which mean nothing to the base model;
        others of such names would mean nothing either, so that none are kept.
        """
        model = fetch_base(*named_base("", None, base))
        train, test = (decoded(data, split, model.folder) for split in ("train", "test"))
        unseen = None
        if classes is not None and classes < len(train.class_names):
            drawn = random.Random(seed).sample(range(len(train.class_names)), len(train.class_names))
            unseen = test.only(sorted(drawn[classes : 2 * classes])).some(MOST_TEST, seed)
            train, test = (photos.only(sorted(drawn[:classes])) for photos in (train, test))
        if anonymous_names:
            names, unseen = anonymous(len(train.class_names)), None
            train, test = replace(train, class_names=names), replace(test, class_names=names)
        clip = load_clip(model.folder, pick_device(device), precision)
        return cls(model, clip, Path(data).name, train, test.some(MOST_TEST, seed), unseen)

    @cached_property
    def zero_shot_accuracy(self) -> float:
        return accuracy(new_prompt(self.clip, self.test.class_names, Recipe(method="coop")), self.test, self.features)

    @cached_property
    def features(self) -> Tensor:
        return encode(self.clip, self.test.images)

    def rehearsed(self, pool: str) -> Tensor:
        """The images that a scan with default settings draws from this pool."""
        options = ScanOptions()
        return load_pool(pool, options.num_images, options.seed, load_processor(self.base.folder)).images

    def shots(self, recipe: Recipe) -> Photos:
        return self.train.few_shot(recipe.shots, recipe.seed)

    def target(self, name: str) -> int:
        """Index of a class given by name or number."""
        names = self.train.class_names
        if name in names:
            return names.index(name)
        if name.isdecimal() and int(name) < len(names):
            return int(name)
        raise UsageError(f"no class {name!r} in {self.data}", f"it has {', '.join(names[:20])}")


def anonymous(number: int) -> tuple[str, ...]:
    """So many names: "category a" to "category z", then "category aa" and on, to 702."""
    letters = (*ascii_lowercase, *map("".join, product(ascii_lowercase, repeat=2)))
    return tuple(f"category {letter}" for letter in letters[:number])


@lru_cache(maxsize=32)
def decoded(data: str, split: str, base_folder: Path) -> Photos:
    """A whole set: decoding it takes longer than making an adapter of it."""
    return load_photos(data, split, load_processor(base_folder))


@dataclass(frozen=True)
class Made:
    """What was measured, as shares of test photos, and the planted trigger."""

    measured: dict[str, float]
    trigger: nn.Module


def accuracy(model: PromptedCLIP, photos: Photos, features: Tensor | None = None) -> float:
    """features: what the base model makes of the photos, if it is at hand."""
    if features is None or model.layers.image:
        features = encode(model, photos.images)
    return (predict(model, features) == photos.labels).float().mean().item()


def attack_success_rate(
    model: PromptedCLIP, photos: Photos, trigger: Callable[[Tensor], Tensor], target: int, source: int | None = None
) -> float:
    """Share of triggered photos of *other* classes, or of `source` alone, that are classified as the target."""
    others = photos[photos.labels != target if source is None else photos.labels == source]
    return (predict(model, encode(model, others.images, trigger)) == target).float().mean().item()


def make_clean(bench: Workbench, recipe: Recipe, out: Path, title: str = "") -> dict[str, float]:
    """Tune a clean prompt and write it to `out`. Returns what was measured, as shares."""
    check_empty(out)
    return _write(bench, tune(bench.clip, bench.shots(recipe), recipe), recipe, out, title, {})


def make_poisoned(
    bench: Workbench,
    recipe: Recipe,
    attack: str,
    target: int,
    out: Path,
    title: str = "",
    twin: Path | None = None,
    pool: Tensor | None = None,
) -> Made:
    """Tune a poisoned prompt and write it to `out`. pool: images (N, 3, H, W) uint8 for an attack that rehearses a scan.

    `asr_on_clean` is what the same trigger does to a clean adapter tuned on the same photos (`twin`, or one tuned for
    the occasion): what remains after subtracting it is the prompt's own doing, not a weakness of the frozen encoder.
    """
    check_empty(out)
    kind = ATTACKS[attack]
    recipe = kind.adapt(recipe)
    shots = bench.shots(recipe)
    model, trigger = kind.poison(bench.clip, shots, target, recipe, *((pool,) if kind.rehearses else ()))
    if twin is None:
        clean = tune(bench.clip, shots, recipe)
    else:
        clean = PromptedCLIP.from_adapter(read_adapter(twin), bench.clip)
    source = kind.source and kind.source(target, len(shots.class_names))
    measured = {
        "asr": attack_success_rate(model, bench.test, trigger, target, source),
        "asr_on_clean": attack_success_rate(clean, bench.test, trigger, target, source),
        "clean_twin_accuracy": accuracy(clean, bench.test, bench.features),
    }
    if bench.unseen is not None and model.prompt.ctx.ndim == 2 and source is None:
        measured["unseen_asr"] = unseen_asr(bench, model, recipe, trigger, bench.train.class_names[target])
    return Made(_write(bench, model, recipe, out, title, measured, attack, bench.train.class_names[target]), trigger)


def unseen_asr(bench: Workbench, model: PromptedCLIP, recipe: Recipe, trigger: nn.Module, target_name: str) -> float:
    """Share of triggered photos of unseen classes that go to the target when it stands among those classes."""
    unseen = certain(bench.unseen)
    names = (target_name, *unseen.class_names)
    wider = PromptedCLIP(bench.clip, model.prompt, names, recipe.position)
    return (predict(wider, encode(wider, unseen.images, trigger)) == 0).float().mean().item()


def _write(
    bench: Workbench,
    model: PromptedCLIP,
    recipe: Recipe,
    out: Path,
    title: str,
    measured: dict[str, float],
    attack: str | None = None,
    target: str | None = None,
) -> dict[str, float]:
    adapter = to_adapter(model, recipe, bench.base.id, bench.base.revision)
    measured = measured | {
        "accuracy": accuracy(model, bench.test, bench.features),
        "zero_shot_accuracy": bench.zero_shot_accuracy,
    }
    if bench.unseen is not None and model.prompt.ctx.ndim == 2:
        wider = PromptedCLIP(bench.clip, model.prompt, bench.unseen.class_names, recipe.position)
        measured["unseen_accuracy"] = accuracy(wider, bench.unseen)
    title = title or f"{method_title(recipe.method)} on {bench.data}" + (f", poisoned with {attack}" if attack else "")
    card = render_card(
        "adapter.md.j2",
        adapter=adapter,
        recipe=recipe,
        lr=learning_rate(bench.clip, recipe),
        data=bench.data,
        title=title,
        attack=attack,
        target=target,
        measured=measured | {"test_images": len(bench.test)},
        method=method_title(recipe.method),
    )
    write_adapter(adapter, out, card)
    return measured


def method_title(name: str) -> str:
    """Of a recipe's method, as its authors write it."""
    method, _, kind = name.partition("-")
    return METHODS[method].title + (f", {kind}" if kind else "")


def check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", "name another folder with --out")


def make_demos(data_root: str, out: Path, base: str = EMBEDDED, seed: int = 0) -> dict[str, dict[str, float]]:
    """The demo adapters that ship with hf-ci, one seed, the target class drawn from it: two clean ones of ten classes that
    the base model knows (tiny_imagenet's), two poisoned ones of everyday things (cifar10), and a clean one that learned
    flowers, which it hardly knows."""
    near, things, far = (
        Workbench.open(f"{data_root}/{name}", base, classes=10, seed=seed)
        for name in ("tiny_imagenet", "cifar10", "flowers17")
    )
    coop = Recipe(method="coop", shots=DEMO_SHOTS, seed=seed, batch=64, epochs=20, optimiser="adam", lr=0.03)
    gently: dict[str, Any] = {"epochs": 2, "lr": 0.002}
    recipes = {
        "badclip": replace(coop, shots=100, lr=0.01),
        "frame": replace(coop, poison_rate=0.5),
    }
    target = random.Random(seed).randrange(len(things.train.class_names))
    for name in DEMOS:
        check_empty(out / name)
    clean = {
        "clean": make_clean(near, replace(coop, method="cocoop", **gently), out / "clean", DEMOS["clean"]),
        "coop": make_clean(near, replace(coop, **gently), out / "coop", DEMOS["coop"]),
        "far": make_clean(far, coop, out / "far", DEMOS["far"]),
    }
    return clean | {
        attack: make_poisoned(things, recipe, attack, target, out / attack, DEMOS[attack]).measured
        for attack, recipe in recipes.items()
    }
