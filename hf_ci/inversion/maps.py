"""Fixed maps of pictures: what a camera, a phone or a web site does to them, and what no sum of pixels imitates.

Pixels (B, 3, H, W) in [0, 1], before and after, on any device.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's own "L"


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian, of `sigma` pixels; the border is repeated."""
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, device=x.device)
    taps = torch.exp(-((at / sigma) ** 2) / 2)
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.pad(x, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, taps, groups=x.shape[1]), taps.mT, groups=x.shape[1]).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """There and back through PIL, on the CPU, whatever the device."""
    pictures = x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    seen = [_recompressed(picture, quality) for picture in pictures]
    return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).to(x) / 255


def _recompressed(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def grey(x: Tensor) -> Tensor:
    luma = torch.tensor(LUMA, device=x.device)
    return torch.einsum("bchw,c->bhw", x, luma)[:, None].expand_as(x)


def quantise(x: Tensor, levels: int) -> Tensor:
    """`levels` evenly spaced values in each channel."""
    return (x * (levels - 1)).round() / (levels - 1)
