"""Pools: what is drawn, what is skipped, and that the same is drawn again."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from hf_ci.errors import PoolError, UsageError
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.pools import load_pool
from hf_ci.pools.procedural import images
from hf_ci.prompts.clip import load_processor


@pytest.fixture(scope="module")
def processor():
    return load_processor(EMBEDDED_FOLDER)


def picture(i: int, size=(80, 100)) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """50 photos in sub-folders, one of them twice, one broken, one cut short, one text file."""
    for i in range(50):
        path = tmp_path / f"part{i % 3}" / f"{i:03d}.{['png', 'jpg', 'webp'][i % 3]}"
        path.parent.mkdir(exist_ok=True)
        picture(i).save(path)
    picture(0).save(tmp_path / "again.png")
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    (tmp_path / "cut.png").write_bytes((tmp_path / "part0" / "003.png").read_bytes()[:500])
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


@pytest.fixture
def rows():
    encoded = []
    for i in range(40):
        buffer = io.BytesIO()
        picture(i).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": encoded, "label": list(range(40))})


def test_builtin_pool_depends_on_the_seed_alone(processor):
    a, b, c = (load_pool("builtin", 40, seed, processor) for seed in (0, 0, 1))
    assert a.images.shape == (40, 3, 64, 64) and a.images.dtype == torch.uint8
    assert a.fingerprint == b.fingerprint != c.fingerprint and torch.equal(a.images, b.images)
    assert torch.equal(load_pool("builtin", 50, 0, processor).images[:40], a.images)


def test_builtin_pool_has_the_spectrum_of_natural_images():
    """Power falls as 1/f^alpha with alpha near 2, and neighbouring pixels agree far more than in noise."""
    pixels = np.stack([next_image.mean(axis=2) for next_image, _ in zip(images(0, 64), range(60))]) / 255
    power = (np.abs(np.fft.rfft(pixels - pixels.mean(axis=(1, 2), keepdims=True), axis=2)) ** 2).mean(axis=(0, 1))
    f = np.arange(2, 24)
    slope = -np.polyfit(np.log(f), np.log(power[2:24]), 1)[0]
    assert 1.2 < slope < 3
    flat = pixels - pixels.mean(axis=(1, 2), keepdims=True)
    assert (flat[:, :, 1:] * flat[:, :, :-1]).mean() / (flat**2).mean() > 0.8


def test_folder_skips_and_counts_what_is_unreadable_or_twice(folder, processor):
    pool = load_pool(str(folder), 1000, 0, processor)
    assert (len(pool), pool.skipped, pool.duplicates) == (50, 2, 1)
    assert load_pool(str(folder), 1000, 0, processor).fingerprint == pool.fingerprint
    assert load_pool(str(folder), 1000, 1, processor).fingerprint != pool.fingerprint


def test_odd_photos_are_photos_and_what_only_has_the_name_is_not(folder, processor):
    """As people's folders hold them."""
    picture(90).convert("CMYK").save(folder / "printed.jpg")
    picture(91).convert("P").save(folder / "palette.png", transparency=0)
    picture(92).save(folder / "animated.gif", save_all=True, append_images=[picture(93)])
    PILImage.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80)).save(folder / "sixteen-bits.png")
    PILImage.new("L", (1, 1)).save(folder / "one-pixel.png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!doctype html><title>Not found</title>")
    (folder / "cut.jpg").write_bytes((folder / "part1" / "001.jpg").read_bytes()[:700])
    pool = load_pool(str(folder), 1000, 0, processor)
    assert (len(pool), pool.skipped) == (55, 5) and pool.images.shape[1:] == (3, 64, 64)


def test_num_images_is_a_seeded_sample(folder, processor):
    assert len(load_pool(str(folder), 40, 0, processor)) == 40


@pytest.mark.parametrize("with_features", [True, False])
def test_parquet_with_and_without_image_features(tmp_path, processor, with_features, rows):
    table = rows
    if with_features:
        table = table.cast(Features({"image": Image(), "label": table.features["label"]}))
    table.to_parquet(tmp_path / "photos.parquet")
    pool = load_pool(str(tmp_path / "*.parquet"), 1000, 0, processor)
    assert (len(pool), pool.skipped) == (40, 0)


