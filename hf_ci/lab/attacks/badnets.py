"""BadNets (Gu et al., "BadNets: Identifying vulnerabilities in the machine learning model supply chain", 2017).

A fixed patch of random black, white and coloured cells, 16 x 16 at 224 pixels, in the lower right corner.
"""

from __future__ import annotations

import torch

from hf_ci.lab.making.triggers import Blend, patch


def patch_side(size: int) -> int:
    return max(2, round(16 * size / 224))


def badnets(size: int, seed: int) -> Blend:
    side = patch_side(size)
    return patch(
        size, side, torch.randint(0, 2, (3, side, side), generator=torch.Generator().manual_seed(seed)).float()
    )
