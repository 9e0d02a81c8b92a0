"""Labelled photos from any `datasets` source, as the base model sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_ci.errors import UsageError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from transformers import CLIPImageProcessorPil


@dataclass(frozen=True)
class Photos:
    """images (N, 3, H, W) uint8, labels (N,), class names in label order."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Photos:
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def some(self, n: int, seed: int) -> Photos:
        """At most n of them, drawn with `seed`."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n].sort().values]

    def few_shot(self, shots: int, seed: int) -> Photos:
        """`shots` images of every class (all of a smaller class), drawn with `seed`."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rows = [order[self.labels[order] == c][:shots] for c in range(len(self.class_names))]
        return self[torch.cat(rows)]

    def only(self, classes: list[int]) -> Photos:
        """Photos of `classes`, relabelled 0 .. len(classes) - 1 in that order."""
        new = torch.full((len(self.class_names),), -1)
        new[classes] = torch.arange(len(classes))
        keep = new[self.labels] >= 0
        return Photos(self.images[keep], new[self.labels[keep]], tuple(self.class_names[c] for c in classes))


def load_photos(source: str, split: str, processor: CLIPImageProcessorPil) -> Photos:
    """`source` is whatever `datasets.load_dataset` takes: a folder with train and test files, or a Hub id.

    The first Image column and the first ClassLabel column are used. Raises UsageError when there is none.
    """
    table, image, label = labelled_table(source, split)
    images = torch.from_numpy(np.stack([seen(photo, processor) for photo in table[image]]))
    return Photos(images, torch.tensor(table[label]), names_of(table, label))


def few_photos(
    source: str, class_names: tuple[str, ...], shots: int, seed: int, processor: CLIPImageProcessorPil
) -> Photos:
    """At most `shots` photos of each class of an adapter, in its order; no other photo is decoded.

    Names are the same whatever their case and their underscores. Raises UsageError when the data has not all classes.
    """
    table, image, label = labelled_table(source, "train")
    plain: Callable[[str], str] = lambda name: " ".join(name.replace("_", " ").lower().split())
    theirs = {plain(name): i for i, name in enumerate(names_of(table, label))}
    missing = [name for name in class_names if plain(name) not in theirs]
    if missing:
        raise UsageError(
            f"--data {source} has no class {missing[0]!r} ({len(missing)} of the adapter's {len(class_names)} classes are "
            "missing)",
            f"it has {', '.join(names_of(table, label)[:10])}; name its classes as the adapter does, or leave --data out",
        )
    labels = torch.tensor(table[label])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = [order[labels[order] == theirs[plain(name)]][:shots] for name in class_names]
    if empty := [name for name, some in zip(class_names, rows) if not len(some)]:
        raise UsageError(f"--data {source} has no photo of {empty[0]!r}", "give at least one of every class")
    photos = [seen(photo, processor) for photo in table.select(torch.cat(rows).tolist())[image]]
    owners = torch.cat([torch.full((len(some),), c) for c, some in enumerate(rows)])
    return Photos(torch.from_numpy(np.stack(photos)), owners, class_names)


def seen(photo: Image, processor: CLIPImageProcessorPil) -> np.ndarray:
    """(3, H, W) uint8, as the base model sees it."""
    pixels = processor(images=photo.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np")
    found: np.ndarray = pixels["pixel_values"][0].round().clip(0, 255).astype(np.uint8)
    return found


def class_names_of(source: str) -> tuple[str, ...]:
    """The classes of its train split, no photo being decoded. Raises UsageError as `load_photos` does."""
    table, _, label = labelled_table(source, "train")
    return names_of(table, label)


def names_of(table: Dataset, label: str) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in table.features[label].names)


def labelled_table(source: str, split: str) -> tuple[Dataset, str, str]:
    """With the names of its image and its label column."""
    from datasets import ClassLabel, Image, disable_progress_bars, load_dataset

    disable_progress_bars()
    files = {"path": "parquet", "data_files": source} if source.endswith(".parquet") else {"path": source}
    try:
        table = load_dataset(**files, split=split)
    except Exception as error:  # of `datasets` or of the Hub's client: no common ancestor
        raise UsageError(
            f"data {source!r}, split {split!r}: {first_line(error)}",
            "give a folder with train and test files, or a data set's Hub id",
        ) from error
    columns = {kind: [n for n, f in table.features.items() if isinstance(f, kind)] for kind in (Image, ClassLabel)}
    if not columns[Image] or not columns[ClassLabel]:
        raise UsageError(
            f"data {source!r} has the columns {', '.join(table.features)}: expected an image and a ClassLabel"
        )
    return table, columns[Image][0], columns[ClassLabel][0]
