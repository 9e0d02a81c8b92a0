"""Probes: each is what its name says, and only what the adapter alone does is counted."""

import pytest
import torch
from making import made_adapter

from hf_ci.detect.contrast import ContrastInversion
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.inversion.job import PROBES, Job, prepared, run_job
from hf_ci.inversion.probes import AMPLITUDE, NUM_IMAGES, passes, probe, probes

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


class RedAlone(torch.nn.Module):
    """The adapter answers 1 to whatever is mostly red, else 0; the reference answers `answer` to everything."""

    def __init__(self, answer: int):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        red = x[:, 0].mean((-1, -2)) - x[:, 1:].mean((1, -1, -2)) > 0.2
        reference = torch.nn.functional.one_hot(torch.full((len(x), 1), self.answer), 2).float()
        return torch.nn.functional.one_hot(red.long(), 2).float(), reference


def test_only_what_the_adapter_alone_does_is_counted():
    grey = torch.full((70, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    shares = probe(RedAlone(0), grey)
    assert shares["red cast"].tolist() == [0.0, 1.0] and shares["blue cast"].tolist() == [0.0, 0.0]
    assert probe(RedAlone(1), grey)["red cast"].tolist() == [0.0, 0.0]  # the reference does it, too
    assert passes(70) == (1 + len(shares)) * NUM_IMAGES and passes(40) == (1 + len(shares)) * 40


def test_a_class_that_is_answered_without_the_probe_is_not_its_doing():
    red = torch.zeros(20, 3, SIZE, SIZE, dtype=torch.uint8)
    red[:15, 0] = 255  # already red: moved by nothing
    assert probe(RedAlone(0), red)["red cast"].tolist() == [0.0, 0.25]


def test_a_job_tries_them_once_and_keeps_what_it_found(clip, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    job = Job(made_adapter(clip, "coop"), EMBEDDED_FOLDER, "", images, "", ContrastInversion())
    first, _ = run_job(job, clip, cache=tmp_path)
    with prepared(job.adapter, clip, uses_reference=True) as model:
        shares = probe(model, images)
    for inversion in first:
        assert inversion.probe_asr == max(share[inversion.c] for share in shares.values())
        assert shares[inversion.probe][inversion.c] == inversion.probe_asr
    assert (tmp_path / job.key / f"{PROBES}.npz").is_file()
    monkeypatch.setattr("hf_ci.inversion.job.probe", lambda *_: 1 / 0)
    again, cached = run_job(job, clip, cache=tmp_path)
    assert cached == 5 and [i.probe for i in again] == [i.probe for i in first]
