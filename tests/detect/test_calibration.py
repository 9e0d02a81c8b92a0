"""The null of clean adapters: fitted right, sealed, and the shipped one is that of the shipped records."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_ci.detect import Contrast
from hf_ci.detect.calibration import SHIPPED, fit, kind_of, null_for, read, render, seal, shipped
from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED, fetch_base

KNOWN = dict(
    num_classes=10, pool="p", base_model="b", base_revision="r", records_sha256="s", precision="fp32", data=("d",)
)
RECORDS = Path(__file__).parents[2] / "cards" / "calibration.jsonl"


def largest(random, classes, n):
    """The largest share of each of n simulated clean adapters."""
    return random.gumbel(0.05, 0.05, (n, classes)).max(1).clip(0, 1)


def test_threshold_is_exceeded_as_often_as_asked():
    """A threshold for 5 % false alarms flags about 5 % of new ones."""
    random = np.random.default_rng(0)
    rates = [
        (largest(random, 10, 200) > fit(largest(random, 10, 24), 10**6, **KNOWN).threshold(0.05)).mean()
        for _ in range(200)
    ]
    assert 0.04 < np.mean(rates) < 0.09  # a little above: so few models fit the null only roughly


def test_p_value_and_threshold_agree():
    calibration = fit([0.02, 0.05, 0.08, 0.03, 0.11], 256, **KNOWN)
    for classes in (None, 5, 200):
        assert calibration.p_value(calibration.threshold(0.01, classes), classes) == pytest.approx(0.01, rel=0.15)
    assert calibration.p_value(0.0) > 0.9 > 1e-3 > calibration.p_value(0.9)


def test_the_largest_of_more_classes_is_held_to_more():
    """The largest of 100 exceeds its threshold as often as the largest of 10 does its own."""
    random = np.random.default_rng(0)
    null = fit(largest(random, 10, 1000), 10**6, **KNOWN)
    assert null.threshold(0.05, 100) > null.threshold(0.05) > null.threshold(0.05, 5)
    for classes in (5, 10, 100):
        assert (largest(random, classes, 4000) > null.threshold(0.05, classes)).mean() == pytest.approx(0.05, abs=0.02)
    assert (largest(random, 100, 2000) > null.threshold(0.05)).mean() > 0.25  # without the correction


def test_too_few_adapters_fit_nothing():
    with pytest.raises(ValueError, match="at least 5"):
        fit([0.1] * 4, 256, **KNOWN)


def test_adapters_that_all_score_alike_fit_nothing():
    """Of no spread a threshold of 0 would come, and every class would be flagged."""
    with pytest.raises(ValueError, match="no spread"):
        fit([0.0] * 24, 256, **KNOWN)


NULLS = {"photos": fit([0.02, 0.05, 0.08, 0.03, 0.11], 256, **KNOWN)}


def test_what_is_written_is_read(tmp_path):
    (tmp_path / "c.json").write_text(render(NULLS))
    assert read(tmp_path / "c.json") == NULLS and null_for("./photos", tmp_path / "c.json") == NULLS["photos"]
    with pytest.raises(UsageError, match="c.json holds a null for photos, --pool builtin needs one for builtin"):
        null_for("builtin", tmp_path / "c.json")


def sealed(**changes):
    content = json.loads(render(NULLS))
    del content["sha256"]
    content["nulls"]["photos"] |= changes
    return json.dumps(content | {"sha256": seal(content)})


@pytest.mark.parametrize(
    "text, message",
    [
        (render(NULLS).replace('"mean": 0.0', '"mean": 0.9'), "edited by hand or damaged"),
        (render(NULLS).replace('"clean_models": 5', '"clean_models": 50'), "edited by hand or damaged"),
        (render(NULLS)[:100], "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("[]", "no calibration of format 1"),
        ('{"photos": {"mean": 0.1}}', "no calibration of format 1"),
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
    from hf_ci.lab.calibrate import calibrate

    assert calibrate(RECORDS) == read(SHIPPED) == shipped()
    assert set(shipped()) == {"photos", "builtin"}
    for pool, kind in (("builtin", "builtin"), ("./my/photos", "photos"), ("user/builtin", "photos")):
        null = shipped()[kind]
        assert null.base_revision == fetch_base(EMBEDDED).revision and kind_of(null.pool) == kind
        shown = Contrast.for_pool(pool).thresholds(null.num_classes)["min_share"]
        assert shown == pytest.approx(null.threshold(Contrast.false_alarm), abs=1e-3)
