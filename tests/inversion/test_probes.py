"""Probes: each is what its name says, and only what the adapter alone does is counted."""

import pytest
import torch
from making import made_adapter

from hf_ci.inversion import maps
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.job import PROBES, Job, dealt, prepared, run_job
from hf_ci.inversion.probes import AMPLITUDE, NUM_IMAGES, UNTOUCHED, Probed, passes, probe, probes

SIZE = 64


def test_waves_have_their_periods_and_direction():
    grey = torch.full((1, 3, SIZE, SIZE), 0.5)
    for name, axes in {"across": (-1,), "down": (-2,), "diagonal": (-2, -1)}.items():
        delta = (probes(SIZE)[f"wave of 5 periods, {name}"](grey) - grey)[0]
        assert delta.abs().max() == pytest.approx(AMPLITUDE, rel=0.05)
        spectrum = torch.fft.rfft2(delta[0]).abs()
        row, column = divmod(int(spectrum.argmax()), spectrum.shape[1])
        assert min(row, SIZE - row) == (5 if -2 in axes else 0) and column == (5 if -1 in axes else 0)


def test_a_cast_moves_towards_its_colour_and_a_turn_moves_pixels():
    x = torch.rand(2, 3, SIZE, SIZE)
    red = probes(SIZE)["red cast"](x)
    torch.testing.assert_close(red[:, 0], 0.7 * x[:, 0] + 0.3)
    torch.testing.assert_close(red[:, 1:], 0.7 * x[:, 1:])
    torch.testing.assert_close(probes(SIZE)["turn by 180 degrees"](x), x.flip(-1, -2), atol=1e-4, rtol=0)
    torch.testing.assert_close(probes(SIZE)["turn by 90 degrees"](x), x.rot90(1, (-2, -1)), atol=1e-4, rtol=0)


def test_warps_move_pixels_and_differ():
    across = torch.linspace(0, 1, SIZE).expand(1, 3, SIZE, SIZE)
    first, second = (probes(SIZE)[f"warp {seed}"](across) - across for seed in (1, 2))
    for moved in (first, second):
        assert 1 / 64 < moved.abs().mean() < 1 / 8 and moved.std() > 1 / 64
    assert (first - second).abs().mean() > 1 / 64
    assert torch.equal(probes(SIZE)["warp 1"](across) - across, first)


def test_maps_lose_what_their_names_say():
    x = torch.rand(2, 3, SIZE, SIZE)
    dot = torch.zeros(1, 3, 65, 65)
    dot[..., 32, 32] = 1
    for sigma in (1, 2):
        spread = maps.blur(dot, sigma)[0, 0]
        at = torch.arange(65) - 32.0
        assert spread.sum() == pytest.approx(1, abs=1e-4)
        assert (spread.sum(0) * at**2).sum().sqrt() == pytest.approx(sigma, rel=0.05)
    assert (probes(SIZE)["blur of 2 in 64 pixels"](x).std() < probes(SIZE)["blur of 1 in 64 pixels"](x).std()).all()
    seen = probes(SIZE)["JPEG of quality 10"](x)
    assert seen.shape == x.shape and seen.dtype == x.dtype and seen.min() >= 0 and seen.max() <= 1
    assert (seen - x).abs().mean() > (maps.jpeg(x, 95) - x).abs().mean() > 0
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(probes(4)["loss of colour"](red), torch.full((1, 3, 4, 4), 0.299))
    few = probes(SIZE)["quantisation to 4 levels"](x)
    torch.testing.assert_close(few.unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert (few - x).abs().max() <= 1 / 6 + 1e-6


def red_alone(answer: int):
    """Of pixels: the adapter answers 1 to whatever is mostly red, else 0; the reference answers `answer` to everything."""

    def answers(x):
        red = x[:, 0].mean((-1, -2)) - x[:, 1:].mean((1, -1, -2)) > 0.2
        reference = torch.nn.functional.one_hot(torch.full((len(x), 1), answer), 2).float()
        return torch.nn.functional.one_hot(red.long(), 2).float(), reference

    return answers


def as_pixels(images):
    """An encoder that does nothing."""
    return Probed(lambda x: x, images)


def test_only_what_the_adapter_alone_does_is_counted():
    grey = torch.full((70, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    shares = probe(red_alone(0), as_pixels(grey))
    assert shares["red cast"].tolist() == [0.0, 1.0] and shares["blue cast"].tolist() == [0.0, 0.0]
    assert probe(red_alone(1), as_pixels(grey))["red cast"].tolist() == [0.0, 0.0]  # the reference does it, too
    assert passes(70) == 70 + len(shares) * NUM_IMAGES and passes(40) == (1 + len(shares)) * 40


def test_a_class_that_is_answered_without_the_probe_is_not_its_doing():
    red = torch.zeros(20, 3, SIZE, SIZE, dtype=torch.uint8)
    red[:15, 0] = 255  # already red: moved by nothing
    assert probe(red_alone(0), as_pixels(red))["red cast"].tolist() == [0.0, 0.25]


def test_each_probe_goes_to_the_process_with_the_least_to_do():
    names = [f"probe {i}" for i in range(23)]
    assert dealt(names, [0]) == [names]
    first, second = dealt(names, [3 * 512, 2 * 512])
    assert sorted(first + second) == sorted(names) and (len(first), len(second)) == (8, 15)
    assert dealt(names[:2], [5000, 0]) == [[], names[:2]]


def test_features_are_encoded_once_for_all_adapters_and_kept(tmp_path):
    images, seen = torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8), []

    def encode(x):
        seen.append(len(x))
        return x.mean((-1, -2))

    probed = Probed(encode, images, tmp_path)
    first = probed.features("red cast")
    torch.testing.assert_close(first[:, 0], 0.7 * images[:, 0].float().mean((-1, -2)) / 255 + 0.3)
    assert probed.features("red cast") is first and sum(seen) == 20
    torch.testing.assert_close(probed.features(UNTOUCHED), images.float().mean((-1, -2)) / 255)
    again = Probed(encode, images, tmp_path).features("red cast")
    assert torch.equal(again, first) and sum(seen) == 40  # read, not encoded
    (tmp_path / "red cast.npz").write_bytes(b"half a file")
    assert torch.equal(Probed(encode, images, tmp_path).features("red cast"), first) and sum(seen) == 60


def test_a_job_tries_them_once_and_keeps_what_it_found(tiny, base, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
    job = Job(made_adapter(tiny, "coop"), base, "", images, "", ContrastInversion())
    first = run_job(job, tiny, cache=tmp_path).inversions
    with prepared(job.adapter, tiny, uses_reference=True) as model:
        shares = probe(model.from_features, Probed(tiny.image_features, images))
    for inversion in first:
        assert inversion.probe_asr == max(share[inversion.c] for share in shares.values())
        assert shares[inversion.probe][inversion.c] == inversion.probe_asr
    assert (tmp_path / job.key / f"{PROBES}.npz").is_file()
    monkeypatch.setattr("hf_ci.inversion.job.probe", lambda *_: 1 / 0)
    again = run_job(job, tiny, cache=tmp_path)
    assert (tmp_path / job.shared / "red cast.npz").is_file()
    assert again.cached == 5 and [i.probe for i in again.inversions] == [i.probe for i in first]
