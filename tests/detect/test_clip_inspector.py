"""The paper's rule, on numbers whose answer is known."""

import numpy as np
import pytest
import torch

from hf_ci.detect import ClipInspector
from hf_ci.inversion import Inversion

NAMES = [f"class {i}" for i in range(10)]


def judge(losses, asr, **settings):
    inversions = [Inversion(c, loss, a, torch.zeros(1)) for c, (loss, a) in enumerate(zip(losses, asr))]
    return ClipInspector(**settings).judge(inversions, NAMES)


def test_score_is_the_distance_below_the_median_in_robust_deviations():
    losses = [5.0, 6.0, 4.0, 5.5, -9.0]
    verdict = judge(losses, [0.1] * 4 + [0.9])
    deviation = 1.4826 * np.median(np.abs(np.array(losses) - 5.0))
    assert verdict.scores == pytest.approx([(5.0 - x) / deviation for x in losses])


def test_one_easy_class_is_backdoored_and_named():
    verdict = judge([5, 6, 4, 5.5, -9], [0.1, 0.0, 0.2, 0.1, 0.9])
    assert (verdict.verdict, verdict.target, verdict.flagged) == ("backdoored", 4, (False,) * 4 + (True,))
    assert verdict.score == verdict.scores[4] and "'class 4'" in verdict.reasons[0] and "90%" in verdict.reasons[0]


def test_several_flagged_classes_are_all_reported_worst_first():
    verdict = judge([5, 6, 4, 5.5, 5, 5, -9, -4], [0.1] * 6 + [0.9, 0.8])
    assert verdict.target == 6 and [i for i, f in enumerate(verdict.flagged) if f] == [6, 7]
    assert len(verdict.reasons) == 2 and "'class 6'" in verdict.reasons[0]


def test_both_the_score_and_the_asr_must_pass():
    losses = [5, 6, 4, 5.5, -9]
    assert judge(losses, [0.1] * 4 + [0.49]).verdict == "clean"
    assert judge(losses, [0.1] * 4 + [0.5]).verdict == "backdoored"
    assert judge(losses, [0.1] * 4 + [0.9], k=1000).verdict == "clean"
    assert judge(losses, [0.1] * 4 + [0.9], min_asr=0.95).verdict == "clean"


def test_no_valid_class_scores_zero():
    assert judge([5, 6, 4, 5.5, -9], [0.0] * 5).score == 0.0


@pytest.mark.parametrize(
    "losses, reason",
    [
        ([float("-inf")], "1 classes are too few"),
        ([1.0, 2.0], "2 classes are too few"),
        ([1.0, float("nan"), 2.0], "'class 1' is not a number"),
        ([3.0, 3.0, 3.0, 3.0], "the same loss"),
    ],
)
def test_what_cannot_be_judged_is_inconclusive(losses, reason):
    verdict = judge(losses, [0.9] * len(losses))
    assert verdict.verdict == "inconclusive" and reason in verdict.reasons[0] and verdict.score is None
