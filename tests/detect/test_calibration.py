"""The null of clean adapters: fitted right, and the shipped one is that of the shipped records."""

from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from hf_ci.detect import Contrast
from hf_ci.detect.calibration import SHIPPED, angle, fit, read, shipped
from hf_ci.hub.base import EMBEDDED, fetch_base

KNOWN = dict(pool="p", base_model="b", base_revision="r", records_sha256="s")
RECORDS = Path(__file__).parents[2] / "cards" / "calibration.jsonl"


def test_threshold_is_exceeded_as_often_as_asked():
    """Simulated clean adapters: a threshold for 5 % false alarms flags about 5 % of new ones."""
    random = np.random.default_rng(0)
    draw = lambda n: np.sin(random.normal(0.3, 0.05, n)) ** 2  # noqa: E731
    rates = [(draw(200) > fit(draw(16), 10**6, 0.05, **KNOWN).threshold).mean() for _ in range(200)]
    assert 0.04 < np.mean(rates) < 0.09  # a little above: sixteen models fit the null only roughly


def test_p_value_and_threshold_agree():
    calibration = fit([0.02, 0.05, 0.08, 0.03, 0.11], 256, 0.01, **KNOWN)
    largest = NormalDist(calibration.mean, calibration.sd).inv_cdf(0.99)
    assert angle(calibration.threshold, 10**9) == pytest.approx(largest, abs=1e-6)
    assert calibration.p_value(calibration.threshold) == pytest.approx(0.01, rel=0.1)
    assert calibration.p_value(0.0) > 0.9 > 1e-3 > calibration.p_value(0.9)


def test_too_few_adapters_fit_nothing():
    with pytest.raises(ValueError, match="at least 5"):
        fit([0.1] * 4, 256, 0.01, **KNOWN)


def test_shipped_calibration_is_that_of_the_shipped_records():
    from hf_ci.lab.calibrate import calibrate

    assert calibrate(RECORDS, shipped().false_alarm) == read(SHIPPED)
    assert shipped().base_revision == fetch_base(EMBEDDED).revision
    assert Contrast().min_share == pytest.approx(shipped().threshold, abs=1e-3)
