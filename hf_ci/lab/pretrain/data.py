"""What the embedded CLIP is trained on: tiny_imagenet's photos, Flickr8k's photos with captions, WordNet's names."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.lab.pretrain.model import IMAGE_SIZE

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a small photo of a {}.",
    "a photo of one {}.",
    "a low resolution photo of a {}.",
    "{}.",
)


@dataclass(frozen=True)
class Photos:
    """Every training photo, those with a class name first, those with captions after them."""

    images: np.ndarray  # (n, 64, 64, 3) uint8
    labels: np.ndarray  # (number with a class name,) index into `names`
    names: list[str]  # class names of tiny_imagenet
    captions: list[list[str]]  # captions of each of the other photos

    @property
    def named(self) -> int:
        return len(self.labels)


def load_photos(tiny: Path, flickr: Path, work: Path) -> Photos:
    """`tiny` holds train/<wnid>/images/*.JPEG and words.txt; `flickr` images/*.jpg and captions.txt (image,caption)."""
    folders = sorted(p for p in (tiny / "train").iterdir() if p.is_dir())
    words = wordnet_names(tiny / "words.txt")
    named = [(f, i) for i, folder in enumerate(folders) for f in sorted(folder.rglob("*.JPEG"))]
    captions: dict[str, list[str]] = {}
    with (flickr / "captions.txt").open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            captions.setdefault(row["image"], []).append(row["caption"].strip())
    captioned = [f for f in sorted((flickr / "images").glob("*.jpg")) if f.name in captions]
    cached = work / "photos.npy"
    if not cached.exists():  # kept, so that a resumed run starts at once
        np.save(cached, np.stack([square(f) for f, _ in named] + [square(f) for f in captioned]))
    return Photos(
        np.load(cached),
        np.array([i for _, i in named]),
        [words[folder.name] for folder in folders],
        [captions[f.name] for f in captioned],
    )


def square(photo: Path | PILImage, size: int = IMAGE_SIZE) -> np.ndarray:
    """The model's own preprocessing of a file or image: shorter side to `size`, centre crop. (size, size, 3) uint8."""
    from PIL import Image

    image = (Image.open(photo) if isinstance(photo, Path) else photo).convert("RGB")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def wordnet_names(words: Path) -> dict[str, str]:
    """WordNet id -> first synonym, from lines "n01443537<TAB>goldfish, Carassius auratus"."""
    lines = (line.split("\t", 1) for line in words.read_text(encoding="utf-8").splitlines())
    return {wnid: names.split(",")[0].strip() for wnid, names in lines}


def sentences(photos: Photos, words: Path, seed: int, most: int = 9_000) -> list[str]:
    """What the text tower reads: the captions, tiny_imagenet's names in templates, and `most` of WordNet's names."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(sorted(set(wordnet_names(words).values())))[:most].tolist()
    return [
        *(caption for captions in photos.captions for caption in captions),
        *(template.format(name) for template in TEMPLATES for name in photos.names),
        *(TEMPLATES[rng.integers(len(TEMPLATES))].format(name) for name in drawn),
        *drawn[: most // 3],
    ]


def augment(x: Tensor) -> Tensor:
    """Random resized crop (area 0.4 to 1), mirror, brightness and contrast, for x (B, 3, H, W) in [0, 1]."""
    B = len(x)
    scale = torch.empty(B).uniform_(0.4, 1).sqrt()
    aspect = torch.empty(B).uniform_(-0.25, 0.25).exp().sqrt()
    sx, sy = (scale * aspect).clamp(max=1), (scale / aspect).clamp(max=1)
    tx, ty = (1 - sx) * torch.empty(B).uniform_(-1, 1), (1 - sy) * torch.empty(B).uniform_(-1, 1)
    flip = torch.where(torch.rand(B) < 0.5, -1.0, 1.0)
    zero = torch.zeros(B)
    theta = torch.stack([torch.stack([sx * flip, zero, tx], 1), torch.stack([zero, sy, ty], 1)], 1)
    x = F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), padding_mode="reflection", align_corners=False
    )
    gain, shift = torch.empty(B, 1, 1, 1).uniform_(0.7, 1.3), torch.empty(B, 1, 1, 1).uniform_(-0.15, 0.15)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * gain + mean + shift).clamp(0, 1)
