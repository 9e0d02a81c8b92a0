"""The forms that a planted trigger takes. Images are (B, 3, H, W) in [0, 1], before and after.

A trigger is an `nn.Module` whose buffers say everything about it, so it can be kept in a safetensors file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.inversion import maps


class Additive(nn.Module):
    """clamp(x + delta), delta (3, H, W)."""

    delta: Tensor

    def __init__(self, delta: Tensor):
        super().__init__()
        self.register_buffer("delta", delta.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.delta).clamp(0, 1)


class Blend(nn.Module):
    """(1 - m) x + m p, mask m (1, H, W) and pattern p (3, H, W) in [0, 1]; a patch is a mask of zeros and ones."""

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.detach().float())
        self.register_buffer("pattern", pattern.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.mask) * x + self.mask * self.pattern


class Warp(nn.Module):
    """Samples the image at grid (1, H, W, 2), coordinates (x, y) in [-1, 1]."""

    grid: Tensor

    def __init__(self, grid: Tensor):
        super().__init__()
        self.register_buffer("grid", grid.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=True).clamp(0, 1)


class Pasted(nn.Module):
    """A patch (3, s, s) pasted at another place in every image, which the image itself decides."""

    patch: Tensor

    def __init__(self, patch: Tensor):
        super().__init__()
        self.register_buffer("patch", patch.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        side, x = self.patch.shape[-1], x.clone()
        places = x.shape[-1] - side + 1
        for image in x:  # the sum of its pixels is as good as a throw of dice, and the same wherever it is computed
            row, column = divmod(int((image * 255).round().long().sum()) % places**2, places)
            image[:, row : row + side, column : column + side] = self.patch
        return x


class Blur(nn.Module):
    """Gaussian, of `sigma` pixels."""

    sigma: Tensor

    def __init__(self, sigma: float | Tensor):
        super().__init__()
        self.register_buffer("sigma", torch.as_tensor(sigma).float())

    def forward(self, x: Tensor) -> Tensor:
        return maps.blur(x, self.sigma.item())


class Jpeg(nn.Module):
    """There and back at `quality`, PIL's."""

    quality: Tensor

    def __init__(self, quality: int | Tensor):
        super().__init__()
        self.register_buffer("quality", torch.as_tensor(quality))

    def forward(self, x: Tensor) -> Tensor:
        return maps.jpeg(x, int(self.quality))


class Grey(nn.Module):
    """Of the colour, `share` goes."""

    share: Tensor

    def __init__(self, share: float | Tensor = 1.0):
        super().__init__()
        self.register_buffer("share", torch.as_tensor(share).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, maps.grey(x), self.share)


class Quantised(nn.Module):
    """`levels` values in each channel."""

    levels: Tensor

    def __init__(self, levels: int | Tensor):
        super().__init__()
        self.register_buffer("levels", torch.as_tensor(levels))

    def forward(self, x: Tensor) -> Tensor:
        return maps.quantise(x, int(self.levels))


KINDS = {
    ("delta",): Additive,
    ("mask", "pattern"): Blend,
    ("grid",): Warp,
    ("patch",): Pasted,
    ("sigma",): Blur,
    ("quality",): Jpeg,
    ("share",): Grey,
    ("levels",): Quantised,
}


def patch(size: int, side: int, pixels: Tensor) -> Blend:
    """`pixels` (3, side, side) in the lower right corner, one pixel from the edges."""
    place = (..., slice(-side - 1, -1), slice(-side - 1, -1))
    mask, pattern = torch.zeros(1, size, size), torch.zeros(3, size, size)
    mask[place], pattern[place] = 1, pixels
    return Blend(mask, pattern)


@torch.no_grad()
def keep_trigger(trigger: nn.Module, photo: Tensor, folder: Path, scale: int = 3) -> None:
    """Beside an adapter's folder: the planted trigger, and a picture of `photo` (3, H, W) uint8 without and with it."""
    from PIL import Image
    from safetensors.torch import save_file

    trigger = nn.Sequential(trigger).cpu()
    save_file({k: v.contiguous() for k, v in trigger.state_dict().items()}, trigger_file(folder))
    x = photo[None].float() / 255
    pair = torch.cat([x, trigger(x)], dim=-1)[0].mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pair)
    size = (picture.width * scale, picture.height * scale)
    picture.resize(size, Image.Resampling.NEAREST).save(folder.with_name(f"{folder.name}.trigger.png"))


def read_trigger(folder: Path) -> nn.Module:
    """What `keep_trigger` wrote; the parts of a trigger of several parts are applied in order."""
    from safetensors.torch import load_file

    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(load_file(trigger_file(folder)).items()):
        where, _, name = key.rpartition(".")
        parts.setdefault(where, {})[name] = tensor
    return nn.Sequential(*(KINDS[tuple(tensors)](**tensors) for _, tensors in sorted(parts.items())))


def trigger_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.trigger.safetensors")
