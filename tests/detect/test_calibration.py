"""The null of clean adapters: fitted right, sealed, and the shipped one is that of the shipped records."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from hf_ci.detect import Contrast
from hf_ci.detect.calibration import (
    SHIPPED,
    Kind,
    combined,
    fit,
    kind_of,
    nulls_for,
    read,
    render,
    seal,
    shipped,
)
from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED, fetch_base

KNOWN = {
    "num_images": 256,
    "pool": "p",
    "base_model": "b",
    "base_revision": "r",
    "records_sha256": "s",
    "precision": "fp32",
}
RECORDS = Path(__file__).parents[2] / "cards" / "calibration.jsonl"


def largest(random, classes, n):
    """The largest excess of each of n simulated clean adapters."""
    return random.gumbel(0.05, 0.05, (n, classes)).max(1)


def fitted(excesses, classes=10, distances=None):
    n = len(excesses)
    return fit([{"perturbation": [e]} for e in excesses], distances or [0.1] * n, ["d"] * n, classes, **KNOWN)


def z(null, excesses):
    return np.array([null.usual["perturbation"].z(excess, 0.1) for excess in excesses])


def test_threshold_is_exceeded_as_often_as_asked():
    """A threshold for 5 % false alarms flags about 5 % of new ones."""
    random = np.random.default_rng(0)
    rates = [
        (z(null, largest(random, 10, 200)) > null.threshold(0.05)).mean()
        for null in (fitted(largest(random, 10, 24)) for _ in range(200))
    ]
    assert 0.04 < np.mean(rates) < 0.09  # a little above: so few models fit the null only roughly


def test_p_value_and_threshold_agree():
    calibration = fitted(SOME)
    for classes in (None, 5, 200):
        assert calibration.p_value(calibration.threshold(0.01, classes), classes) == pytest.approx(0.01, rel=0.15)
    assert calibration.p_value(-2.0) > 0.9 > 1e-3 > calibration.p_value(9.0)


def test_the_largest_of_more_classes_is_held_to_more():
    """The largest of 100 exceeds its threshold as often as the largest of 10 does its own."""
    random = np.random.default_rng(0)
    null = fitted(largest(random, 10, 1000))
    assert null.threshold(0.05, 100) > null.threshold(0.05) > null.threshold(0.05, 5)
    for classes in (5, 10, 100):
        over = z(null, largest(random, classes, 4000)) > null.threshold(0.05, classes)
        assert over.mean() == pytest.approx(0.05, abs=0.02)
    assert (z(null, largest(random, 100, 2000)) > null.threshold(0.05)).mean() > 0.25  # without the correction


def test_what_is_usual_depends_on_the_distance():
    """Adapters that learned more are driven further, and further apart; their p-values still mean what they say."""
    random = np.random.default_rng(0)

    def drawn(n):
        distances = random.uniform(0, 0.6, n)
        return distances, 0.05 + 0.5 * distances + (0.03 + 0.1 * distances) * random.normal(size=n)

    distances, excesses = drawn(400)
    null = fitted(excesses, distances=list(distances))
    usual = null.usual["perturbation"]
    assert usual.slope == pytest.approx(0.5, abs=0.05) and usual.growth == pytest.approx(0.1, abs=0.04)
    distances, excesses = drawn(4000)
    scores = np.array([usual.z(e, d) for e, d in zip(excesses, distances)])
    for part in (distances < 0.2, distances > 0.4):
        assert (scores[part] > null.threshold(0.05)).mean() == pytest.approx(0.05, abs=0.03)
    assert usual.z(usual.excess(3.0, 0.4), 0.4) == pytest.approx(3.0)


def test_several_families_share_the_false_alarms():
    """The score is the largest of them, so that looking for more does not accuse more often."""
    random = np.random.default_rng(0)
    draw = lambda n: [dict(zip("abcd", row)) for row in random.normal(0.1, 0.05, (n, 4, 1))]
    null, new = fit(draw(400), [0.1] * 400, ["d"] * 400, 10, **KNOWN), draw(4000)
    scores = np.array([combined({name: null.usual[name].z(e, 0.1) for name, e in found.items()})[0] for found in new])
    assert (scores > null.threshold(0.05)).mean() == pytest.approx(0.05, abs=0.02)


def test_a_family_that_some_scans_lack_is_fitted_on_the_others():
    """Some are looked for on labelled photos alone."""
    many = [
        {"perturbation": [e]} | ({"perturbation of own photos": [2 * e]} if i % 2 else {})
        for i, e in enumerate(SOME * 2)
    ]
    null = fit(many, [0.1] * 16, ["d"] * 16, 10, **KNOWN)
    assert null.usual["perturbation of own photos"].intercept == pytest.approx(2 * np.mean(SOME[1::2]))
    assert (
        null.clean_models == 16 and len(fit(many[:6], [0.1] * 6, ["d"] * 6, 10, **KNOWN).usual) == 1
    )  # three are too few


def test_small_changes_of_all_pixels_are_one_question_asked_in_several_ways():
    """What answers to all of them counts more than what answers to one; other families stand alone."""
    three = {
        "perturbation": np.array([3.0, 4.0]),
        "wide perturbation": np.array([3.0, 0.0]),
        "frame": np.array([1.0, 3.5]),
    }
    assert combined(three) == pytest.approx([6 / 2**0.5, 3.5])
    assert combined({"frame": np.array([1.0]), "probe": np.array([2.0])}) == pytest.approx([2.0])
    pool, own = (
        np.array([3.0]),
        np.array([0.0]),
    )  # photos that tell nothing, or are to hide something, take nothing away
    assert combined({"perturbation": pool, "perturbation of own photos": own}) == pytest.approx([3.0])
    assert combined({"perturbation": pool, "perturbation of own photos": pool}) == pytest.approx([6 / 2**0.5])
    assert combined({"perturbation": np.array([3.0])}) == pytest.approx([3.0])


def test_an_adapter_is_held_against_what_other_data_sets_show():
    """Sets differ more than adapters of one set do, and the set of an adapter to be judged is none of them: thresholds
    that each adapter's own set took part in are exceeded more often than they say."""
    random, rates = np.random.default_rng(0), {True: [], False: []}
    for _ in range(300):
        shifts = random.normal(0.1, 0.05, 5)  # of four sets that are fitted on, and of one that is judged
        excesses = [random.normal(shift, 0.02, 12) for shift in shifts]
        models = [{"perturbation": [e]} for e in np.concatenate(excesses[:4])]
        for told in (True, False):
            sets = [f"{i // 12 if told else 0}" for i in range(48)]
            null = fit(models, [0.1] * 48, sets, 10, **KNOWN)
            rates[told].append((z(null, excesses[4]) > null.threshold(0.05)).mean())
    assert null.data == ("0",) and np.mean(rates[True]) < np.mean(rates[False]) - 0.02 and np.mean(rates[True]) < 0.08


