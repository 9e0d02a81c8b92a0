"""Repair measured where the true trigger is known: ASR and accuracy on test photos, before and after, with controls.

The repair itself is the product's own (`hf_ci.repair`), on the adapter's folder alone, with the pool or with a few
labelled photos that are not among the test photos. The controls tune in the same way, with labels, but against something
else than the reconstructed trigger: nothing at all, random noise of the same size, the trigger of another class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hf_ci.detect.contrast import ContrastInversion
from hf_ci.lab.bench import Spec, appending, pool_of, read_records, scan_options
from hf_ci.lab.make import Workbench, accuracy, attack_success_rate
from hf_ci.lab.triggers import read_trigger
from hf_ci.lab.zoo import Zoo
from hf_ci.pools.photos import Photos
from hf_ci.progress import Silent
from hf_ci.prompts import Adapter, PromptedCLIP, read_adapter
from hf_ci.repair.engine import RepairOptions, adder, repair, triggers, tuned
from hf_ci.repair.unlearn import Schedule
from hf_ci.scan import Run, examine

SHOTS_SEED = 7919  # added to a model's seed: the repairer's photos are not those that the adapter was tuned on
CONTROLS = ("clean only", "random noise", "another class")


def run_repairs(
    spec: Spec, data_root: Path, out: Path, zoo: Path, groups: list[str], shots: int = 16, device: str = "cpu"
) -> Iterator[dict]:
    """Yields each new record after it was written to `out`; what is in the file already is not done again."""
    known = Zoo(zoo, data_root, device)
    done = {(record["model"]["id"], record["mode"]) for record in read_records(out)}
    runs: dict[str, Run] = {}
    with appending(out) as append:
        for group in spec.chosen(groups):
            pool = pool_of(group, data_root)
            run = runs.setdefault(pool, Run(scan_options(spec, group, data_root, zoo, device), Silent()))
            for model in group.models:
                if model.target is None or model.attack == "clean":
                    continue
                folder, facts = known.get(model)
                bench = known.bench(model)
                for record in measured(folder, facts, bench, run, shots, done):
                    record["model"] = facts
                    record["pool"] = Path(pool).name
                    yield append(record)


def measured(folder: Path, facts: dict, bench: Workbench, run: Run, shots: int, done: set) -> Iterator[dict]:
    """One model, every mode that is not done yet."""
    trigger, target = read_trigger(folder), facts["target"]
    photos = bench.train.few_shot(shots, facts["seed"] + SHOTS_SEED)
    trigger = trigger.to(bench.clip.device)

    def truth(adapter: Adapter) -> dict[str, float]:
        model = PromptedCLIP.from_adapter(adapter, bench.clip)
        return dict(
            asr=round(attack_success_rate(model, bench.test, trigger, target), 4),
            accuracy=round(accuracy(model, bench.test, bench.features), 4),
        )

    before = truth(read_adapter(folder))
    for mode, labelled in (("without labels", None), ("with labels", photos)):
        if (facts["id"], mode) in done:
            continue
        made = repair(str(folder), run, RepairOptions(), photos=labelled)
        report = made.report
        yield dict(
            mode=mode,
            outcome=report.outcome,
            before=before,
            after=truth(made.adapter) if made.adapter else None,
            score_before=report.before.score,
            score_after=report.after.score if report.after else None,
            verdict_after=report.after.verdict if report.after else None,
            rounds=len(report.rounds),
        )
    missing = [name for name in CONTROLS if (facts["id"], name) not in done]
    if not missing:
        return
    _, examined = examine(str(folder), run)
    if examined is None:
        return
    for name in missing:
        yield dict(mode=name, before=before, after=truth(control(name, examined, photos, target, run)))


def control(name: str, examined, photos: Photos, target: int, run: Run) -> Adapter:
    """Tuned as a repair with labels is, against something else than the target's trigger."""
    size = examined.clip.image_size
    if name == "clean only":
        found = [adder(torch.zeros(3, size, size))]
    elif name == "random noise":
        noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
        found = [adder((noise * 2 - 1).sign() * ContrastInversion.epsilon)]
    else:
        found = triggers(examined, {(target + 1) % len(examined.adapter.class_names)}, run)
    return tuned(examined, photos.images, photos, found, [target], Schedule())[0]
