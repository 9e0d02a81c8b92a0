"""Every hostile target ends as it has to, and nothing of what it holds runs. `measure.py` has the time and memory."""

import json
import shutil
from dataclasses import replace

import measure
import pytest
from cases import CASES

from hf_ci import ScanOptions, scan_targets
from hf_ci.errors import UsageError
from hf_ci.hub.target import DEMOS
from hf_ci.settings import default_cache

QUICK = ScanOptions(num_images=32, precision="fp32", detector="clip-inspector", k=1e9)


@pytest.mark.parametrize("name", CASES)
def test_it_ends_as_it_has_to(name, tmp_path, monkeypatch):
    case, folder = CASES[name], tmp_path / "downloaded"
    shutil.copytree(DEMOS / "coop", folder)
    case.make(folder)
    monkeypatch.chdir(tmp_path)
    try:
        (result,) = scan_targets([str(folder / case.target)], replace(QUICK, cache=default_cache())).results
        code, reasons = result.exit_code, result.reasons
    except UsageError as error:  # no target at all
        code, reasons = error.exit_code, [str(error)]
    assert code == case.code and case.said in reasons[0], reasons
    assert len("".join(reasons)) < 3000 and not list(tmp_path.rglob("pwned"))


def test_the_shipped_card_is_that_of_the_shipped_records():
    records = [json.loads(line) for line in measure.RECORDS.read_text().splitlines()]
    assert measure.table(records) == (measure.RECORDS.parent / "hardening.md").read_text()
    assert {record["part"] for record in records} == set(measure.PARTS)
    assert not [record for record in records if record.get("ran")]
