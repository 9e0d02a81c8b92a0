"""Measure the embedded CLIP and write its model card.

    python -m hf_ci.lab.making.embedded --clip hf_ci/assets/clip --data ROOT --out hf_ci/assets/clip

ROOT holds one folder for each data set, with train and test files; those of SETS that are there are measured. Written:
`accuracy.json`, and the card from it. The figure that matters is what a shared context gains over a hand-written
prompt on sets that the base has never seen: prompts are tuned in the field because they gain.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.cards import render_card
from hf_ci.hub.target import sha256
from hf_ci.lab.making.make import accuracy
from hf_ci.lab.making.tune import Recipe, new_prompt, tune
from hf_ci.pools.photos import load_photos
from hf_ci.prompts import FrozenCLIP, load_clip
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.features import encode

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

SEEN = ("tiny_imagenet",)  # the sets that the embedded CLIP was trained on, training images only
NEVER_SEEN = (
    "animals",
    "caltech101",
    "chest_xray",
    "cifar10",
    "clothing",
    "flowers17",
    "grocery",
    "pacs",
    "road_signs",
    "rsscn7",
    "scene15",
    "textures",
    "trash",
)
CLASSES = 10  # tuned on; larger sets are represented by this many, drawn with the seed
MOST_TEST = 2000
SHARED = Recipe(method="coop", shots=40, epochs=20, batch=64, optimiser="adam", lr=0.03)  # one context for all classes


def measure(clip: FrozenCLIP, processor: CLIPImageProcessorPil, folder: Path, recipe: Recipe) -> dict[str, float]:
    """Test accuracies: hand-written on all classes; hand-written, shared context and linear classifier on the drawn."""
    train, test = (load_photos(str(folder), split, processor) for split in ("train", "test"))
    everything = new_prompt(clip, test.class_names, recipe)
    result = {
        "classes": len(test.class_names),
        "test_images": len(test),
        "hand_written_all": accuracy(everything, test),
    }
    drawn = random.Random(recipe.seed).sample(range(len(test.class_names)), len(test.class_names))[:CLASSES]
    train, test = train.only(sorted(drawn)).few_shot(recipe.shots, recipe.seed), test.only(sorted(drawn))
    test = test.some(MOST_TEST, recipe.seed)
    shots, seen = encode(clip, train.images), encode(clip, test.images)
    hand_written = accuracy(new_prompt(clip, test.class_names, recipe), test, seen)
    tuned = accuracy(tune(clip, train, recipe), test, seen)
    linear = (linear_classifier(shots, train.labels)(seen).argmax(1) == test.labels).float().mean().item()
    return result | {
        "tuned_classes": len(drawn),
        "hand_written": hand_written,
        "coop": tuned,
        "gain": tuned - hand_written,
        "linear": linear,
    }


def linear_classifier(features: Tensor, labels: Tensor, weight_decay: float = 1e-4) -> torch.nn.Linear:
    """Logistic regression on unit features (N, D): what the image tower knows, whatever the text tower can say."""
    layer = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(layer(features), labels) + weight_decay * layer.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--training-log", type=Path, help="image.jsonl of the training run, for the card")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    clip, processor = load_clip(args.clip), load_processor(args.clip)
    record = {
        "weights_sha256": sha256(args.clip / "model.safetensors"),
        "shots": SHARED.shots,
        "seed": args.seed,
        "seen": SEEN,
        "sets": {},
    }
    if args.training_log:
        record["training"] = [json.loads(line) for line in args.training_log.read_text().splitlines()][-1]
    for name in (*SEEN, *NEVER_SEEN):
        if (args.data / name).is_dir():
            figures = measure(clip, processor, args.data / name, dataclasses.replace(SHARED, seed=args.seed))
            record["sets"][name] = {k: round(v, 4) for k, v in figures.items()}
            print(name, record["sets"][name], flush=True)
    write(record, clip, args.clip, args.out)


def write(record: dict[str, Any], clip: FrozenCLIP, folder: Path, out: Path) -> None:
    """`accuracy.json`, and the card."""
    (out / "accuracy.json").write_text(json.dumps(record, indent=2) + "\n")
    card = render_card(
        "embedded-clip.md.j2",
        record=record,
        text=clip.model.config.text_config,
        vision=clip.model.config.vision_config,
        parameters=sum(p.numel() for p in clip.model.parameters()),
        bytes=sum(p.stat().st_size for p in folder.iterdir()),
    )
    (out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
