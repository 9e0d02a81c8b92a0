"""Which classes are inverted whole, on losses and shares that are known."""

import math

import pytest
import torch
from making import made_adapter

from hf_ci.inversion import Inversion, Job, run_job
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.rounds import in_rounds, round_size

NAMES = tuple(f"thing {i}" for i in range(8))


class Known:
    """Losses of the screening, and shares of the whole inversions, by class."""

    screening = "screening"

    def __init__(self, losses, shares):
        self.losses, self.shares, self.asked = losses, shares, []

    def __call__(self, classes, how):
        classes = list(classes)
        self.asked.append((how == "screening", classes))
        if how == "screening":
            found = ((c, self.losses[c], 1.0, True) for c in classes)
        else:
            found = ((c, -self.losses[c], self.shares[c], False) for c in classes)
        return [
            Inversion(c, loss, 0.0, torch.zeros(1), exclusive_asr=share, screened=screened, forward=10, backward=5)
            for c, loss, share, screened in found
        ]


@pytest.mark.parametrize("classes, expected", [(3, 3), (5, 5), (10, 5), (200, 5), (201, 6), (400, 10)])
def test_a_round_is_five_classes_or_a_fortieth(classes, expected):
    assert round_size(classes) == expected


def test_the_most_promising_are_inverted_whole():
    known = Known([8, 7, 6, 5, 4, 3, 2, 1], [0.0] * 7 + [0.9])
    found = in_rounds(known, 8, known)
    assert known.asked == [(True, list(range(8))), (False, [7, 6, 5, 4, 3])]
    assert [i.c for i in found] == list(range(8)) and [i.screened for i in found] == [True] * 3 + [False] * 5
    assert (found[7].exclusive_asr, found[7].forward, found[7].backward) == (0.9, 20, 10)
    assert (found[0].loss, found[0].forward) == (8, 10)


def test_it_goes_on_while_most_of_a_round_can_be_reached():
    known = Known(list(range(12)), [0.5] * 8 + [0.0] * 4)
    in_rounds(known, 12, known)
    assert [classes for _, classes in known.asked[1:]] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_a_loss_that_is_no_number_is_looked_at():
    known = Known([0, 1, 2, 3, 4, 5, math.nan], [0.0] * 7)
    in_rounds(known, 7, known)
    assert known.asked[1] == (False, [6, 0, 1, 2, 3])


def test_exact_inverts_every_class_and_agrees_on_those_that_a_scan_inverts(tiny, base, tmp_path):
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    jobs = [
        Job(made_adapter(tiny, "coop", names=NAMES), base, "", images, "", ContrastInversion(), exact=exact)
        for exact in (False, True)
    ]
    quick, exact = (run_job(job, tiny, cache=tmp_path).inversions for job in jobs)
    assert jobs[0].key != jobs[1].key and jobs[0].num_inversions == 4 * 13 and jobs[1].num_inversions == 4 * 8
    assert sum(i.screened for i in quick) == 3 and not any(i.screened for i in exact)
    for a, b in zip(quick, exact):
        if not a.screened:
            assert torch.equal(a.delta, b.delta) and a.exclusive_asr == b.exclusive_asr
    assert all(i.backward == 32 for i in quick if i.screened)
    assert all(sum(not i.others[f].screened for i in quick) == 5 for f in (0, 1, 2))
    again = run_job(jobs[0], tiny, cache=tmp_path)
    assert again.cached == 8 and [i.screened for i in again.inversions] == [i.screened for i in quick]
