"""The contrast with a clean reference, on numbers and models whose answer is known."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hf_ci.detect import Contrast
from hf_ci.detect.calibration import fit
from hf_ci.detect.contrast import FAR, OWN_PROBES, PROBES, excess, shares
from hf_ci.inversion import ON_PHOTOS, Inversion, LinfInversion
from hf_ci.inversion.contrast import ContrastInversion, with_first
from hf_ci.inversion.invert import measure
from hf_ci.inversion.trigger import LinfTrigger

NAMES = [f"class {i}" for i in range(4)]
SOME = [0.02, 0.04, 0.06, 0.08, 0.1, 0.05, 0.05, 0.07]
NULL = fit(
    [{"perturbation": [e], "frame": [2 * e], "probe": [2 * e]} for e in SOME],
    [0.0] * 4 + [0.4] * 4,
    ["d"] * 8,
    4,
    num_images=256,
    pool="p",
    base_model="b",
    base_revision="r",
    records_sha256="s",
    precision="fp32",
)


def judge(exclusive, loss=1.0, distance=0.0, **settings):
    inversions = [
        Inversion(c, loss, 0.8, torch.zeros(1), reference_asr=0.8 - share, exclusive_asr=share)
        for c, share in enumerate(exclusive)
    ]
    return Contrast(null=NULL, **settings).judge(inversions, NAMES, distance)


def test_a_class_that_any_prompt_falls_for_is_not_flagged():
    """All have 80 % ASR; what counts is what the reference withstands."""
    verdict = judge([0.02, 0.05, 0.0, 0.1])
    assert (verdict.verdict, verdict.target, verdict.score) == ("clean", None, max(verdict.scores))


def test_a_class_that_only_the_adapter_falls_for_is_named():
    verdict = judge([0.02, 0.05, 0.6, 0.1])
    assert (verdict.verdict, verdict.target, verdict.flagged) == ("backdoored", 2, (False, False, True, False))
    assert "'class 2'" in verdict.reasons[0] and "60% of unrelated images" in verdict.reasons[0]


def with_photos(probed, distance=0.0, **settings):
    """Of classes that answer to probes on the adapter's own photos."""
    own = Inversion(0, 1.0, 0.8, torch.zeros(1), exclusive_asr=0.0, family=ON_PHOTOS)
    inversions = [
        Inversion(c, 1.0, 0.8, torch.zeros(1), exclusive_asr=0.0, probe="wave", probe_asr=share, others=(own,))
        for c, share in enumerate(probed)
    ]
    return inversions, Contrast(null=NULL, **settings).judge(inversions, NAMES, distance)


def test_probes_on_photos_are_a_family_of_their_own_and_where_none_is_known_judged_as_on_the_pool():
    inversions, verdict = with_photos([0.0, 0.9, 0.0, 0.1])
    assert OWN_PROBES in shares(inversions) and PROBES not in shares(inversions)
    assert PROBES in NULL.usual and OWN_PROBES not in NULL.usual
    assert (verdict.verdict, verdict.target, verdict.families[1]) == ("backdoored", 1, OWN_PROBES)
    assert "drives 90% of the labelled photos into 'class 1'" in verdict.reasons[0]
    assert with_photos([0.0, 0.05, 0.0, 0.0])[1].verdict == "clean"


def test_the_reason_names_the_family_that_gave_the_score():
    """Of two families one stands out more by itself, and less beside the others that are asked with it."""
    frames = [0.0, 0.9, 0.0, 0.0]
    wide = replace(NULL, usual=NULL.usual | {"wide perturbation": NULL.usual["perturbation"]})
    inversions = [
        Inversion(
            c, 1.0, 0.8, torch.zeros(1), exclusive_asr=0.0 if c else 0.3,
            others=tuple(
                Inversion(c, 1.0, 0.8, torch.zeros(1), exclusive_asr=share, family=family)
                for family, share in (("wide perturbation", 0.0), ("frame", frames[c]))
            ),
        )
        for c in range(4)
    ]  # fmt: skip
    verdict = Contrast(null=wide, k=1.0).judge(inversions, NAMES)
    assert verdict.target == 1 and verdict.families[1] == "frame" and verdict.families[0] == "perturbation"
    shown, needed = (int(share) / 100 for share in re.findall(r"(\d+)%", verdict.reasons[0])[:2])
    assert shown == 0.9 and needed < shown


