"""From the records of `hf-ci lab speed` to their card: targets beside what was measured, a word on each one missed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_ci.cards import render_card
from hf_ci.inversion.job import VERSION
from hf_ci.inversion.rounds import FEWEST
from hf_ci.lab.cost.speed import PARTS

SCREENING = (
    "Every class is screened, a batch there and back and another there, and those inverted whole are measured against "
    "all classes."
)
WHY = {  # a word on a target that was missed, by its name: from how a scan is built, not from a measurement
    "CoCoOp, 50 classes": SCREENING,
    "CoCoOp, 200 classes": SCREENING,
    "CoOp": f"Without texts to save, only classes are: at least {FEWEST} are inverted whole, and the probes cost the "
    "same for few classes as for many.",
    "rivals": "With ten classes a scan inverts half of them whole, and the second ratio gives the rivals our forward pass, not the "
    "plain one that their papers' code has; with more classes both ratios grow.",
    "encoders": "Around the encoders, a step adds the trigger, places context vectors, compares "
    "with references and moves the trigger.",
    "growth, time": SCREENING,
    "growth, memory": "The texts of all classes are encoded for eight or more images at a time, without gradients.",
    "two processes": "On so small a model starting anew, which each process does, takes a good part of the time; both find the "
    "nearest classes, and who has inverted fewer classes gets more probes, by a rough count.",
    "unchanged": "Starting Python and importing what hashes and reads is most of it.",
    "ten adapters": "Base model and pool are shared, and what the image encoder makes of it under the probes; inversions are "
    "not: they depend on the adapter.",
}


@dataclass(frozen=True)
class Target:
    name: str
    what: str
    wanted: str
    measured: str
    met: bool

    @property
    def why(self) -> str:
        return WHY[self.name]


def performance(records: list[dict[str, Any]]) -> str:
    parts = {part: [r for r in records if r["part"] == part] for part in PARTS}
    before = sum(r.get("version") != VERSION for r in records)
    measured = next((r for r in records if r["part"] != "scale"), None)
    return render_card(
        "performance.md.j2", parts=parts, one=measured, targets=list(targets(parts)), before=before, all=len(records)
    )


def targets(parts: dict[str, list[dict[str, Any]]]) -> Iterable[Target]:
    """Those that something was measured for."""

    def of(part: str, **wanted: object) -> list[dict[str, Any]]:
        return [r for r in parts[part] if wanted.items() <= r.items()]

    for classes, least in ((50, 30), (200, 100)):
        if found := of("scan", method="cocoop", classes=classes):
            ratio = min(r["ratio"]["ours"] for r in found)
            what = f"the paper's recipe / a scan, CoCoOp, {classes} classes"
            yield Target(f"CoCoOp, {classes} classes", what, f"at least {least}", f"{ratio:.1f}", ratio >= least)
    if found := of("scan", method="coop"):
        ratio = min(r["ratio"]["ours"] for r in found)
        yield Target("CoOp", "the same, CoOp, the least of all sizes", "at least 5", f"{ratio:.1f}", ratio >= 5)
    if found := of("rivals"):
        plain, shared = (min(r["ratio"][way] for r in found) for way in ("plain", "shared"))
        measured = f"{plain:.0f} (on our forward pass {shared:.0f})"
        yield Target(
            "rivals", "the nearer rival / a scan, the least", "at least 50", measured, min(plain, shared) >= 50
        )
    if found := of("encoders"):
        share = min(r["share"] for r in found)
        what = "a step's throughput, of the bare encoders', the least"
        yield Target("encoders", what, "at least 85 %", f"{share:.0%}".replace("%", " %"), share >= 0.85)
    for name, what, most, value in (
        ("growth, time", "time of a scan", 6.0, "seconds"),
        ("growth, memory", "peak memory of a scan", 1.5, "peak"),
    ):
        grown = [
            r[value] / first[value]
            for r in of("growth", classes=200)
            for first in of("growth", classes=10, method=r["method"])
        ]
        if grown:
            yield Target(
                name, f"{what}, 200 classes / 10, the most", f"below {most:g}", f"{max(grown):.1f}", max(grown) < most
            )
    if found := of("processes"):
        best = max(found, key=lambda r: r["classes"])
        same = all(r["equal"] for r in found)
        limit = f", the machine's most {best['most']:.2f}" if best.get("most") else ""
        measured = f"{best['speedup']:.2f} (once started {best['speedup_started']:.2f}{limit}), {'' if same else 'not '}the same"
        what = f"two processes against one, {best['classes']} classes"
        yield Target("two processes", what, "at least 1.7, the same", measured, best["speedup"] >= 1.7 and same)
    for r in of("cache", what="unchanged"):
        seconds = r["seconds"]["again"]
        yield Target("unchanged", "an unchanged adapter, seconds", "below 2", f"{seconds:.2f}", seconds < 2)
    for r in of("cache", what="ten adapters"):
        yield Target("ten adapters", "ten adapters / one", "below 8", f"{r['ratio']:.1f}", r["ratio"] < 8)
