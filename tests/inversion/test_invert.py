"""The inversion of one class and of all, on the embedded CLIP and on a model whose answer is known."""

from dataclasses import dataclass, replace

import pytest
import torch
from making import made_adapter
from torch import nn

from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.inversion import LinfInversion, invert_classes
from hf_ci.inversion.invert import batches, measure
from hf_ci.inversion.objective import OBJECTIVES
from hf_ci.inversion.trigger import LinfTrigger
from hf_ci.pools import load_pool
from hf_ci.prompts import PromptedCLIP
from hf_ci.prompts.clip import load_processor


class Linear(nn.Module):
    """logits = <w_c, x>: the best perturbation for class 0 against class 1 is epsilon * sign(w_0 - w_1)."""

    def __init__(self, classes=2, size=4):
        super().__init__()
        self.w = nn.Parameter(torch.randn(classes, 3 * size * size, generator=torch.Generator().manual_seed(0)), False)

    def forward(self, x):
        return x.flatten(1) @ self.w.T


def grey(n=64, size=4):
    return torch.randint(100, 150, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_margin_is_negative_exactly_where_the_class_wins():
    logits = torch.randn(500, 7)
    for c in range(7):
        loss = OBJECTIVES["margin"](logits, c)
        assert torch.equal(loss < 0, logits.argmax(1) == c)
        others = logits[:, [j for j in range(7) if j != c]]
        torch.testing.assert_close(loss, others.amax(1) - logits[:, c])


def test_every_objective_prefers_a_larger_target_logit():
    logits = torch.zeros(3, 4)
    better = logits.clone()
    better[:, 2] += 1
    for objective in OBJECTIVES.values():
        assert (objective(better, 2) < objective(logits, 2)).all()


def test_trigger_stays_in_its_ball_and_images_in_range():
    trigger = LinfTrigger(4, 4 / 255)
    with torch.no_grad():
        trigger.delta.normal_()
    trigger.project()
    assert trigger.delta.abs().max() <= 4 / 255
    x = torch.rand(5, 3, 4, 4)
    assert trigger(x).min() >= 0 and trigger(x).max() <= 1


def test_inversion_finds_the_known_optimum_of_a_linear_model():
    model, inverter = Linear(), LinfInversion(epochs=5)
    result = inverter(model, grey(), 0, micro_batch=32)
    best = inverter.epsilon * (model.w[0] - model.w[1]).sign().view(3, 4, 4)
    torch.testing.assert_close(result.delta, best)
    x = grey().float() / 255
    margin = model(x + best) @ torch.tensor([-1.0, 1.0])
    assert result.loss == pytest.approx(margin.mean().item(), abs=1e-5)
    assert result.asr == pytest.approx((margin < 0).float().mean().item())


def test_micro_batches_change_memory_and_nothing_else():
    whole, parts = (LinfInversion()(Linear(), grey(), 1, m) for m in (32, 5))
    torch.testing.assert_close(whole.delta, parts.delta)
    assert whole.loss == pytest.approx(parts.loss, abs=1e-5) and whole.asr == parts.asr


def test_order_of_images_depends_on_seed_and_class_alone():
    order = lambda c, seed: torch.cat(list(batches(50, c, seed, 8, 1)))
    assert torch.equal(order(3, 0), order(3, 0))
    assert not torch.equal(order(3, 0), order(4, 0))
    assert not torch.equal(order(3, 0), order(3, 1))
    assert sorted(order(3, 0).tolist()) == list(range(50))


def test_inversion_lowers_the_loss_of_a_prompted_clip(clip):
    model = PromptedCLIP.from_adapter(made_adapter(clip), clip)
    images = load_pool("builtin", 64, 0, load_processor(EMBEDDED_FOLDER)).images
    nothing = LinfTrigger(64, 4 / 255)
    before, _ = measure(model, images, nothing, 2, 32)
    after = LinfInversion()(model, images, 2, 32)
    assert after.loss < before - 0.5 and after.delta.abs().max() <= 4 / 255 + 1e-8


@dataclass(frozen=True)
class Noted(LinfInversion):
    """Notes which classes are inverted."""

    def __call__(self, model, images, c, micro_batch):
        FRESH.append(c)
        return super().__call__(model, images, c, micro_batch)


FRESH: list[int] = []


def test_interrupted_inversions_resume_class_by_class(tmp_path):
    model, done = Linear(classes=4), []

    def interrupt(inversion):
        done.append(inversion.c)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert_classes(model, grey(), range(4), LinfInversion(), tmp_path, interrupt)
    FRESH.clear()
    resumed = invert_classes(model, grey(), range(4), Noted(), tmp_path)
    assert (done, FRESH) == ([0, 1], [2, 3])
    for a, b in zip(resumed, invert_classes(model, grey(), range(4), LinfInversion())):
        assert torch.equal(a.delta, b.delta) and replace(a, delta=None) == replace(b, delta=None)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("junk", [b"junk", b"PK\x03\x04junk", b""])
def test_a_damaged_cache_file_is_inverted_anew(tmp_path, junk):
    first = invert_classes(Linear(), grey(), [0], LinfInversion(), tmp_path)
    (tmp_path / "class-00000.npz").write_bytes(junk)
    again = invert_classes(Linear(), grey(), [0], LinfInversion(), tmp_path)
    assert first[0].loss == again[0].loss


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ci.inversion.engine.write_whole", full)
    found = invert_classes(Linear(), grey(), range(2), LinfInversion(), tmp_path / "cache")
    assert [i.c for i in found] == [0, 1] and not list(tmp_path.rglob("*.npz"))


def full(*_):
    raise OSError(28, "No space left on device")


class Greedy(Linear):
    """Runs out of memory on more than eight images at a time, as a device does."""

    def forward(self, x):
        if len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().forward(x)


def test_out_of_memory_halves_the_batch_and_goes_on():
    tight, roomy = (invert_classes(kind(), grey(), [0, 1], LinfInversion()) for kind in (Greedy, Linear))
    for a, b in zip(tight, roomy):
        torch.testing.assert_close(a.delta, b.delta)
        assert a.loss == pytest.approx(b.loss, abs=1e-5)


def test_other_runtime_errors_are_not_mistaken_for_memory():
    class Broken(Linear):
        def forward(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        invert_classes(Broken(), grey(), [0], LinfInversion())