def test_what_photos_do_not_explain_is_not_clean():
    """An adapter planted in several classes is far even from prompts that were tuned on photos."""
    assert with_photos([0.0] * 4, distance=0.3)[1].verdict == "clean"
    far = with_photos([0.0] * 4, distance=0.4)[1]
    assert far.verdict == "inconclusive" and "too far" in far.reasons[0]


def test_all_classes_alike_are_an_adapter_that_learned_something():
    """What stands out counts, not what can be reached: peers take three quarters of what they reach themselves."""
    assert judge([0.4, 0.38, 0.41, 0.39], distance=0.49).verdict != "backdoored"
    assert excess(np.array([0.5, 0.2, 0.1, 0.0])) == pytest.approx([0.425, 0.05, -0.075, -0.2])


def test_several_targets_are_all_named_worst_first():
    verdict = judge([0.5, 0.05, 0.7, 0.1])
    assert verdict.target == 2 and len(verdict.reasons) == 2 and "'class 2'" in verdict.reasons[0]


def test_names_that_mean_nothing_are_not_mistaken_for_a_backdoor():
    """A reference that cannot follow the adapter anywhere makes every class look planted."""
    verdict = judge([0.7, 0.8, 0.05, 0.6])
    assert verdict.verdict == "inconclusive" and "3 of 4 classes" in verdict.reasons[0]


def test_the_threshold_can_be_set_by_hand():
    score = judge([0.0, 0.0, 0.0, 0.4]).score
    assert judge([0.0, 0.0, 0.0, 0.4], k=score).verdict == "backdoored"
    assert judge([0.0, 0.0, 0.0, 0.4], k=score + 0.01).verdict == "clean"


def test_between_clear_cases_it_is_inconclusive_and_says_what_would_settle_it():
    limits, usual = Contrast(null=NULL).thresholds(4), NULL.usual["perturbation"]
    clean, doubtful, flagged = (
        usual.excess(score, 0.0)
        for score in (limits["doubtful"] - 0.1, (limits["k"] + limits["doubtful"]) / 2, limits["k"] + 0.1)
    )
    verdict = judge([0.0, 0.0, doubtful, 0.0])
    assert verdict.verdict == "inconclusive" and verdict.target is None and "--num-images" in verdict.reasons[1]
    assert judge([0.0, 0.0, clean, 0.0]).verdict == "clean"
    assert judge([0.0, 0.0, flagged, 0.0]).verdict == "backdoored"


def test_the_farther_from_clean_prompts_the_more_is_left_undecided():
    """Evenly: no adapter gains by being a hair nearer."""
    limits = [Contrast(null=NULL).thresholds(4, distance) for distance in (0.0, FAR / 2, FAR, 2 * FAR)]
    assert [limit["false_alarm"] for limit in limits] == pytest.approx([0.002, 0.006, 0.01, 0.01])
    assert [limit["doubt"] for limit in limits] == pytest.approx([0.02, 0.135, 0.25, 0.25])
    score = (limits[0]["doubtful"] + limits[1]["doubtful"]) / 2
    near, half = (NULL.usual["perturbation"].excess(score, distance) for distance in (0.0, FAR / 2))
    assert judge([0.0, 0.0, near, 0.0], distance=0.0).verdict == "clean"
    assert judge([0.0, 0.0, half, 0.0], distance=FAR / 2).verdict == "inconclusive"