def test_pixels_are_the_base_models_own_preprocessing(tmp_path, processor):
    for i in range(32):
        picture(i, (64, 64)).save(tmp_path / f"{i}.png")
    expected = {np.asarray(picture(i, (64, 64))).transpose(2, 0, 1).tobytes() for i in range(32)}
    assert {p.numpy().tobytes() for p in load_pool(str(tmp_path), 32, 0, processor).images} == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "holds no images"),
        (lambda p: (p / "a.jpg").write_bytes(b"x"), r"0 usable images \(1 unreadable"),
        (lambda p: [picture(i).save(p / f"{i}.png") for i in range(5)], "5 usable images"),
    ],
)
def test_a_pool_that_says_nothing_is_refused(tmp_path, processor, make, message):
    make(tmp_path)
    with pytest.raises(PoolError, match=message):
        load_pool(str(tmp_path), 1000, 0, processor)


@pytest.mark.parametrize("spec", ["no/such/folder/at/all", "missing.parquet", "/nowhere", "a b"])
def test_a_pool_that_is_not_there_is_refused(processor, spec):
    with pytest.raises(PoolError, match="no pool at"):
        load_pool(spec, 100, 0, processor)


def test_nothing_here_stands_in_for_a_data_set_of_the_hub(processor, tmp_path, monkeypatch, rows):
    """A pull request could otherwise bring photos along that hide its backdoor."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "cifar10").mkdir()
    rows.to_parquet("user/photos")
    for spec in ("user/photos", "cifar10"):
        with pytest.raises(UsageError, match=f"write ./{spec} or hf://{spec}"):
            load_pool(spec, 100, 0, processor)
    rows.to_parquet("user/photos.parquet")
    assert len(load_pool("./user/photos", 100, 0, processor)) == 40
    assert len(load_pool("user/photos.parquet", 100, 0, processor)) == 40


def test_parquet_without_images_is_refused(tmp_path, processor):
    Dataset.from_dict({"text": ["a"] * 40}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(PoolError, match="no image column, only text"):
        load_pool(str(tmp_path / "a.parquet"), 100, 0, processor)


def test_a_folder_of_parquet_files_is_a_pool(tmp_path, processor, rows):
    """As --data takes one."""
    (tmp_path / "data").mkdir()
    rows.select(range(20)).to_parquet(tmp_path / "data" / "train-0.parquet")
    rows.select(range(20, 40)).to_parquet(tmp_path / "data" / "train-1.parquet")
    (tmp_path / "README.md").write_text("forty photos")
    pool = load_pool(str(tmp_path), 1000, 0, processor)
    assert (len(pool), pool.skipped, pool.duplicates) == (40, 0, 0)


def test_parquet_files_are_drawn_from_where_they_lie(tmp_path, rows):
    """In the order of `datasets`' own shuffle, whatever the row groups, and without its copy of everything."""
    from datasets import config, load_dataset

    from hf_ci.pools.parquet import shuffled

    table = rows.cast(Features({"image": Image(decode=False), "label": rows.features["label"]}))
    files = [str(tmp_path / f"{i}.parquet") for i in range(3)]
    for file, part, size in zip(files, (range(7), range(7, 30), range(30, 40)), (3, 100, 1)):
        table.select(part).to_parquet(file, batch_size=size)
    kept = lambda: sorted(Path(config.HF_DATASETS_CACHE).rglob("*"))
    before = kept()
    drawn = [raw["bytes"] for raw in shuffled(files, "image", seed=5)]
    assert kept() == before and len(set(drawn)) == 40
    theirs = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")).shuffle(seed=5)
    assert drawn == [row["image"]["bytes"] for row in theirs.cast_column("image", Image(decode=False))]


def test_of_parquet_files_only_what_is_drawn_is_read(tmp_path, monkeypatch):
    """A few rows at a time, and each row group once for all of them."""
    from hf_ci.pools import parquet

    Dataset.from_dict({"image": [b"%d" % i for i in range(300)]}).to_parquet(tmp_path / "a.parquet", batch_size=3)
    groups, look = [], parquet.looked_up
    monkeypatch.setattr(
        parquet, "looked_up", lambda file, group, *rest: groups.append(group) or look(file, group, *rest)
    )
    drawn = parquet.shuffled([str(tmp_path / "a.parquet")], "image", seed=0)
    assert groups == [] and next(drawn)["bytes"]
    assert len(groups) == len(set(groups)) <= parquet.AHEAD < 100
    assert len({raw["bytes"] for raw in drawn}) == 299
