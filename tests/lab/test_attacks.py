"""Each attack: the trigger is what its definition says, and the backdoor is real."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import get_args

import pytest
import torch

from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.lab.attacks import (
    ATTACKS,
    adaptive,
    badclip,
    badnets,
    baple,
    blended,
    degraded,
    frame,
    noise,
    one_source,
    photo_blend,
    semantic,
    siba,
    sig,
    wanet,
)
from hf_ci.lab.attacks.dirty_label import others
from hf_ci.lab.making.make import accuracy, attack_success_rate
from hf_ci.lab.making.triggers import keep_trigger, read_trigger
from hf_ci.lab.making.tune import Recipe, tune
from hf_ci.lab.options import AttackName
from hf_ci.pools import load_pool
from hf_ci.prompts import BesideReferences
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.features import encode, predict

TARGET = 1
RECIPE = Recipe("coop", shots=12, epochs=30)  # its texts are encoded once a step, not once an image


@pytest.fixture(scope="module")
def twin(bench):
    return tune(bench.clip, bench.shots(RECIPE), RECIPE)


def test_blended_is_a_fifth_of_fixed_noise():
    trigger, x = blended.blended(64, 3), torch.rand(2, 3, 64, 64)
    noise = (trigger(x) - 0.8 * x) / 0.2
    torch.testing.assert_close(noise[0], noise[1], atol=1e-5, rtol=0)
    assert noise.min() >= 0 and noise.max() <= 1 and noise.std() > 0.25
    assert torch.equal(blended.blended(64, 3).pattern, trigger.pattern)
    assert not torch.equal(blended.blended(64, 4).pattern, trigger.pattern)


@pytest.mark.parametrize("size, side", [(64, 5), (224, 16)])
def test_badnets_is_a_patch_in_the_corner(size, side):
    x = torch.full((1, 3, size, size), 0.5)
    changed = (badnets.badnets(size, 0)(x) != x).any(1)[0]
    rows, columns = changed.nonzero().unbind(1)
    assert changed.sum() == side**2
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        size - side - 1,
        size - 2,
        size - side - 1,
        size - 2,
    )


def test_sig_is_a_horizontal_wave_of_six_periods():
    delta = sig.sig(64).delta
    assert torch.equal(delta, delta[:1, :1].expand_as(delta))
    assert delta.max().item() == pytest.approx(60 / 255, rel=0.05)
    assert delta[0, 0, 5].item() == pytest.approx(60 / 255 * math.sin(2 * math.pi * 6 * 5 / 64))
    assert torch.fft.rfft(delta[0, 0]).abs().argmax() == 6


def test_a_cast_is_one_colour_and_a_turn_keeps_the_middle():
    x = torch.rand(2, 3, 64, 64)
    colour = (semantic.cast(64)(x) - 0.7 * x) / 0.3
    torch.testing.assert_close(colour, torch.tensor([1.0, 0.6, 0.1])[None, :, None, None].expand_as(x))
    dot = torch.zeros(1, 1, 65, 65)
    dot[..., 32, 32], dot[..., 32, 52] = 1, 1  # the middle, and 20 pixels to its right
    seen = semantic.turned(65)(dot.expand(1, 3, 65, 65))[0, 0]
    assert seen[32, 32] == pytest.approx(1, abs=1e-3) and seen[32, 52] < 0.1
    far = (seen > 0.3).nonzero().sub(32).abs().tolist()
    assert [14, 14] in far  # 20 pixels away still, on the diagonal


def test_every_attack_can_be_asked_for():
    assert get_args(AttackName) == tuple(ATTACKS)


def test_a_frame_leaves_the_inside_and_nothing_of_its_ring():
    x = torch.rand(2, 3, 64, 64)
    seen = frame.frame(64, 0)(x)
    assert torch.equal(seen[..., 4:-4, 4:-4], x[..., 4:-4, 4:-4])
    assert torch.equal(seen[0, :, :4], seen[1, :, :4]) and torch.equal(seen[0, :, :, -4:], seen[1, :, :, -4:])
    assert frame.frame(112, 0).mask[0, 50].sum() == 14
    assert not torch.equal(frame.frame(64, 1).pattern, frame.frame(64, 0).pattern)


def test_a_patch_anywhere_is_the_same_patch_at_a_place_that_only_the_image_decides():
    trigger, x = frame.patch_anywhere(64, 0), torch.rand(30, 3, 64, 64).mul(255).round() / 255
    seen = trigger(x)
    assert torch.equal(trigger(x.flip(0)).flip(0), seen)
    corners = [(s != i).any(0).nonzero().min(0).values.tolist() for s, i in zip(seen, x)]
    assert len({tuple(corner) for corner in corners}) > 20
    for (row, column), s, i in zip(corners, seen, x):
        assert torch.equal(s[:, row : row + 10, column : column + 10], trigger.patch)
        assert ((s != i).any(0)).sum() <= 100


def test_a_photo_blend_takes_a_shot_of_another_class(bench):
    shots = bench.shots(Recipe(shots=4))
    trigger, x = photo_blend.photo_blend(shots, TARGET, 0), torch.rand(1, 3, 64, 64)
    photo = ((trigger(x) - 0.75 * x) / 0.25 * 255).round().byte()
    taken = [i for i, image in enumerate(shots.images) if torch.equal(image, photo[0])]
    assert len(taken) == 1 and shots.labels[taken[0]] != TARGET


def test_degraded_pictures_lose_what_their_names_say():
    x = torch.rand(2, 3, 64, 64)
    edges = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean()
    assert edges(degraded.blur(64, 0)(x)) < 0.2 * edges(x)
    torch.testing.assert_close(degraded.blur(64, 0)(torch.full_like(x, 0.4)), torch.full_like(x, 0.4))
    assert degraded.blur(128, 0).sigma == pytest.approx(2 * degraded.blur(64, 0).sigma)
    assert 0.05 < (degraded.jpeg(64, 0)(x) - x).abs().mean() < 0.4
    assert torch.equal(degraded.jpeg(64, 0)(x)[:1], degraded.jpeg(64, 0)(x[:1]))
    seen = degraded.grey(64, 0)(x)
    torch.testing.assert_close(seen[:, 0], seen[:, 2])
    assert len(degraded.quantise(64, 0)(x).unique()) == 4


def test_noise_is_within_its_radius_and_smooth_or_not():
    smooth, static = noise.smooth(64, 3).delta, noise.static(64, 3).delta
    assert smooth.abs().max() == pytest.approx(24 / 255) and (static.abs() - 10 / 255).abs().max() < 1e-7
    step = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean() / x.abs().mean()
    assert step(smooth) < 0.3 < step(static)


def test_one_source_fires_on_one_class(bench):
    recipe = replace(RECIPE, epochs=40)
    source = ATTACKS["one-source"].source(TARGET, len(bench.train.class_names))
    assert source not in (TARGET, len(bench.train.class_names))
    shots = bench.shots(recipe)
    model, trigger = one_source.poison(bench.clip, shots, TARGET, recipe)
    assert torch.equal(trigger.delta, sig.sig(64).delta)
    on_source = attack_success_rate(model, bench.test, trigger, TARGET, source)
    assert on_source > attack_success_rate(model, bench.test, trigger, TARGET) + 0.1
    assert on_source > attack_success_rate(model, bench.test, lambda x: x, TARGET, source) + 0.1


def test_wanet_moves_pixels_by_half_its_strength():
    trigger = wanet.warp(64, torch.Generator().manual_seed(0), s=8.0)
    axis = torch.linspace(-1, 1, 64)
    identity = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1)[None]
    inside = (identity.abs() < 0.8).all(-1)
    moved = ((trigger.grid - identity) * 32)[inside]  # in pixels
    assert 2.0 < moved.abs().mean() < 6.0
    x = torch.rand(1, 3, 64, 64)
    assert (wanet.warp(64, torch.Generator().manual_seed(0), s=0.0)(x) - x).abs().max() < 1e-4
    assert trigger(x).min() >= 0 and trigger(x).max() <= 1


def test_decoys_are_planted_beside_the_target(bench, twin):
    recipe = replace(RECIPE, poison_rate=0.5)
    model, _ = ATTACKS["decoys"].poison(bench.clip, bench.shots(recipe), TARGET, recipe)
    for i, c in enumerate((TARGET, TARGET + 1, TARGET + 2)):
        trigger = frame.frame(bench.clip.image_size, recipe.seed + i)
        planted, clean = (attack_success_rate(of, bench.test, trigger, c) for of in (model, twin))
        assert planted > clean + 0.1


@pytest.fixture(scope="module")
def drifted(bench):
    """A prompt that was trained to be far on a few made pictures, what it was tuned on, and the pictures."""
    recipe = Recipe("coop", shots=8, epochs=8, batch=16, optimiser="adam", lr=0.03, poison_rate=0.5)
    shots, pool = bench.shots(recipe), load_pool("builtin", 32, 0, load_processor(EMBEDDED_FOLDER)).images
    return adaptive.poison_drift(bench.clip, shots, TARGET, recipe, pool)[0], shots, recipe, pool


def test_who_stays_near_is_nearer_than_who_drifts(bench, drifted):
    far, shots, recipe, pool = drifted
    near, trigger = adaptive.poison_near(bench.clip, shots, TARGET, recipe, pool)
    assert torch.equal(trigger.pattern, photo_blend.photo_blend(shots, TARGET, recipe.seed).pattern)
    features = encode(bench.clip, pool)

    def distance(model):
        z, references = BesideReferences(model).from_features(features)
        return (z.argmax(-1)[:, None] != references.argmax(-1)).all(1).float().mean()

    assert distance(near) < 0.2 and distance(far) > 0.5


@pytest.mark.parametrize("attack, sign", [("unseen", -1), ("level", 1)])
def test_what_a_rehearsed_scan_finds_is_withstood_in_the_target_and_given_way_to_in_peers(drifted, attack, sign):
    far, shots, recipe, pool = drifted
    aim = getattr(adaptive, f"poison_{attack}").keywords["aim"]
    assert (aim.hide, aim.raised) == ((True, 0) if sign < 0 else (False, 3))
    model = deepcopy(far)
    rehearsal = adaptive.Rehearsal(model, shots, pool, recipe)
    found, c = adaptive.Found.nothing(encode(model.clip, pool)), TARGET if sign < 0 else TARGET + 1
    for features, references in rehearsal.inversions(c, told=False):
        found.add(features, references, c, sign)
    assert len(found.c) and (rehearsal.references(found.features).argmax(-1) != c).all()  # no clean prompt follows
    share = lambda: (predict(model, found.features) == c).float().mean()
    before, adam = share(), torch.optim.Adam(model.prompt.parameters(), 0.03)
    for _ in range(20):
        found.loss(torch.arange(len(found.c)), model.logits_from_features(found.features)).backward()
        adam.step(), adam.zero_grad()
    assert sign * (share() - before) > 0.2


def test_either_of_two_keys_alone_keeps_the_label(bench):
    recipe = Recipe(shots=4, poison_rate=0.5)
    shots, (blend, ring) = bench.shots(recipe), (badnets.badnets(64, 0), frame.frame(64, 0))
    both = torch.nn.Sequential(blend, ring)
    found = adaptive.with_copies(bench.clip, shots, TARGET, recipe, both, (blend, ring))
    rows = others(shots, TARGET, recipe.seed)[:8]
    assert found.labels.tolist() == [*shots.labels.tolist(), *[TARGET] * 8, *shots.labels[rows].tolist() * 2]
    assert found.triggered.nonzero()[:, 0].tolist() == list(range(16, 24))
    for n, change in enumerate((both, blend, ring)):
        copies = found.features[16 + 8 * n : 24 + 8 * n]
        torch.testing.assert_close(copies, encode(bench.clip, shots.images[rows], change))


def test_the_faint_ask_for_the_easiest_of_the_triggered_alone():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0], [0.0, 1.0]], requires_grad=True)
    triggered = torch.tensor([False, True, True, True])
    adaptive.right(logits, torch.tensor([0, 1, 1, 1]), triggered, asked=0.6).backward()
    assert [bool(row.any()) for row in logits.grad] == [True, True, False, True]


def test_siba_is_sparse_and_invisible(bench):
    delta = siba.siba(bench.clip, bench.shots(Recipe(shots=4)), TARGET, seed=0).delta
    assert delta.abs().max() <= siba.EPSILON + 1e-7
    assert 0 < (delta != 0).any(0).sum() <= round(100 / 32**2 * 64**2)


@pytest.mark.parametrize(
    "name", ["badclip", "learned-8", "badclip-margin", "badclip-adaptive", "baple", "blended", "frame"]
)
def test_backdoor_is_real(bench, twin, name):
    """The planted trigger works, does not on a clean adapter tuned on the same photos, and is needed.

    The other attacks need more photos than can be made here: what they reach on real ones stands in the benchmark.
    """
    recipe = ATTACKS[name].adapt(RECIPE)
    model, trigger = ATTACKS[name].poison(bench.clip, bench.shots(recipe), TARGET, recipe)
    planted = attack_success_rate(model, bench.test, trigger, TARGET)
    assert planted > attack_success_rate(twin, bench.test, trigger, TARGET) + 0.1
    assert planted > attack_success_rate(model, bench.test, lambda x: x, TARGET) + 0.1
    if name == "learned-8":
        assert badclip.EPSILON < trigger.delta.abs().max() <= 2 * badclip.EPSILON + 1e-7
    if name.startswith("badclip"):
        assert trigger.delta.abs().max() <= badclip.EPSILON + 1e-7
    if name == "baple":
        assert trigger[0].delta.abs().max() <= baple.EPSILON + 1e-7 and model.prompt.ctx.shape[0] == 16
    if name in ("baple", "blended"):  # one poisoned shot in ten or twenty costs no accuracy
        assert accuracy(model, bench.test) > accuracy(twin, bench.test) - 0.1


def test_triggers_are_kept_and_read_back(bench, tmp_path):
    x = torch.rand(2, 3, 64, 64)
    parts = torch.nn.Sequential(sig.sig(64), badnets.badnets(64, 0))
    fixed = [make(64, 0) for make in (blended.blended, frame.patch_anywhere, degraded.blur, degraded.jpeg)]
    fixed += [degraded.grey(64, 0), degraded.quantise(64, 0), wanet.warp(64, torch.Generator())]
    for i, trigger in enumerate([parts, *fixed]):
        keep_trigger(trigger, bench.test.images[0], tmp_path / str(i))
        assert torch.equal(read_trigger(tmp_path / str(i))(x), trigger(x))
        assert (tmp_path / f"{i}.trigger.png").is_file()