def test_hand_written_prompts_clear_no_adapter_that_is_far_from_them():
    """What clean ones show there hides what was planted: a clean verdict would be worth nothing."""
    assert judge([0.0] * 4, distance=FAR - 0.01).verdict == "clean"
    verdict = judge([0.0] * 4, distance=FAR)
    assert verdict.verdict == "inconclusive" and "20% of the pool" in verdict.reasons[1]
    assert "--data with 4 to 16 labelled photos" in verdict.reasons[-1]
    assert with_photos([0.0] * 4, distance=FAR)[1].verdict == "clean"


def test_distance_alone_is_no_accusation():
    assert judge([0.05] * 4, distance=0.45).verdict == "inconclusive"
    assert judge([0.05] * 4, distance=0.9).verdict == "inconclusive"


def test_what_works_inside_a_mask_counts_by_its_own_null():
    plain = [Inversion(c, 1.0, 0.8, torch.zeros(1), None, 0.7, 0.05, probe="red cast", probe_asr=0.0) for c in range(4)]
    frames = [replace(i, family="frame", exclusive_asr=0.9 * (i.c == 3)) for i in plain]
    verdict = Contrast(null=NULL).judge([replace(i, others=(f,)) for i, f in zip(plain, frames)], NAMES, 0.0)
    assert (verdict.verdict, verdict.target, verdict.families[3]) == ("backdoored", 3, "frame")
    assert "a reconstructed frame drives 90%" in verdict.reasons[0]


def test_a_class_that_answers_to_a_probe_is_named_with_it():
    quiet, loud = (
        Inversion(c, 1.0, 0.8, torch.zeros(1), None, 0.7, 0.1, probe="red cast", probe_asr=share)
        for c, share in ((0, 0.12), (1, 0.8))
    )
    rest = [replace(quiet, c=c) for c in (2, 3)]
    verdict = Contrast(null=NULL).judge([quiet, loud, *rest], NAMES)
    assert (verdict.verdict, verdict.target, verdict.families[1]) == ("backdoored", 1, "probe")
    assert "a red cast drives 80% of unrelated images into 'class 1'" in verdict.reasons[0]


@pytest.mark.parametrize("exclusive, loss", [([0.1, 0.9], 1.0), ([0.1, 0.2, 0.9], float("nan"))])
def test_what_cannot_be_judged_is_inconclusive(exclusive, loss):
    assert judge(exclusive, loss).verdict == "inconclusive"


def test_of_few_classes_one_is_accused_by_a_null_of_such_adapters_and_photos_alone_clear_them():
    detector = Contrast(null=NULL, variants={", few classes": replace(NULL, num_classes=3)})
    own = Inversion(0, 1.0, 0.8, torch.zeros(1), exclusive_asr=0.0, family=ON_PHOTOS)

    def judged(exclusive, others=()):
        inversions = [
            Inversion(c, 1.0, 0.8, torch.zeros(1), exclusive_asr=share, others=others)
            for c, share in enumerate(exclusive)
        ]
        return detector.for_adapter(False, len(exclusive)).judge(inversions, NAMES, 0.0)

    assert judged([0.02, 0.05, 0.02, 0.02]).verdict == "clean"
    for few in ([0.02, 0.05, 0.02], [0.02, 0.05]):
        verdict = judged(few)
        assert verdict.verdict == "inconclusive" and verdict.score is not None
        assert f"{len(few)} classes are too few to be cleared without labelled photos" in verdict.reasons[0]
        assert judged(few, (own,)).verdict == "clean"
    for few in ([0.02, 0.9, 0.02], [0.02, 0.9]):
        assert (judged(few).verdict, judged(few).target) == ("backdoored", 1)
    assert "too few to tell" in Contrast(null=NULL).judge([own, own], NAMES, 0.0).reasons[0]


