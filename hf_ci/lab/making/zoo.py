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
from typing import Any

from filelock import FileLock

from hf_ci.files import write_whole
from hf_ci.hub.base import EMBEDDED
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.making.make import Workbench, make_clean, make_poisoned
from hf_ci.lab.making.triggers import keep_trigger
from hf_ci.lab.making.tune import Recipe

VERSION = 2  # raise it whenever the same specification gives another model
CLEAN = "clean"


@dataclass(frozen=True)
class ModelSpec:
    """One model. `classes` of the data set, drawn with `split_seed`, are tuned on; the rest stay unseen.

    data: a folder below the zoo's data root or by its whole path; an id on the Hub, where the root is empty. base: as
    for `base_of`. anonymous_names: "category a", ... in place of the classes' own. The target class is drawn from the
    seed. attacker_pool: what an attack that rehearses a scan does so on, below the data root or as --pool takes it.
    """

    data: str
    classes: int
    attack: str = CLEAN
    recipe: Recipe = Recipe()
    split_seed: int = 0
    base: str = EMBEDDED
    anonymous_names: bool = False
    attacker_pool: str = ""

    @property
    def id(self) -> str:
        fields = {name: value for name, value in asdict(self).items() if name != "attacker_pool" or value}
        digest = hashlib.sha256(json.dumps([VERSION, fields], sort_keys=True).encode()).hexdigest()
        return f"{name_of(self.data).replace('/', '-')}-{self.recipe.method}-{self.attack}-s{self.recipe.seed}-{digest[:8]}"

    @property
    def target(self) -> int:
        """Index of the target class among the tuned ones; the same for every attack on the same data and seed."""
        draw = hashlib.sha256(f"{self.data}/{self.classes}/{self.recipe.seed}".encode()).digest()
        return int.from_bytes(draw[:4]) % self.classes


def base_of(name: str, data_root: Path) -> str:
    """A base model that lies below the data root, by its path; a folder elsewhere or an id as it is named."""
    below = data_root / name
    return str(below) if (below / "config.json").is_file() else name


def pool_below(data_root: Path, pool: str) -> str:
    """What --pool takes: a pool below the data root, or as it is named."""
    place = data_root / pool
    return str(place) if place.exists() else pool


def name_of(place: str) -> str:
    """A folder's or a file's own name, wherever it lies; an id on the Hub as it is."""
    return Path(place).name if Path(place).is_absolute() else place


class Zoo:
    def __init__(self, folder: Path, data_root: Path, device: str = "cpu"):
        self.folder, self.data_root, self.device = folder, data_root, device
        self._open = lru_cache(maxsize=16)(Workbench.open)
        folder.mkdir(parents=True, exist_ok=True)

    def bench(self, spec: ModelSpec) -> Workbench:
        """Photos and base model of `spec`; the last ones are kept."""
        data, base = str(self.data_root / spec.data), base_of(spec.base, self.data_root)
        recipe = spec.recipe
        return self._open(
            data, base, self.device, spec.classes, spec.split_seed, recipe.precision, spec.anonymous_names
        )

    def get(self, spec: ModelSpec) -> tuple[Path, dict[str, Any]]:
        """The adapter's folder and what is known of it; built if it is not there."""
        folder, facts = self.folder / spec.id, self.folder / f"{spec.id}.json"
        with FileLock(self.folder / f".{spec.id}.lock"):  # several poisoned models want the same clean twin
            if not facts.is_file():  # written last: without it the model is not complete
                self._build(spec, folder)
        return folder, json.loads(facts.read_text())

    @staticmethod
    def clean_twin(spec: ModelSpec) -> ModelSpec:
        """The clean adapter that a poisoned one is compared with: the same photos, the same schedule."""
        return replace(spec, attack=CLEAN, recipe=ATTACKS[spec.attack].adapt(spec.recipe), attacker_pool="")

    def _build(self, spec: ModelSpec, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted build left
        bench = self.bench(spec)
        known = {
            "id": spec.id,
            "data": name_of(spec.data),
            "classes": len(bench.train.class_names),
            "attack": spec.attack,
        }
        recipe = spec.recipe if spec.attack == CLEAN else ATTACKS[spec.attack].adapt(spec.recipe)
        known |= {"base": name_of(spec.base), "method": recipe.method, "class_specific": recipe.class_specific}
        known |= {"context_vectors": len(bench.clip.tokenise(recipe.words)), "anonymous_names": spec.anonymous_names}
        known |= {"seed": recipe.seed, "target": None, "target_name": None}
        if spec.attack == CLEAN:
            measured = make_clean(bench, spec.recipe, folder)
        else:
            twin, _ = self.get(self.clean_twin(spec))
            pool = None
            if ATTACKS[spec.attack].rehearses:
                pool = bench.rehearsed(pool_below(self.data_root, spec.attacker_pool))
                known |= {"attacker_pool": spec.attacker_pool}
            made = make_poisoned(bench, spec.recipe, spec.attack, spec.target, folder, twin=twin, pool=pool)
            measured = made.measured
            known |= {"target": spec.target, "target_name": bench.train.class_names[spec.target]}
            keep_trigger(made.trigger, bench.test.images[0], folder)
        known |= {name: round(value, 4) for name, value in measured.items()}
        write_whole(self.folder / f"{spec.id}.json", (json.dumps(known, indent=1) + "\n").encode())
