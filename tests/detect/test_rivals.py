"""Each rival works where it is known to work: on a small ordinary classifier with a BadNets patch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_ci.detect import DETECTORS
from hf_ci.detect.mm_bd import order_p_value
from hf_ci.detect.neural_cleanse import DynamicCost
from hf_ci.inversion import Inversion, invert_classes
from hf_ci.lab.making.triggers import patch

SIZE, CLASSES, TARGET = 16, 8, 5
NAMES = [f"class {i}" for i in range(CLASSES)]


def textures(n, seed):
    """n images of each class: gratings of the class's direction and colour, under noise, and their labels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    images, labels = [], []
    for c in range(CLASSES):
        angle, colour = np.pi * c / CLASSES, 0.5 + 0.3 * np.cos(2 * np.pi * (c / CLASSES + np.arange(3) / 3))
        for _ in range(n):
            wave = np.sin(2 * np.pi * 2 * (np.cos(angle) * x + np.sin(angle) * y) + random.uniform(0, 6.28))
            pixels = colour[:, None, None] + 0.25 * wave + 0.08 * random.standard_normal((3, SIZE, SIZE))
            images.append(pixels.clip(0, 1))
            labels.append(c)
    return torch.tensor(np.array(images), dtype=torch.float32), torch.tensor(labels)


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
            nn.Flatten(),
            nn.Linear(512, CLASSES),
        )


@pytest.fixture(scope="module")
def poisoned():
    """A classifier that was trained with a 3 x 3 patch on one shot in ten."""
    torch.manual_seed(0)
    model, trigger = Classifier(), patch(SIZE, 3, torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 3, 3))
    x, y = textures(60, 0)
    rows = torch.randperm(len(x))[: len(x) // 10]
    x, y = torch.cat([x, trigger(x[rows])]), torch.cat([y, torch.full((len(rows),), TARGET)])
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(25):
        for batch in torch.randperm(len(x)).split(32):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            adam.zero_grad(), loss.backward(), adam.step()
    test, labels = textures(20, 1)
    others = test[labels != TARGET]
    with torch.no_grad():
        assert (model(test).argmax(1) == labels).float().mean() > 0.95
        assert (model(trigger(others)).argmax(1) == TARGET).float().mean() > 0.95
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", ["neural-cleanse", "pixel-backdoor"])
def test_finds_a_badnets_patch_in_an_ordinary_classifier(poisoned, name):
    """A pool of 256 images is a quarter of the real one: four times the epochs give as many steps."""
    detector = DETECTORS[name]()
    pool = (textures(32, 2)[0] * 255).round().byte()
    inversions = invert_classes(poisoned, pool, range(CLASSES), replace(detector.inverter(0), epochs=20))
    verdict = detector.judge(inversions, NAMES)
    assert (verdict.verdict, verdict.target) == ("backdoored", TARGET), [(i.size, i.asr) for i in inversions]
    assert inversions[TARGET].asr >= 0.9
    assert inversions[TARGET].size < 0.6 * sorted(i.size for i in inversions)[1]


def test_mm_bd_finds_the_class_with_the_largest_margin(poisoned):
    detector = DETECTORS["mm-bd"]()
    inversions = invert_classes(
        poisoned, torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), range(CLASSES), detector.inverter(0)
    )
    assert all(i.asr > 0.5 and i.loss < 0 for i in inversions)  # inputs that reach their class do exist
    margins = [-i.loss for i in inversions]
    raised = [Inversion(i.c, i.loss - 3 * (max(margins) if i.c == TARGET else 0), i.asr, i.delta) for i in inversions]
    assert (verdict := detector.judge(raised, NAMES)).verdict == "backdoored" and verdict.target == TARGET


def test_p_value_is_that_of_the_largest_of_n_draws():
    """Simulated: among gamma draws, 5 % of the largest lie below p = 0.05."""
    random = np.random.default_rng(0)
    p = [order_p_value(random.gamma(50, 1, 40).max(), random.gamma(50, 1, 40)) for _ in range(400)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.12


def test_cost_follows_the_schedule():
    """0 until five successes in a row, then 1e-3, doubled after five more, divided by 2^1.5 after five failures."""
    cost = DynamicCost(1e-3, 2.0, 2.0**1.5, 5)
    values = []
    for success in [True] * 4 + [False] + [True] * 10 + [False] * 5:
        cost.step(success)
        values.append(cost.value)
    assert values[8] == 0 and values[9] == 1e-3 and values[14] == 2e-3 and values[19] == pytest.approx(2e-3 / 2**1.5)


@pytest.mark.parametrize("name", ["neural-cleanse", "pixel-backdoor", "mm-bd"])
def test_micro_batches_change_memory_and_nothing_else(poisoned, name):
    inverter = DETECTORS[name]().inverter(0)
    pool = (textures(4, 2)[0] * 255).round().byte()
    whole, parts = (inverter(poisoned, pool, 1, m) for m in (32, 5))
    torch.testing.assert_close(whole.delta, parts.delta, atol=1e-3, rtol=0)
    assert whole.loss == pytest.approx(parts.loss, abs=1e-2) and whole.backward == parts.backward
