"""Every error that hf-ci raises on purpose.

    HfCiError                  expected failures: one line, advice, an exit code
    ├── UsageError        2    a flag, a setting or a path of ours is wrong
    ├── NothingToScan     3    the target holds no prompt-tuned CLIP adapter, or does not exist
    ├── Interrupted     130    Ctrl-C, where more is to be said than that
    └── Inconclusive      4    there is something to scan, and it could not be judged
        ├── AdapterError       the adapter's files do not fit together or do not fit the base model
        │   └── EncoderModified    it brings encoders that are not the base model's
        ├── BaseModelError     the base model cannot be had or is no CLIP
        ├── PoolError          the image pool cannot be had or is too small
        ├── HubError           the Hub cannot be reached or refuses
        │   └── HubMoved       the adapter there is no longer the one that was scanned
        └── CardError          the model card cannot be changed without harm

Exit codes of the command line: 0 clean, 1 backdoored, 2 usage, 3 nothing to scan, 4 inconclusive,
5 internal error, 130 interrupted.
"""

from __future__ import annotations

EXIT_CLEAN, EXIT_BACKDOORED, EXIT_USAGE, EXIT_NOTHING, EXIT_INCONCLUSIVE, EXIT_INTERNAL = range(6)
EXIT_INTERRUPTED = 130


class HfCiError(Exception):
    """An expected failure. `message` names the thing, what was found and what was expected; `advice` what to do."""

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, advice: str = ""):
        super().__init__(message)
        self.message, self.advice = message, advice

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message


class UsageError(HfCiError):
    exit_code = EXIT_USAGE


class NothingToScan(HfCiError):
    exit_code = EXIT_NOTHING


class Interrupted(HfCiError):
    exit_code = EXIT_INTERRUPTED


class Inconclusive(HfCiError):
    exit_code = EXIT_INCONCLUSIVE


class AdapterError(Inconclusive):
    pass


class EncoderModified(AdapterError):
    pass


class BaseModelError(Inconclusive):
    pass


class PoolError(Inconclusive):
    pass


class HubError(Inconclusive):
    pass


class HubMoved(HubError):
    pass


class CardError(Inconclusive):
    pass


def is_defect(error: BaseException) -> bool:
    """Whether an unexpected error is a defect, of ours or of a library: a panic in Rust is no Exception in Python, and
    unlike an interruption it must not pass for a verdict by its exit code."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its kind when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def write_log() -> str:
    """Keep the exception at hand, with what a bug report needs, in a file of its own; returns its path."""
    import platform
    import sys
    import tempfile
    import traceback

    from hf_ci import __version__

    with tempfile.NamedTemporaryFile("w", prefix="hf-ci-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"hf-ci {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n\n")
        log.write(traceback.format_exc())
    return log.name
