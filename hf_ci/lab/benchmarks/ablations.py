"""The paper's ablations of the inversion, on poisoned models: how well is the target's trigger found, setting by setting?

Only the target's class is inverted, on the poisoned adapter and on its clean twin, so a model costs one class a setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_ci.hub import fetch_base
from hf_ci.inversion import LinfInversion
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.invert import Inverter
from hf_ci.inversion.job import prepared
from hf_ci.lab.benchmarks.bench import Spec, pool_of
from hf_ci.lab.benchmarks.records import appending, read_records
from hf_ci.lab.making.zoo import Zoo
from hf_ci.pools import load_pool
from hf_ci.pools.photos import load_photos
from hf_ci.prompts import load_clip, read_adapter
from hf_ci.prompts.clip import load_processor
from hf_ci.settings import pick_device, pick_precision

OOD, OWN, BUILTIN = "OOD photos", "the adapter's own photos", "built-in"
MOST = 1000
# name -> (inversion, images, pool); the first is the paper's own setting
SETTINGS: dict[str, tuple[Inverter, int, str]] = {
    "margin, 1000 images, batch 32": (LinfInversion(), MOST, OOD),
    "cross-entropy": (LinfInversion(objective="cross-entropy"), MOST, OOD),
    "target logit": (LinfInversion(objective="target-logit"), MOST, OOD),
    "100 images": (LinfInversion(), 100, OOD),
    "256 images": (LinfInversion(), 256, OOD),
    "500 images": (LinfInversion(), 500, OOD),
    "batch 1": (LinfInversion(batch=1), MOST, OOD),
    "batch 64": (LinfInversion(batch=64), MOST, OOD),
    "in-distribution pool": (LinfInversion(), MOST, OWN),
    "built-in pool": (LinfInversion(), MOST, BUILTIN),
    "contrast, 256 images": (ContrastInversion(), 256, OOD),
    "contrast, 1000 images": (ContrastInversion(), MOST, OOD),
}


def run_ablations(
    spec: Spec, data_root: Path, out: Path, zoo: Path, group: str, attack: str, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yields each new record after it was written to `out`; what is in the file already is not done again."""
    known = Zoo(zoo, data_root, device)
    done = {(record["model"]["id"], record["setting"]) for record in read_records(out)}
    (chosen,) = spec.chosen([group])
    where = pick_device(device)
    precision = pick_precision(spec.precision, where)
    with appending(out) as append:
        for model in (m for m in chosen.models if m.attack == attack):
            missing = {name: how for name, how in SETTINGS.items() if (model.id, name) not in done}
            if not missing:  # nothing to build
                continue
            folder, facts = known.get(model)
            twin, _ = known.get(known.clean_twin(model))
            base = fetch_base(model.base)
            clip, processor = load_clip(base.folder, where, precision), load_processor(base.folder)

            @cache
            def pool_named(pool: str) -> Tensor:
                if pool == OWN:
                    return load_photos(str(data_root / model.data), "train", processor).some(MOST, 0).images
                return load_pool(pool_of(chosen, data_root) if pool == OOD else "builtin", MOST, 0, processor).images

            for name, (inverter, images, pool) in missing.items():
                drawn = pool_named(pool)[:images].to(where)
                found = {}
                for which, place in (("poisoned", folder), ("clean", twin)):
                    with prepared(read_adapter(place), clip, inverter.uses_reference) as prompted:
                        made = inverter(prompted, drawn, facts["target"], 32)
                    found[which] = {"asr": made.asr, "loss": round(made.loss, 4), "exclusive_asr": made.exclusive_asr}
                yield append(dict(setting=name, model=facts, precision=precision, **found))
