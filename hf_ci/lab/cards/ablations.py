"""From the records of `hf-ci lab ablate` to their card."""

from __future__ import annotations

from statistics import mean
from typing import Any

from hf_ci.cards import render_card
from hf_ci.lab.benchmarks.ablations import SETTINGS
from hf_ci.lab.benchmarks.metrics import failed
from hf_ci.lab.cards.benchmark import percent

# Target's ASR in the paper, transcribed second-hand; each ablation changes one setting of its own default.
PAPER = {
    "margin, 1000 images, batch 32": 0.911,
    "cross-entropy": 0.815,
    "target logit": 0.777,
    "100 images": 0.600,
    "500 images": 0.892,
    "batch 1": 0.759,
    "batch 64": 0.885,
    "in-distribution pool": 0.986,
}


def ablation_card(records: list[dict[str, Any]]) -> str:
    """The card of ablations, from their records alone. Only attacks that work are counted."""
    worked = [r for r in records if not failed(r["model"])]
    rows = {}
    for name in SETTINGS:
        mine = [r for r in worked if r["setting"] == name]
        if mine:
            scores = {w: [r[w]["exclusive_asr"] for r in mine] for w in ("poisoned", "clean")}
            contrast = all(s is not None for s in scores["poisoned"])
            rows[name] = dict(
                models=len(mine),
                paper=PAPER.get(name),
                **{w: {k: mean(r[w][k] for r in mine) for k in ("asr", "loss")} for w in ("poisoned", "clean")},
                scores={w: mean(values) for w, values in scores.items()} if contrast else None,
            )
    one = worked[0]
    return render_card(
        "ablations.md.j2",
        rows=rows,
        precision=one["precision"],
        attack=one["model"]["attack"],
        data=sorted({r["model"]["data"] for r in worked}),
        percent=percent,
    )
