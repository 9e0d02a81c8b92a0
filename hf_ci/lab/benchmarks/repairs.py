"""Repair measured where the true trigger is known: ASR and accuracy on test photos, before and after, with controls.

The repair itself is the product's own (`hf_ci.repair`), on the adapter's folder alone, with the pool or with a few
labelled photos that are not among the test photos, and drawn with another seed than the adapter's. The controls tune in the same way, with labels, but against something
else than the reconstructed trigger: nothing at all, random noise of the same size, the trigger of another class. A clean
adapter is left alone by the product; here it is tuned all the same, as if its highest score were a finding, to see what a
false alarm would cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_ci.certain import certain
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.lab.benchmarks.bench import Spec, in_turn, pool_of, scan_options
from hf_ci.lab.benchmarks.metrics import failed
from hf_ci.lab.benchmarks.records import appending, read_records
from hf_ci.lab.making.make import Workbench, accuracy, attack_success_rate
from hf_ci.lab.making.triggers import read_trigger
from hf_ci.lab.making.zoo import Zoo
from hf_ci.progress import Silent
from hf_ci.prompts import Adapter, PromptedCLIP, read_adapter
from hf_ci.repair.engine import RepairOptions, repair
from hf_ci.repair.tuning import Trigger, adder, triggers, tuned
from hf_ci.repair.unlearn import Schedule
from hf_ci.scan import Examined, Run, examine
from hf_ci.settings import ScanOptions

MODES = (WITHOUT := "without labels", LABELLED := "with labels")
CONTROLS = ("clean only", "random noise", "another class")


def run_repairs(
    spec: Spec,
    data_root: Path,
    out: Path,
    zoo: Path,
    groups: list[str],
    controls: bool = True,
    shots: int = 16,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Yields each new record after it was written to `out`; what is in the file already is not done again.

    Models whose attack does not work are left out: nothing is planted in them that could be taken out.
    """
    known = Zoo(zoo, data_root, device)
    done = {(record["model"]["id"], record["mode"]) for record in read_records(out)}
    runs: dict[ScanOptions, Run] = {}
    with appending(out) as append:
        for group in spec.chosen(groups):
            pool = pool_of(group, data_root)
            options = scan_options(spec, group, data_root, zoo, device)
            run = runs.setdefault(options, Run(options, Silent()))
            for model in sorted(group.models, key=in_turn):
                folder, facts = known.get(model)
                if failed(facts):
                    continue
                missing = [
                    mode
                    for mode in MODES + (CONTROLS if controls and facts["target"] is not None else ())
                    if (facts["id"], mode) not in done
                    and not (model.anonymous_names and mode != WITHOUT)  # photos of its classes are called otherwise
                ]
                how = unharmed if facts["target"] is None else measured
                labelled = RepairOptions(str(data_root / model.data), shots)
                for record in how(folder, facts, known.bench(model), run, labelled, missing) if missing else ():
                    record["model"] = facts
                    record["pool"] = Path(pool).name
                    done.add((facts["id"], record["mode"]))
                    yield append(record)


def truth(adapter: Adapter, bench: Workbench, trigger: nn.Module | None, target: int | None) -> dict[str, float]:
    """ASR of the true trigger, where there is one, and accuracy, on test photos."""
    model = PromptedCLIP.from_adapter(adapter, bench.clip)
    found = {"accuracy": round(accuracy(model, bench.test, bench.features), 4)}
    if trigger is not None:
        found |= {"asr": round(attack_success_rate(model, bench.test, trigger, certain(target)), 4)}
    return found


def measured(
    folder: Path, facts: dict[str, Any], bench: Workbench, run: Run, options: RepairOptions, modes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One poisoned model. options: of a repair with labels."""
    target, trigger = facts["target"], read_trigger(folder).to(bench.clip.device)
    before = truth(read_adapter(folder), bench, trigger, target)
    for mode in modes:
        if mode in CONTROLS:
            _, examined = examine(str(folder), run.with_photos(certain(options.data), options.shots))
            adapter = control(mode, certain(examined), target, run)
            yield {"mode": mode, "before": before, "after": truth(adapter, bench, trigger, target)}
            continue
        started = time.perf_counter()
        made = repair(str(folder), run, options if mode == LABELLED else RepairOptions())
        seconds, report = time.perf_counter() - started, made.report
        scan = report.after and report.after.timing
        clean = None  # the prompt that the repair starts from, tuned on the photos alone
        if mode == LABELLED:
            _, examined = examine(str(folder), run.with_photos(certain(options.data), options.shots))
            if examined and examined.witnesses and examined.witnesses.learned:
                clean = truth(examined.witnesses.prompts[0], bench, trigger, target)
        yield {
            "mode": mode,
            "outcome": report.outcome,
            "distance": report.before.distance,
            "before": before,
            "after": truth(made.adapter, bench, trigger, target) if made.adapter else None,
            "clean": clean,
            "score_before": report.before.score,
            "score_after": report.after.score if report.after else None,
            "verdict_before": report.before.verdict,
            "verdict_after": report.after.verdict if report.after else None,
            "rounds": len(report.rounds),
            "seconds": round(seconds, 1),
            "scan_seconds": scan.seconds if scan and not scan.classes_from_cache else None,
        }


def unharmed(
    folder: Path, facts: dict[str, Any], bench: Workbench, run: Run, options: RepairOptions, modes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One clean model, tuned all the same. outcome: the product's."""
    before = truth(read_adapter(folder), bench, None, None)
    for mode in modes:
        photos = options if mode == LABELLED else RepairOptions()
        outcome = repair(str(folder), run, photos).report.outcome
        result, examined = examine(str(folder), run.with_photos(photos.data, photos.shots) if photos.data else run)
        if examined is None:
            continue
        worst = max(result.classes, key=lambda c: c.score).index
        adapter, _ = tuned(examined, triggers(examined, {worst}, run), [worst], Schedule())
        yield {"mode": mode, "outcome": outcome, "before": before, "after": truth(adapter, bench, None, None)}


def control(name: str, examined: Examined, target: int, run: Run) -> Adapter:
    """Tuned as a repair with labels is, against something else than the target's trigger."""
    size = examined.clip.image_size
    if name == "clean only":
        found = []
    elif name == "random noise":
        noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
        found = [Trigger(target, adder((noise * 2 - 1).sign() * ContrastInversion.epsilon))]
    else:
        found = triggers(examined, {(target + 1) % len(examined.adapter.class_names)}, run)
    return tuned(examined, found, [target], Schedule(), probed=bool(found))[0]
