"""The text tower: distilled from sentence embeddings, so that words mean something to it and prompts move it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ci.lab.pretrain.optimise import Run

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

WATCH = 100  # steps from one checkpoint to the next
BATCH = 256


def train_text_tower(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    targets: Tensor,
    work: Path,
    *,
    steps: int,
    minutes: float,
    seed: int,
) -> None:
    """Fit `model`'s text tower to `targets` (n, 384): 1 - cosine, and each text's own told from the others."""
    module = nn.ModuleDict({"tower": model.text_model, "projection": model.text_projection})
    run = Run(module, work / "text.pt", steps=steps, minutes=minutes, lr=2e-3, decay=0.5)
    tokens = tokenizer(texts, truncation=True).input_ids
    torch.manual_seed(seed + run.step)
    batches: list[Tensor] = []
    while run.progress < 1:
        if not batches:  # texts of like length share a batch, so little of it is padding
            drawn = torch.randperm(len(texts))[: 32 * BATCH].tolist()
            drawn.sort(key=lambda i: len(tokens[i]))
            batches = [torch.tensor(drawn[i : i + BATCH]) for i in range(0, len(drawn), BATCH)]
        rows = batches.pop(int(torch.randint(len(batches), ())))
        ids = tokenizer.pad({"input_ids": [tokens[i] for i in rows]}, return_tensors="pt").input_ids
        hidden = run.compute["tower"](input_ids=ids).pooler_output
        w = F.normalize(run.compute["projection"](hidden).float(), dim=1)  # (B, 384)
        cosines = w @ targets[rows].T  # (B, B)
        contrast = F.cross_entropy(20 * cosines, torch.arange(len(rows)))
        distance = (1 - cosines.diagonal()).mean()
        run.descend(distance + 0.2 * contrast)
        if run.step % WATCH == 0:
            run.save(distance=distance, contrast=contrast)
    module.load_state_dict(run.average.state_dict())
    run.save()