def test_too_few_adapters_fit_nothing():
    with pytest.raises(ValueError, match="at least 5"):
        fitted([0.1] * 4)


def test_adapters_that_all_score_alike_fit_nothing():
    """Of no spread a threshold of 0 would come, and every class would be flagged."""
    with pytest.raises(ValueError, match="no spread"):
        fitted([0.0] * 24)


SOME = (0.02, 0.05, 0.08, 0.03, 0.11, 0.04, 0.06, 0.05)
NULLS = {"photos": fitted(SOME)}


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "c.json").write_text(render(NULLS))
    assert read(tmp_path / "c.json") == NULLS and nulls_for("./photos", tmp_path / "c.json") == {"": NULLS["photos"]}
    with pytest.raises(UsageError, match="c.json holds a null for photos, --pool builtin needs one for builtin"):
        nulls_for("builtin", tmp_path / "c.json")


def test_an_adapter_is_judged_by_the_null_of_such_adapters():
    """Few classes first: what is usual differs more by them than by the kind of context."""
    main, few, by_class = fitted(SOME), fitted([2 * e for e in SOME]), fitted([3 * e for e in SOME])
    detector = Contrast(null=main, variants={"": main, ", few classes": few, ", class-specific": by_class})
    null_of = lambda class_specific, num_classes: detector.for_adapter(class_specific, num_classes).null
    assert null_of(False, 4) == null_of(False, 100) == main and null_of(True, 4) == by_class
    assert null_of(False, 3) == null_of(True, 2) == few
    assert Contrast(null=main).for_adapter(True, 2).null == main


def sealed(**changes):
    content = json.loads(render(NULLS))
    del content["sha256"]
    content["nulls"]["photos"] |= changes
    return json.dumps(content | {"sha256": seal(content)})


@pytest.mark.parametrize(
    "text, message",
    [
        (render(NULLS).replace('"slope": 0.0', '"slope": 0.9'), "edited by hand or damaged"),
        (render(NULLS).replace('"clean_models": 8', '"clean_models": 80'), "edited by hand or damaged"),
        (render(NULLS)[:100], "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[]", "no calibration of format 2"),
        ('{"photos": {"mean": 0.1}}', "no calibration of format 2"),
        (sealed(sd=0), "photos.sd: Input should be greater than 0"),
        (sealed(mean=float("nan")), "photos.mean"),
        (sealed(extra=1), "photos.extra"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_relied_on_is_a_usage_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(UsageError, match="c.json: ") as error:
        read(tmp_path / "c.json")
    assert message in str(error.value)


def test_shipped_calibration_is_that_of_the_shipped_records():
    from hf_ci.lab.benchmarks.calibrate import calibrate

    assert calibrate(RECORDS) == read(SHIPPED) == shipped()
    assert set(shipped()) == set(get_args(Kind))
    for pool, kind in (("builtin", "builtin"), ("./my/photos", "photos"), ("user/builtin", "photos")):
        null = shipped()[kind]
        assert null.base_revision == fetch_base(EMBEDDED).revision and kind_of(null.pool) == kind
        shown = Contrast.for_pool(pool).thresholds(null.num_classes)["k"]
        assert shown == pytest.approx(null.threshold(Contrast.false_alarm), abs=1e-3)
