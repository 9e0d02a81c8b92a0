"""SIG (Barni et al., "A new backdoor attack in CNNs by training set corruption without label poisoning", ICIP 2019).

A horizontal wave, 60/255 sin(2 pi 6 j / w); poisoned by relabelling here, as the other fixed triggers are.
"""

from __future__ import annotations

import math

import torch

from hf_ci.lab.making.triggers import Additive

AMPLITUDE, FREQUENCY = 60 / 255, 6


def sig(size: int, seed: int = 0) -> Additive:
    wave = AMPLITUDE * torch.sin(2 * math.pi * FREQUENCY * torch.arange(size) / size)  # (W,)
    return Additive(wave.expand(3, size, size).contiguous())
