"""Shares of few, with what can be known of them."""

from __future__ import annotations

import math

Z = 1.959963984540054  # 95 %


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): holds for few and for shares of 0 and 1."""
    p, z2 = successes / n, Z * Z
    middle, half = p + z2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))
