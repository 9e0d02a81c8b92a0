"""The embedded CLIP's recipe, on a handful of photos: both towers learn, and a stopped run goes on."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ci.lab.pretrain.data import load_photos, sentences
from hf_ci.lab.pretrain.image import train_image_tower
from hf_ci.lab.pretrain.model import build_model, export, load_tokenizer, text_features
from hf_ci.lab.pretrain.text import train_text_tower
from hf_ci.prompts import load_clip


@pytest.fixture
def photos(tmp_path):
    tiny, flickr = tmp_path / "tiny", tmp_path / "flickr"
    for i, wnid in enumerate(("n01", "n02")):
        (tiny / "train" / wnid / "images").mkdir(parents=True)
        for k in range(4):
            pixels = np.full((64, 64, 3), (200, 40, 40) if i else (40, 40, 200), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(5 * k)).save(tiny / "train" / wnid / "images" / f"{wnid}_{k}.JPEG")
    (tiny / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tschool bus\nn03\tumbrella\n")
    (flickr / "images").mkdir(parents=True)
    rows = ["image,caption"]
    for k in range(3):
        Image.new("RGB", (90, 70), (0, 80 * k, 0)).save(flickr / "images" / f"{k}.jpg")
        rows += [f'{k}.jpg,"A green field, number {k} ."', f"{k}.jpg,Grass number {k} ."]
    (flickr / "captions.txt").write_text("\n".join(rows))
    work = tmp_path / "work"
    work.mkdir()
    return load_photos(tiny, flickr, work), tiny / "words.txt", work


def test_photos_keep_their_names_and_captions(photos):
    loaded, words, _ = photos
    assert loaded.images.shape == (11, 64, 64, 3) and loaded.labels.tolist() == [0] * 4 + [1] * 4
    assert loaded.names == ["goldfish", "school bus"]
    assert loaded.captions[2] == ["A green field, number 2 .", "Grass number 2 ."]
    assert {"Grass number 1 .", "a photo of a school bus.", "umbrella"} <= set(sentences(loaded, words, seed=0))


def test_text_tower_nears_its_targets(photos):
    loaded, words, work = photos
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    model = build_model(tokenizer)
    texts = sentences(loaded, words, seed=0)
    targets = torch.nn.functional.normalize(torch.randn(len(texts), 384), dim=1)
    cosine = lambda: (text_features(model, tokenizer, texts) * targets).sum(1).mean().item()
    before = cosine()
    train_text_tower(model, tokenizer, texts, targets, work, steps=20, minutes=math.inf, seed=0)
    assert cosine() > before + 0.05


def test_image_tower_is_written_and_a_stopped_run_goes_on(photos, tmp_path):
    loaded, _, work = photos
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    model = build_model(tokenizer)
    teacher = (
        np.random.default_rng(0).random((loaded.named, 1280), dtype=np.float32),
        torch.randn(5, 1280),
        torch.randn(5),
    )
    text = text_features(model, tokenizer, loaded.names)

    def train(steps: int) -> int:
        train_image_tower(
            model, tokenizer, loaded, teacher, work, steps=steps, minutes=math.inf, seed=0,
            watch=lambda: export(model, tmp_path / "out") or {},
        )  # fmt: skip
        return json.loads((work / "image.jsonl").read_text().splitlines()[-1])["step"]

    assert train(1) == 1
    assert train(2) == 2  # from the checkpoint: two steps in all
    assert torch.equal(text, text_features(model, tokenizer, loaded.names))  # the text tower stays as it is
    clip = load_clip(tmp_path / "out")
    assert clip.feature_dim == 384 and (tmp_path / "out" / "model.safetensors").stat().st_size < 20 * 2**20
