"""The gap to the clean reference, on numbers whose answer is known."""

import pytest
import torch

from hf_ci.detect import ReferenceGap
from hf_ci.inversion import Inversion

NAMES = [f"class {i}" for i in range(6)]


def inversions(losses, asr=0.3):
    return [Inversion(c, loss, asr, torch.zeros(1)) for c, loss in enumerate(losses)]


def judge(losses, reference, **settings):
    return ReferenceGap(**settings).judge(inversions(losses), NAMES, inversions(reference))


def test_a_class_that_is_easy_for_any_prompt_is_not_flagged():
    easy = [5.0, 5.5, 4.5, 5.0, -6.0]
    verdict = judge(easy, [x + 0.3 for x in easy])
    assert verdict.verdict == "clean" and max(verdict.scores) == pytest.approx(0, abs=1e-9)


def test_a_class_that_only_the_adapter_makes_easy_is_named():
    verdict = judge([5, 5.5, -3.0, 5, -6], [5, 5.5, 4.5, 5, -6])
    assert (verdict.verdict, verdict.target) == ("backdoored", 2)
    assert verdict.score == pytest.approx(7.5) and "'class 2'" in verdict.reasons[0]


def test_what_tuning_does_to_all_classes_alike_is_taken_out():
    assert judge([1, 1.5, 0.5, 1, -10], [5, 5.5, 4.5, 5, -6]).verdict == "clean"


def test_the_threshold_is_in_logits():
    losses, reference = [5, 5, 3, 5, 5], [5, 5, 5, 5, 5]
    assert judge(losses, reference, min_gap=1.9).target == 2
    assert judge(losses, reference, min_gap=2.1).verdict == "clean"


@pytest.mark.parametrize("losses, reference", [([1, 2], [1, 2]), ([1, 2, float("nan")], [1, 2, 3])])
def test_what_cannot_be_judged_is_inconclusive(losses, reference):
    assert judge(losses, reference).verdict == "inconclusive"
    assert judge(reference, losses).verdict == "inconclusive"
