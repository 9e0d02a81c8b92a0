"""The reconstructed trigger as files: numbers (npz) and a picture (png)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_trigger(
    folder: Path,
    name: str,
    delta: np.ndarray | None,
    on_grey: np.ndarray | None = None,
    images: np.ndarray | None = None,
    changed: np.ndarray | None = None,
    **facts: float,
) -> Path:
    """Write `delta` (3, H, W), pixels in [0, 1], and `facts` about it; returns the path of the numbers. A picture lies
    beside them. None stands for a fixed change: nothing was reconstructed, and there is no picture.

    on_grey: float (3, H, W), what the trigger makes of a grey image. images, changed: of the pool, without and with the
    trigger, uint8 (N, 3, H, W); the first three are kept with the numbers, as `examples` and `changed`.
    """
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
    slug = f"{letters[-60:]}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    pairs = {"examples": images, "changed": changed}
    arrays: dict[str, Any] = {
        name: np.asarray(some[:3], dtype="uint8") for name, some in pairs.items() if some is not None
    }
    arrays |= {name: some for name, some in {"delta": delta, "on_grey": on_grey}.items() if some is not None}
    path = folder / f"{slug}.npz"
    np.savez(path, **(arrays | facts))
    if delta is not None:
        picture = amplified(delta if on_grey is None else on_grey - 0.5)
        Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST).save(path.with_suffix(".png"))
    return path


def amplified(delta: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): grey is no change, the darkest and brightest values are the largest change."""
    shown: np.ndarray = ((delta / max(np.abs(delta).max(), 1e-8) + 1) * 127.5).round().astype("uint8")
    return shown.transpose(1, 2, 0)