class Pair(nn.Module):
    """Logits <w_c, x>. Both prompts can be pushed to class 0 along `shared`; the adapter also along `planted`."""

    def __init__(self, planted: float, size: int = 8):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shared, backdoor = torch.randn(2, 3 * size * size, generator=generator)
        self.reference = torch.stack([shared, torch.zeros_like(shared)])
        self.adapted = torch.stack([shared + planted * backdoor, torch.zeros_like(shared)])

    def forward(self, x):
        x = x.flatten(1) - 0.5
        bias = torch.tensor([-1.0, 0.0])  # class 0 never wins by itself
        return x @ self.adapted.T + bias, (x @ self.reference.T + bias)[:, None]


def grey(n=64, size=8):
    return torch.randint(127, 129, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_contrast_finds_what_only_the_adapter_falls_for():
    planted, clean = (ContrastInversion(epochs=5)(Pair(p), grey(), 0, 32) for p in (1.5, 0.0))
    assert planted.exclusive_asr > 0.95 and planted.reference_asr < 0.05 and planted.loss < 0
    assert clean.exclusive_asr == 0 and clean.asr == clean.reference_asr
    assert planted.delta.abs().max() <= 4 / 255 + 1e-8


def test_it_has_to_fail_through_every_reference():
    """A second reference that falls for what is planted takes the adapter's exclusiveness away."""
    model = Pair(1.5)
    both = lambda x: (model(x)[0], torch.cat([model(x)[1], model(x)[0][:, None]], dim=1))
    assert ContrastInversion(epochs=5)(both, grey(), 0, 32).exclusive_asr == 0


def test_an_ordinary_inversion_does_not_tell_the_two_apart():
    model = Pair(1.5)
    adapter_alone = lambda x: model(x)[0]
    ordinary = LinfInversion(epochs=5)(adapter_alone, grey(), 0, 32)
    trigger = LinfTrigger(8, 4 / 255)
    trigger.load_state_dict({"delta": ordinary.delta})
    _, transferred = measure(lambda x: model(x)[1][:, 0], grey(), trigger, 0, 32)
    assert ordinary.asr > 0.95 and transferred > 0.5


def test_micro_batches_change_memory_and_nothing_else():
    whole, parts = (ContrastInversion()(Pair(0.5), grey(), 0, m) for m in (32, 5))
    torch.testing.assert_close(whole.delta, parts.delta)
    assert whole.loss == pytest.approx(parts.loss, abs=1e-6) and whole.exclusive_asr == parts.exclusive_asr


def test_a_class_that_was_only_screened_counts_by_its_probe_alone():
    found = [Inversion(c, 1.0, 0.9, torch.zeros(1), None, 0.0, 0.9, "red cast", 0.1, screened=c == 2) for c in range(4)]
    verdict = Contrast(null=NULL).judge(found, NAMES)
    assert verdict.families[2] == "probe" and verdict.scores[2] < min(verdict.scores[:2])


def test_the_candidate_stands_first_among_each_images_nearest_classes():
    nearest = torch.tensor([[4, 2, 7], [7, 9, 2], [1, 3, 5]])
    assert with_first(2, nearest).tolist() == [[2, 4, 7], [2, 7, 9], [2, 1, 3]]


class Many(Pair):
    """Pair, that can be asked for a few classes of each image."""

    def __init__(self, planted):
        super().__init__(planted)
        self.nearest, self.asked = torch.tensor([[1, 0]]).expand(64, 2), []

    def forward(self, x, classes=None):
        z, references = super().forward(x)
        if classes is not None:
            self.asked.append(classes)
            z = z.gather(1, classes)
        return z, references


def test_rivals_come_from_the_nearest_classes_and_the_measure_from_all():
    model = Many(1.5)
    found, plain = (
        ContrastInversion(epochs=5)(model, grey(), 0, 32),
        ContrastInversion(epochs=5)(Pair(1.5), grey(), 0, 32),
    )
    assert all(classes[:, 0].eq(0).all() and classes[:, 1].eq(1).all() for classes in model.asked) and model.asked
    assert torch.equal(found.delta, plain.delta) and found.loss == plain.loss
