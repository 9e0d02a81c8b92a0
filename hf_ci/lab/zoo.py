"""The zoo: adapters made to a specification, each built once and kept.

<zoo>/<id>/                     the adapter, exactly what its provider would deliver
<zoo>/<id>.json                 what it is and what was measured on test photos
<zoo>/<id>.trigger.safetensors  the planted trigger
<zoo>/<id>.trigger.png          a test photo without and with it
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from hf_ci.files import write_whole
from hf_ci.hub.base import EMBEDDED
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.make import Workbench, make_clean, make_poisoned
from hf_ci.lab.triggers import keep_trigger
from hf_ci.lab.tune import Recipe

VERSION = 2  # raise it whenever the same specification gives another model
CLEAN = "clean"


@dataclass(frozen=True)
class ModelSpec:
    """One model. `classes` of the data set, drawn with `split_seed`, are tuned on; the rest stay unseen.

    data: a folder below the zoo's data root or by its whole path; an id on the Hub, where the root is empty. The target
    class is drawn from the seed.
    """

    data: str
    classes: int
    attack: str = CLEAN
    recipe: Recipe = Recipe()
    split_seed: int = 0
    base: str = EMBEDDED

    @property
    def id(self) -> str:
        digest = hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()
        return f"{name_of(self.data).replace('/', '-')}-{self.recipe.method}-{self.attack}-s{self.recipe.seed}-{digest[:8]}"

    @property
    def target(self) -> int:
        """Index of the target class among the tuned ones; the same for every attack on the same data and seed."""
        draw = hashlib.sha256(f"{self.data}/{self.classes}/{self.recipe.seed}".encode()).digest()
        return int.from_bytes(draw[:4]) % self.classes


def name_of(place: str) -> str:
    """A folder's or a file's own name, wherever it lies; an id on the Hub as it is."""
    return Path(place).name if Path(place).is_absolute() else place


class Zoo:
    def __init__(self, folder: Path, data_root: Path, device: str = "cpu"):
        self.folder, self.data_root, self.device = folder, data_root, device
        self._open = lru_cache(maxsize=3)(Workbench.open)
        folder.mkdir(parents=True, exist_ok=True)

    def bench(self, spec: ModelSpec) -> Workbench:
        """Photos and base model of `spec`; the last three are kept."""
        data = str(self.data_root / spec.data)
        return self._open(data, spec.base, self.device, spec.classes, spec.split_seed, spec.recipe.precision)

    def get(self, spec: ModelSpec) -> tuple[Path, dict]:
        """The adapter's folder and what is known of it; built if it is not there."""
        folder, facts = self.folder / spec.id, self.folder / f"{spec.id}.json"
        with FileLock(self.folder / f".{spec.id}.lock"):  # several poisoned models want the same clean twin
            if not facts.is_file():  # written last: without it the model is not complete
                self._build(spec, folder)
        return folder, json.loads(facts.read_text())

    @staticmethod
    def clean_twin(spec: ModelSpec) -> ModelSpec:
        """The clean adapter that a poisoned one is compared with: the same photos, the same schedule."""
        return replace(spec, attack=CLEAN, recipe=ATTACKS[spec.attack].adapt(spec.recipe))

    def _build(self, spec: ModelSpec, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted build left
        bench = self.bench(spec)
        known = dict(id=spec.id, data=name_of(spec.data), classes=len(bench.train.class_names), attack=spec.attack)
        known |= dict(method=spec.recipe.method, seed=spec.recipe.seed, target=None, target_name=None)
        if spec.attack == CLEAN:
            measured = make_clean(bench, spec.recipe, folder)
        else:
            twin, _ = self.get(self.clean_twin(spec))
            made = make_poisoned(bench, spec.recipe, spec.attack, spec.target, folder, twin=twin)
            measured = made.measured
            known |= dict(target=spec.target, target_name=bench.train.class_names[spec.target])
            keep_trigger(made.trigger, bench.test.images[0], folder)
        known |= {name: round(value, 4) for name, value in measured.items()}
        write_whole(self.folder / f"{spec.id}.json", (json.dumps(known, indent=1) + "\n").encode())
