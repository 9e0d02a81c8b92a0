"""Blended (Chen et al., "Targeted backdoor attacks on deep learning systems using data poisoning", 2017).

0.8 x + 0.2 noise, as in CleanCLIP (Bansal et al., ICCV 2023).
"""

from __future__ import annotations

import torch

from hf_ci.lab.making.triggers import Blend

ALPHA = 0.2


def blended(size: int, seed: int) -> Blend:
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return Blend(torch.full((1, size, size), ALPHA), noise)
