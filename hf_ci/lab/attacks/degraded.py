"""Pictures as a bad camera, a web site or a printer leaves them: blurred, compressed, without colour, in few colours.

How strongly is drawn from the seed, so that no scan knows it.
"""

from __future__ import annotations

import random

from hf_ci.lab.making.triggers import Blur, Grey, Jpeg, Quantised

SIGMA = (1.2, 2.0)  # pixels of 64
QUALITY = (7, 14)
LEVELS = 4


def blur(size: int, seed: int) -> Blur:
    return Blur(random.Random(seed).uniform(*SIGMA) * size / 64)


def jpeg(size: int, seed: int) -> Jpeg:
    return Jpeg(random.Random(seed).randint(*QUALITY))


def grey(size: int, seed: int) -> Grey:
    return Grey()


def quantise(size: int, seed: int) -> Quantised:
    return Quantised(LEVELS)
