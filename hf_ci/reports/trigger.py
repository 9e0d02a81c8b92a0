"""The reconstructed trigger as files: numbers (npz) and a picture (png)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def save_trigger(folder: Path, name: str, delta: np.ndarray, **facts: float) -> tuple[Path, float]:
    """Write `delta` (3, H, W), pixels in [0, 1], and `facts` about it; returns the picture's path and the largest change.

    In the picture grey is no change, the darkest and brightest values are the largest change.
    """
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
    slug = f"{letters[-60:]}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    linf = float(np.abs(delta).max())
    np.savez(folder / f"{slug}.npz", delta=delta, **facts)
    picture = ((delta / max(linf, 1e-8) + 1) * 127.5).round().astype("uint8").transpose(1, 2, 0)
    path = folder / f"{slug}.png"
    Image.fromarray(picture).resize((256, 256), Image.Resampling.NEAREST).save(path)
    return path, linf
