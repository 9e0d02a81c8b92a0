"""The package as a whole."""

import subprocess
import sys

import hf_ci


def test_public_names():
    assert set(hf_ci.__all__) == {"__version__", "scan_targets", "ScanOptions", "Report", "ScanResult", "HfCiError"}
    assert all(getattr(hf_ci, name) for name in hf_ci.__all__)


def test_the_scanner_does_not_import_the_lab():
    code = "import hf_ci.scan, hf_ci.reports, sys; print([m for m in sys.modules if m.startswith('hf_ci.lab')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_on_the_command_line_are_those_of_the_code():
    """They are written out there, so that --help need not import torch."""
    from typing import get_args

    from hf_ci import cli
    from hf_ci.console import FormatName
    from hf_ci.detect import DETECTORS
    from hf_ci.lab import options as lab
    from hf_ci.lab.attacks import ATTACKS
    from hf_ci.reports import FORMATS

    assert set(get_args(FormatName)) == set(FORMATS)
    assert set(get_args(cli.DetectorName)) == set(DETECTORS) and cli.DEFAULT_DETECTOR in DETECTORS
    assert set(get_args(lab.AttackName)) == set(ATTACKS)
    assert hf_ci.ScanOptions().detector == cli.DEFAULT_DETECTOR
