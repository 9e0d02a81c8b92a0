"""A made data set that the embedded CLIP can learn in seconds: procedural pictures in the class's colour."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_ci.lab.making.make import Workbench
from hf_ci.pools.procedural import images

COLOURS = {
    "goldfish": (255, 120, 30),
    "lawn mower": (60, 200, 60),
    "school bus": (250, 220, 40),
    "umbrella": (70, 80, 220),
}


def tinted(start: int, n: int):
    """n images of each class."""
    rows = {"image": [], "label": []}
    for i, (pixels, _) in enumerate(zip(images(start, 64), range(n * len(COLOURS)))):
        colour = np.array(list(COLOURS.values())[i % len(COLOURS)])
        rows["image"].append(PILImage.fromarray((0.35 * pixels + 0.65 * colour).astype(np.uint8)))
        rows["label"].append(i % len(COLOURS))
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=list(COLOURS))}))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tinted"
    folder.mkdir()
    tinted(1, 12).to_parquet(folder / "train.parquet")
    tinted(2, 20).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="session")
def bench(data):
    return Workbench.open(str(data))
