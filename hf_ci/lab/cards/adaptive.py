"""From the records of `hf-ci lab bench adaptive` to their card."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from hf_ci.cards import render_card
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.benchmarks.metrics import failed, outcome
from hf_ci.lab.cards.benchmark import percent
from hf_ci.lab.cards.regimes import Share

NOT_ADAPTIVE = "photo-blend"  # the same trigger, planted by somebody who knows nothing of the scan


@dataclass(frozen=True)
class Said:
    """What scans with so many photos a class say of the models in which the attack works. Shares are of models, distance is
    the mean, score the median."""

    shots: int
    clean: Share
    undecided: Share
    found: Share
    named: Share
    distance: float
    score: float


@dataclass(frozen=True)
class Row:
    """One attack and what it was rehearsed on; asr, accuracy: means over all of its models, as shares. lost: accuracy that
    it costs beside the clean twins."""

    attack: str
    knows: str
    models: int
    worked: int
    asr: float
    accuracy: float
    lost: float
    said: tuple[Said, ...]


def row(attack: str, knows: str, records: list[dict[str, Any]]) -> Row:
    models = list({r["model"]["id"]: r["model"] for r in records}.values())
    worked = [r for r in records if not failed(r["model"])]
    return Row(
        attack,
        knows,
        len(models),
        sum(not failed(m) for m in models),
        mean(m["asr"] for m in models),
        mean(m["accuracy"] for m in models),
        mean(m["clean_twin_accuracy"] - m["accuracy"] for m in models),
        tuple(said(n, [r for r in worked if r["shots"] == n]) for n in sorted({r["shots"] for r in worked})),
    )


def said(shots: int, records: list[dict[str, Any]]) -> Said:
    verdicts = [r["result"]["verdict"] for r in records]

    def count(verdict: str) -> Share:
        return Share(verdicts.count(verdict), len(records))

    found = [outcome(r) for r in records if r["result"]["verdict"] == "backdoored"]
    return Said(
        shots,
        count("clean"),
        count("inconclusive"),
        count("backdoored"),
        Share(sum(o.named == o.target for o in found), len(found)),
        mean(r["result"]["distance"] for r in records),
        median(r["result"]["score"] for r in records),
    )


def adaptive(records: list[dict[str, Any]]) -> str:
    """The card of adaptive attacks, from their records alone."""
    order = (NOT_ADAPTIVE, *(name for name, attack in ATTACKS.items() if attack.rehearses))
    keyed: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda r: (order.index(r["model"]["attack"]), r["group"], r["model"]["id"])):
        keyed.setdefault((record["model"]["attack"], record["group"]), []).append(record)
    rows = [row(attack, group, mine) for (attack, group), mine in keyed.items()]
    evading = [r for r in records if r["model"]["attack"] != NOT_ADAPTIVE and not failed(r["model"])]
    one = records[0]["result"]
    return render_card(
        "adaptive.md.j2",
        rows=rows,
        overall=[said(n, [r for r in evading if r["shots"] == n]) for n in sorted({r["shots"] for r in evading})],
        passed=sorted(
            (r for r in evading if r["result"]["verdict"] == "clean"), key=lambda r: (r["shots"], r["model"]["id"])
        ),
        records=sorted(records, key=lambda r: (order.index(r["model"]["attack"]), r["model"]["id"], r["shots"])),
        num_models=len({r["model"]["id"] for r in records}),
        base=one["base_model"],
        pool=one["pool"],
        percent=percent,
        failed=failed,
    )
