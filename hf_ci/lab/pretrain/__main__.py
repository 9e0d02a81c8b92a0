"""Train the embedded CLIP, from nothing to a ``CLIPModel`` folder.

    python -m hf_ci.lab.pretrain --tiny TINY --flickr FLICKR --work WORK --out OUT

TINY is tiny_imagenet (``train/<wnid>/images/*.JPEG`` and ``words.txt``), FLICKR is Flickr8k (``images/*.jpg`` and
``captions.txt`` with the columns image and caption). No other photo or class name is used, so every other data set
is new to the result.

1. **Text tower** (`text.py`): distilled from MiniLM sentence embeddings less their mean, on the captions,
   tiny_imagenet's names in templates, and some of WordNet's names.
2. **Image tower** (`image.py`): contrasted with the finished text tower's embeddings of names and captions, and
   distilled from EfficientNet-Lite0.

Everything is kept in WORK as it comes, and the same command resumes (for another seed or other photos, take another
WORK). ``--minutes`` bounds the image tower's run by the clock, and its schedule follows whichever of steps and minutes
is nearer to its end. The tokenizer stays: its merges were learned from WordNet's names.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_ci.lab.pretrain.data import TEMPLATES, load_photos, sentences, square
from hf_ci.lab.pretrain.image import train_image_tower
from hf_ci.lab.pretrain.model import build_model, export, load_tokenizer, normalised, pooled, text_features
from hf_ci.lab.pretrain.teachers import photo_features, sentence_embeddings
from hf_ci.lab.pretrain.text import train_text_tower

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase


@torch.inference_mode()
def zero_shot(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, data: Path, most: int = 1000) -> float:
    """Accuracy of "a photo of a {class}." on `most` photos of a parquet file with ``image`` and ``label``."""
    from datasets import load_dataset

    table = load_dataset("parquet", data_files=str(data), split="train").shuffle(seed=0)
    table = table.select(range(min(most, len(table))))
    names = [name.replace("_", " ") for name in table.features["label"].names]
    w = text_features(model, tokenizer, [TEMPLATES[0].format(name) for name in names])
    x = torch.from_numpy(np.stack([square(i) for i in table["image"]]))
    v = torch.cat([model.visual_projection(pooled(model.vision_model, normalised(b))) for b in x.split(250)])
    return ((v @ w.T).argmax(1) == torch.tensor(table["label"])).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m hf_ci.lab.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", type=Path, required=True)
    parser.add_argument("--flickr", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--watch", type=Path, help="parquet file of test photos, measured on the way")
    parser.add_argument("--text-steps", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--text-minutes", type=float, default=math.inf)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer()
    model = build_model(tokenizer)
    photos = load_photos(args.tiny, args.flickr, args.work)
    texts = sentences(photos, args.tiny / "words.txt", args.seed)
    common = {"work": args.work, "seed": args.seed}
    train_text_tower(
        model, tokenizer, texts, sentence_embeddings(texts, args.work),
        steps=args.text_steps, minutes=args.text_minutes, **common,
    )  # fmt: skip

    def watch() -> dict[str, Any]:
        export(model, args.out)
        return {"zero_shot": zero_shot(model, tokenizer, args.watch)} if args.watch else {}

    train_image_tower(
        model, tokenizer, photos, photo_features(photos.images[: photos.named], args.work),
        steps=args.steps, minutes=args.minutes, watch=watch, **common,
    )  # fmt: skip


if __name__ == "__main__":
    main()
