"""Images of parquet files in random order, read where they lie: no copy on the disk, a few rows in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Features, Image

AHEAD = 64  # rows that are looked up together, so that each row group is read once for all of them
BUFFER = 1 << 20  # bytes of a row group that are read at once


def shuffled(files: Sequence[str], column: str, seed: int) -> Iterator[dict[str, Any]]:
    """Undecoded images, {"bytes": ..., "path": ...}: all rows of all files, in the order of `Dataset.shuffle(seed)`.

    That one would first write a copy of everything to its cache.
    """
    groups = [(file, group, rows) for file in files for group, rows in enumerate(rows_of_groups(file))]
    ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
    order = np.random.default_rng(seed).permutation(ends[-1] if len(ends) else 0)
    for start in range(0, len(order), AHEAD):
        rows = order[start : start + AHEAD]
        owners = np.searchsorted(ends, rows, side="right")
        found: dict[int, dict[str, Any]] = {}
        for owner in np.unique(owners):
            file, group, count = groups[owner]
            first = ends[owner] - count
            found |= looked_up(file, group, column, rows[owners == owner] - first, first)
        yield from (found[row] for row in rows)


def features_of(file: str) -> Features:
    return Features.from_arrow_schema(pq.read_schema(file))


def rows_of_groups(file: str) -> list[int]:
    about = pq.read_metadata(file)
    return [about.row_group(group).num_rows for group in range(about.num_row_groups)]


def looked_up(file: str, group: int, column: str, rows: np.ndarray, first: int) -> dict[int, dict[str, Any]]:
    """Some `rows` of one row group, by their number among all rows, of which the group's first is `first`."""
    found: dict[int, dict[str, Any]] = {}
    at = 0
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER) as parquet:
        for batch in parquet.iter_batches(AHEAD, row_groups=[group], columns=[column]):
            here = rows[(rows >= at) & (rows < at + len(batch))]
            if len(here):
                images = Image().cast_storage(batch.column(column)).take(here - at)
                found |= zip((first + here).tolist(), images.to_pylist())
            at += len(batch)
            if at > rows.max():
                break
    return found
