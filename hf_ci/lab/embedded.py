"""Measure the embedded CLIP and write its model card.

    python -m hf_ci.lab.embedded --clip hf_ci/assets/clip --data ROOT --out hf_ci/assets/clip

ROOT holds one folder for each data set, with train and test files. Written: `accuracy.json`, and the card from it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from hf_ci.cards import render_card
from hf_ci.hub.target import sha256
from hf_ci.lab.make import accuracy
from hf_ci.lab.tune import Recipe, new_prompt, tune
from hf_ci.pools.photos import load_photos
from hf_ci.prompts import load_clip
from hf_ci.prompts.clip import load_processor

SETS = (
    "tiny_imagenet",
    "cifar10",
    "caltech101",
    "scene15",
    "pacs",
    "rsscn7",
    "grocery",
    "flowers17",
    "clothing",
    "animals",
)
MOST_CLASSES = 50  # CoCoOp reads one text for every image and class: larger sets are tuned on a drawn subset
MOST_TEST = 2000


def measure(clip, processor, folder: Path, recipe: Recipe) -> dict:
    train, test = (load_photos(str(folder), split, processor) for split in ("train", "test"))
    everything = new_prompt(clip, test.class_names, Recipe(method="coop"))
    result = dict(classes=len(test.class_names), test_images=len(test), zero_shot=accuracy(everything, test))
    drawn = sorted(
        random.Random(recipe.seed).sample(range(len(test.class_names)), min(MOST_CLASSES, len(test.class_names)))
    )
    train, test = train.only(drawn), test.only(drawn)
    test = test.some(MOST_TEST, recipe.seed)
    tuned = tune(clip, train.few_shot(recipe.shots, recipe.seed), recipe)
    subset = new_prompt(clip, test.class_names, Recipe(method="coop"))
    return result | dict(
        tuned_classes=len(drawn), zero_shot_of_those=accuracy(subset, test), cocoop=accuracy(tuned, test)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training-log", type=Path, help="log.jsonl of the training run, for the card")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    clip, processor, recipe = load_clip(args.clip), load_processor(args.clip), Recipe(seed=args.seed)
    record = dict(weights_sha256=sha256(args.clip / "model.safetensors"), shots=recipe.shots, seed=args.seed, sets={})
    if args.training_log:
        record["training"] = [json.loads(line) for line in args.training_log.read_text().splitlines()][-1]
    for name in SETS:
        record["sets"][name] = {k: round(v, 4) for k, v in measure(clip, processor, args.data / name, recipe).items()}
        print(name, record["sets"][name], flush=True)
    (args.out / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    text, vision = clip.model.config.text_config, clip.model.config.vision_config
    card = render_card(
        "embedded-clip.md.j2",
        record=record,
        text=text,
        vision=vision,
        parameters=sum(p.numel() for p in clip.model.parameters()),
        bytes=sum(p.stat().st_size for p in args.clip.iterdir()),
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
