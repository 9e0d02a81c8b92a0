"""What may be missing in general, where the code before has made sure that it is there."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def certain(value: T | None) -> T:
    """The value. None here is a mistake of ours: AssertionError."""
    assert value is not None
    return value
