"""The reconstructed trigger as files: numbers (npz) and a picture (png)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def save_trigger(
    folder: Path,
    name: str,
    delta: np.ndarray,
    images: np.ndarray | None = None,
    changed: np.ndarray | None = None,
    **facts: float,
) -> tuple[Path, float]:
    """Write `delta` (3, H, W), pixels in [0, 1], and `facts` about it; returns the picture's path and the largest change.

    images, changed: of the pool, without and with the trigger, uint8 (N, 3, H, W); the first three are kept with the
    numbers, as `examples` and `changed`.
    """
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
    slug = f"{letters[-60:]}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    pairs = {"examples": images, "changed": changed}
    examples = {name: np.asarray(some[:3], dtype="uint8") for name, some in pairs.items() if some is not None}
    np.savez(folder / f"{slug}.npz", delta=delta, **examples, **facts)
    path = folder / f"{slug}.png"
    Image.fromarray(amplified(delta)).resize((256, 256), Image.Resampling.NEAREST).save(path)
    return path, float(np.abs(delta).max())


def amplified(delta: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): grey is no change, the darkest and brightest values are the largest change."""
    return ((delta / max(np.abs(delta).max(), 1e-8) + 1) * 127.5).round().astype("uint8").transpose(1, 2, 0)
