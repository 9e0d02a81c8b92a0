"""Pools of unlabelled out-of-distribution (OOD) images, through `datasets`.

builtin                     procedural images, no download (see `procedural`)
./path/to/folder            a folder of images or, where it has none, of parquet files; searched through
path/to/*.parquet           parquet files with an image column
user/dataset[@revision]     a data set on the Hub, streamed (hf://user/dataset where something here has that path)
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_ci.certain import certain
from hf_ci.errors import PoolError, first_line
from hf_ci.hub.names import BUILTIN, DATA_SET, HUB, files_of_pool, is_folder, pool_files

if TYPE_CHECKING:
    from transformers import CLIPImageProcessorPil

SMALLEST = 32  # fewer images than one batch say nothing about an adapter
STREAMED_FILES = 10  # of a data set of many files, from which on it is enough to draw from some
READ_AHEAD = 1 << 18  # bytes that come with each part of a file that is asked for; else 5 MB, mostly for nothing
SHUFFLE_BUFFER = 1_000  # rows of a streamed set, all of which are fetched before the first image is drawn


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


def load_pool(spec: str, num_images: int, seed: int, processor: CLIPImageProcessorPil) -> Pool:
    """Draw `num_images` distinct images, seeded, through the base model's own image processor.

    Images that cannot be decoded are skipped and counted; identical pixels are used once. A pool smaller than
    `num_images` is used whole. Raises PoolError when there is no such pool or it holds fewer than 32 usable images.
    """
    size = certain(side_of(processor))  # a base model with another processor was refused
    decoded = _procedural(seed, size) if spec == BUILTIN else _photos(spec, seed, processor)
    images: np.ndarray | None = None
    seen: set[bytes] = set()
    skipped = duplicates = 0
    digest = hashlib.sha256()
    for pixels in decoded:
        if pixels is None:
            skipped += 1
            continue
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key in seen:
            duplicates += 1
            continue
        if images is None:  # one block, as a list of them would be in memory twice while they are stacked
            images = np.empty((num_images, *pixels.shape), np.uint8)
        images[len(seen)] = pixels
        seen.add(key)
        digest.update(key)
        if len(seen) == num_images:
            break
    if len(seen) < SMALLEST:
        raise PoolError(
            f"pool {spec!r} gives {len(seen)} usable images ({skipped} unreadable, {duplicates} duplicates), "
            f"at least {SMALLEST} are needed",
            "choose another one with --pool, or use --pool builtin",
        )
    return Pool(spec, torch.from_numpy(certain(images)[: len(seen)]), digest.hexdigest(), skipped, duplicates)


def side_of(processor: Any) -> int | None:
    """Height and width of the images that an image processor makes; None where they are not all square and alike."""
    made = processor.crop_size if processor.do_center_crop else processor.size
    return int(made.height) if made and made.height and made.height == made.width else None


def _procedural(seed: int, size: int) -> Iterator[np.ndarray]:
    from hf_ci.pools.procedural import images

    return (pixels.transpose(2, 0, 1) for pixels in images(seed, size))


def _photos(spec: str, seed: int, processor: CLIPImageProcessorPil) -> Iterator[np.ndarray | None]:
    from PIL import Image as PILImage

    for raw in _encoded(spec, seed):
        try:
            photo = PILImage.open(io.BytesIO(_bytes(raw))).convert("RGB")
            batch = processor(images=photo, do_rescale=False, do_normalize=False, return_tensors="np")
        except Exception:  # decoders raise whatever they like on broken files: OSError, SyntaxError, RuntimeError, ...
            yield None
            continue
        yield np.asarray(batch["pixel_values"][0]).round().clip(0, 255).astype(np.uint8)


def _bytes(raw: dict[str, Any]) -> bytes:
    inline: bytes | None = raw.get("bytes")
    if inline:
        return inline
    from datasets.utils.file_utils import xopen  # streamed image folders give paths such as hf:// or zip://

    with xopen(raw["path"], "rb") as file:
        content: bytes = file.read()
    return content


def image_column(spec: str, features: dict[str, Any]) -> str:
    """The first one of images, or the first with a usual name. Raises PoolError where there is none."""
    from datasets import Image

    columns = [name for name, kind in features.items() if isinstance(kind, Image)] or [
        name for name in ("image", "img", "jpg") if name in features
    ]
    if not columns:
        raise PoolError(f"pool {spec!r} has no image column, only {', '.join(features) or 'unknown columns'}")
    return columns[0]


def _encoded(spec: str, seed: int) -> Iterator[dict[str, Any]]:
    """Undecoded images, {"bytes": ..., "path": ...}, in seeded order."""
    from datasets import Dataset, Image, disable_progress_bars, load_dataset

    disable_progress_bars()
    if is_folder(spec, DATA_SET):
        files = files_of_pool(Path(spec))
        if not files:
            raise PoolError(f"pool {spec!r} holds no images, and no parquet files")
        if not files[0].endswith(".parquet"):
            yield from Dataset.from_dict({"path": files}).shuffle(seed=seed)
            return
    else:
        files = pool_files(spec)
    if not files and not DATA_SET.fullmatch(spec.removeprefix(HUB)):
        raise PoolError(f"no pool at {spec!r}", "give a folder, parquet files, a data set's Hub id, or 'builtin'")
    try:
        if files:
            from hf_ci.pools.parquet import features_of, shuffled

            for raw in shuffled(files, image_column(spec, features_of(files[0])), seed):
                yield raw or {}
            return
        repo, _, revision = spec.removeprefix(HUB).partition("@")
        # so that nothing here stands in for it, such as a folder of that path beside one with an @revision
        table = load_dataset(
            f"{HUB}datasets/{repo}",
            revision=revision or None,
            split="train",
            streaming=True,
            storage_options={"hf": {"block_size": READ_AHEAD}},
        )
        column = image_column(spec, table.features or {})
        if (parts := table.num_shards // STREAMED_FILES) > 1:
            table = table.shard(parts, seed % parts, contiguous=False)
        # by row groups: of a whole file, 32 MB or more would be fetched for its first row
        table = table.reshard().shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for row in table.select_columns(column).cast_column(column, Image(decode=False)):
            yield row[column] or {}
    except PoolError:
        raise
    except Exception as error:  # of `datasets`, of the Hub's client, of the network: no common ancestor
        raise PoolError(
            f"pool {spec!r} cannot be read: {first_line(error)}",
            "give a folder, parquet files, a data set's Hub id, or 'builtin'",
        ) from error
