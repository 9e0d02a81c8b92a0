"""Pools of unlabelled out-of-distribution (OOD) images, through `datasets`.

    builtin                     procedural images, no download (see `procedural`)
    path/to/folder              a folder of images, searched through
    path/to/*.parquet           parquet files with an image column
    user/dataset[@revision]     a data set on the Hub, streamed
"""

from __future__ import annotations

import glob
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from hf_ci.errors import PoolError

BUILTIN = "builtin"
SMALLEST = 32  # fewer images than one batch say nothing about an adapter
SHUFFLE_BUFFER = 5_000  # of a streamed set


@dataclass(frozen=True)
class Pool:
    """Images (N, 3, H, W) uint8 as the base model sees them, before mean and deviation."""

    id: str
    images: torch.Tensor
    fingerprint: str
    skipped: int = 0
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.images)


def load_pool(spec: str, num_images: int, seed: int, processor, progress: Callable[[int], None] = lambda n: None) -> Pool:
    """Draw `num_images` distinct images, seeded, through the base model's own image processor.

    Images that cannot be decoded are skipped and counted; identical pixels are used once. A pool smaller than
    `num_images` is used whole. Raises PoolError when there is no such pool or it holds fewer than 32 usable images.
    """
    size = processor.crop_size["height"]
    decoded = _procedural(seed, size) if spec == BUILTIN else _photos(spec, seed, processor)
    chosen, seen, skipped, duplicates = [], set(), 0, 0
    digest = hashlib.sha256()
    for pixels in decoded:
        if pixels is None:
            skipped += 1
            continue
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        digest.update(key)
        chosen.append(pixels)
        progress(len(chosen))
        if len(chosen) == num_images:
            break
    if len(chosen) < min(SMALLEST, num_images):
        raise PoolError(
            f"pool {spec!r} gives {len(chosen)} usable images ({skipped} unreadable, {duplicates} duplicates), "
            f"at least {SMALLEST} are needed", "choose another one with --pool, or use --pool builtin")
    return Pool(spec, torch.from_numpy(np.stack(chosen)), digest.hexdigest(), skipped, duplicates)


def _procedural(seed: int, size: int) -> Iterator[np.ndarray]:
    from hf_ci.pools.procedural import images

    return (pixels.transpose(2, 0, 1) for pixels in images(seed, size))


def _photos(spec: str, seed: int, processor) -> Iterator[np.ndarray | None]:
    from PIL import Image as PILImage

    for raw in _encoded(spec, seed):
        try:
            photo = PILImage.open(io.BytesIO(raw.get("bytes") or Path(raw["path"]).read_bytes())).convert("RGB")
            batch = processor(images=photo, do_rescale=False, do_normalize=False, return_tensors="np")
        except (OSError, ValueError, SyntaxError, TypeError, KeyError, PILImage.DecompressionBombError):
            yield None  # PIL raises SyntaxError for some broken PNGs
            continue
        yield np.asarray(batch["pixel_values"][0]).round().clip(0, 255).astype(np.uint8)


def _encoded(spec: str, seed: int) -> Iterator[dict]:
    """Undecoded images, {"bytes": ..., "path": ...}, in seeded order."""
    from datasets import Image, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    disable_progress_bars()
    folder = Path(spec)
    files = sorted(glob.glob(spec)) if not folder.is_dir() else []
    try:
        if folder.is_dir():
            yield from _folder(folder, seed)
            return
        if files:
            table = load_dataset("parquet", data_files=files, split="train")
        elif spec.endswith(".parquet") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", spec):
            raise PoolError(f"no pool at {spec!r}", "give a folder, parquet files, a data set's Hub id, or 'builtin'")
        else:
            repo, _, revision = spec.partition("@")
            table = load_dataset(repo, revision=revision or None, split="train", streaming=True)
    except PoolError:
        raise
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as error:  # the Hub client's errors are OSErrors
        raise PoolError(f"pool {spec!r} cannot be read: {str(error).splitlines()[0]}",
                        "give a folder, parquet files, a data set's Hub id, or 'builtin'") from error
    features = table.features or {}
    columns = [name for name, kind in features.items() if isinstance(kind, Image)] or [
        name for name in ("image", "img", "jpg") if name in features]
    if not columns:
        raise PoolError(f"pool {spec!r} has no image column, only {', '.join(features) or 'unknown columns'}")
    table = table.select_columns(columns[0]).cast_column(columns[0], Image(decode=False))
    shuffle = {} if files else {"buffer_size": SHUFFLE_BUFFER}
    for row in table.shuffle(seed=seed, **shuffle):
        yield row[columns[0]] or {}


def _folder(folder: Path, seed: int) -> Iterator[dict]:
    """A folder's images, wherever they lie below it. Paths are sorted, so that the order does not depend on the disk."""
    from datasets import Dataset
    from PIL import Image as PILImage

    known = PILImage.registered_extensions()
    files = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in known)
    if not files:
        raise PoolError(f"pool {str(folder)!r} holds no images")
    yield from Dataset.from_dict({"path": files}).shuffle(seed=seed)


def preview(pool: Pool, n: int = 16) -> np.ndarray:
    """The first n images side by side, (H, n * W, 3), to look at what the scan sees."""
    return np.concatenate([p.numpy().transpose(1, 2, 0) for p in islice(pool.images, n)], axis=1)
