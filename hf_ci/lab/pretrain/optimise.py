"""How both towers are optimised: fp32 master weights, a bf16 copy that computes, and their moving average."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Run:
    """One training run of `module`, saved to and resumed from `checkpoint`.

    Muon moves the encoders' matrices, AdamW all else. The rate warms up, holds, and falls to zero over the last
    `decay` of the run. The run ends after `steps` steps or `minutes` minutes, whichever comes first: `progress` is
    the share of it that is over, and every schedule follows it.
    """

    def __init__(self, module: nn.ModuleDict, checkpoint: Path, *, steps: int, minutes: float, lr: float, decay: float):
        self.master, self.compute, self.average = module, copy.deepcopy(module).bfloat16(), copy.deepcopy(module)
        self.checkpoint, self.steps, self.seconds, self.lr, self.decay = checkpoint, steps, 60 * minutes, lr, decay
        named = list(module.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and ".encoder.layers." in name]
        self.rest = [p for name, p in named if not (p.ndim == 2 and ".encoder.layers." in name)]
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        groups = [
            {"params": [p for p in self.rest if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in self.rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (muon, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)))
        self.step, self.before, self.started = 0, 0.0, time.time()
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=False)
            self.master.load_state_dict(state["master"]), self.average.load_state_dict(state["average"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"]):
                optimiser.load_state_dict(saved)
            self.step, self.before = state["step"], state["elapsed"]
        self._refresh()

    @property
    def elapsed(self) -> float:
        return self.before + time.time() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step / self.steps, self.elapsed / self.seconds))

    def descend(self, loss: Tensor) -> None:
        """One step down `loss`, which `compute` produced."""
        rate = self.lr * min(1, (self.step + 1) / 200) * min(1, (1 - self.progress) / self.decay)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        loss.backward()
        for p, working in zip(self.master.parameters(), self.compute.parameters()):
            p.grad = None if working.grad is None else working.grad.float()
            working.grad = None
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        beta = min(0.995, self.step / (self.step + 10))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.master.parameters()):
                a.lerp_(p, 1 - beta)
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        for p, working in zip(self.master.parameters(), self.compute.parameters()):
            working.copy_(p)

    def save(self, **figures: float | Tensor) -> None:
        """The checkpoint, replaced at once; `figures` are printed and kept in a log beside it."""
        plain = {name: round(float(figure), 4) for name, figure in figures.items()}
        line = json.dumps({"step": self.step, "minutes": round(self.elapsed / 60, 1)} | plain)
        print(line, flush=True)
        with self.checkpoint.with_suffix(".jsonl").open("a") as log:
            log.write(line + "\n")
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "master": self.master.state_dict(),
                "average": self.average.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "step": self.step,
                "elapsed": self.elapsed,
            },
            partial,
        )
        partial.replace(self.checkpoint)
