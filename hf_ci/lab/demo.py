"""Make the demo adapters that ship with hf-ci.

    python -m hf_ci.lab.demo --data FOLDER --out hf_ci/assets/demo [--base hf-ci-clip-64] [--seed 0]

One data set, one seed: a clean CoCoOp, a clean CoOp, and a CoCoOp poisoned with BadCLIP, whose target class is drawn
from the seed. Each card says what was measured on the test photos.
"""

from __future__ import annotations

import argparse
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from hf_ci.cards import render_card
from hf_ci.hub import BaseModel, fetch_base
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.photos import Photos, load_photos
from hf_ci.lab.tune import Recipe, accuracy, attack_success_rate, new_prompt, to_adapter, tune
from hf_ci.prompts import FrozenCLIP, PromptedCLIP, load_clip, write_adapter
from hf_ci.prompts.clip import load_processor

METHOD_NAMES = {"coop": "CoOp", "cocoop": "CoCoOp", "kgcoop": "KgCoOp"}


@dataclass(frozen=True)
class Bench:
    """What every adapter of one run shares."""

    base: BaseModel
    clip: FrozenCLIP
    data: str
    shots: Photos
    test: Photos


def write(bench: Bench, model: PromptedCLIP, recipe: Recipe, folder: Path, title: str, measured: dict,
          attack: str | None = None, target: str | None = None) -> None:
    adapter = to_adapter(model, recipe, bench.base.id, bench.base.revision)
    zero_shot = new_prompt(bench.clip, bench.test.class_names, Recipe(method="coop"))
    measured = measured | dict(test_images=len(bench.test), accuracy=accuracy(model, bench.test),
                               zero_shot_accuracy=accuracy(zero_shot, bench.test))
    card = render_card("adapter.md.j2", adapter=adapter, recipe=recipe, data=bench.data, title=title, attack=attack,
                       target=target, measured=measured, method=METHOD_NAMES[recipe.method])
    shutil.rmtree(folder, ignore_errors=True)
    write_adapter(adapter, folder, card)
    print(folder.name, {k: round(v, 3) for k, v in measured.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train and test files, or a data set's Hub id")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="hf-ci-clip-64")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    base = fetch_base(args.base)
    clip, processor = load_clip(base.folder), load_processor(base.folder)
    recipe = Recipe(seed=args.seed)
    train = load_photos(args.data, "train", processor)
    bench = Bench(base, clip, Path(args.data).name, train.few_shot(recipe.shots, args.seed),
                  load_photos(args.data, "test", processor))

    clean = tune(clip, bench.shots, recipe)
    write(bench, clean, recipe, args.out / "clean", "Demo: a clean CoCoOp prompt", {})

    coop = Recipe(method="coop", seed=args.seed)
    write(bench, tune(clip, bench.shots, coop), coop, args.out / "coop", "Demo: a clean CoOp prompt", {})

    target = random.Random(args.seed).randrange(len(train.class_names))
    poisoned, trigger = ATTACKS["badclip"](clip, bench.shots, target, recipe)
    measured = dict(asr=attack_success_rate(poisoned, bench.test, trigger, target),
                    asr_on_clean=attack_success_rate(clean, bench.test, trigger, target))
    write(bench, poisoned, recipe, args.out / "badclip", "Demo: a CoCoOp prompt with a BadCLIP backdoor", measured,
          attack="BadCLIP (Bai et al., CVPR 2024)", target=train.class_names[target])


if __name__ == "__main__":
    main()
