"""hf-ci answers one question: is this prompt-tuned CLIP adapter backdoored?

Public names are loaded on first use, so that ``import hf_ci`` (and ``hf-ci --help``) costs no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "scan_targets": "hf_ci.scan",
    "ScanOptions": "hf_ci.settings",
    "Report": "hf_ci.report",
    "ScanResult": "hf_ci.report",
    "HfCiError": "hf_ci.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hf_ci' has no attribute {name!r}")
