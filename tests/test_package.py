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
