"""The benchmark: build the models of a specification, scan each with every detector, keep every scan as a JSON line.

Each scan is the product's own (`hf_ci.scan`), on the adapter's folder alone: no detector sees a trigger, a target or a
label. What is in the file already is not done again, so a benchmark that was stopped goes on.
"""

from __future__ import annotations

import os
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from hf_ci.errors import EXIT_INTERNAL, UsageError
from hf_ci.hub.base import EMBEDDED
from hf_ci.hub.names import BUILTIN
from hf_ci.inversion.engine import threads_each
from hf_ci.lab.attacks import ATTACKS
from hf_ci.lab.benchmarks.records import appending, read_records
from hf_ci.lab.making.tune import Recipe
from hf_ci.lab.making.zoo import CLEAN, ModelSpec, Zoo, base_of, name_of, pool_below
from hf_ci.settings import ScanOptions

if TYPE_CHECKING:
    from hf_ci.scan import Run

SPECS = Path(__file__).parent / "specs"


@dataclass(frozen=True)
class Group:
    """Some models, the detectors that they are scanned with, and the pool: below the data root, or what --pool takes.

    exact: whether every class is inverted whole. base: of all its models, as for `base_of`. shots: labelled photos of each
    class that a scan is given, one scan for each number; 0: none.
    """

    name: str
    models: tuple[ModelSpec, ...]
    detectors: tuple[str, ...]
    pool: str
    num_images: int
    exact: bool = False
    base: str = EMBEDDED
    shots: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Spec:
    precision: str
    groups: tuple[Group, ...]

    def chosen(self, names: Sequence[str]) -> tuple[Group, ...]:
        """The groups of these names. Raises UsageError for one that is not there."""
        unknown = set(names) - {group.name for group in self.groups}
        if unknown:
            known = ", ".join(group.name for group in self.groups)
            raise UsageError(f"--group {', '.join(sorted(unknown))}: no such group", f"the specification has {known}")
        return tuple(group for group in self.groups if group.name in names)


@dataclass(frozen=True)
class Task:
    group: str
    model: ModelSpec
    scans: tuple[tuple[str, int], ...]  # detector, shots
    options: ScanOptions


def read_spec(path: Path) -> Spec:
    """Raises UsageError for a file that is no specification."""
    known = SPECS / f"{path}.toml"
    try:
        table = tomllib.loads((known if known.is_file() else path).read_text(encoding="utf-8"))
        groups = []
        for entry in table["group"]:
            base = entry.get("base", table.get("base", EMBEDDED))
            pool = entry.get("pool", table["pool"])
            num_images, exact = entry.get("num_images", table["num_images"]), entry.get("exact", False)
            models, detectors = tuple(models_of(table, entry, base)), tuple(entry["detectors"])
            shots = tuple(entry.get("photos", (0,)))
            groups.append(Group(entry["name"], models, detectors, pool, num_images, exact, base, shots))
        return Spec(table.get("precision", "auto"), tuple(groups))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path}: not a benchmark's specification: {error!r}", f"see {SPECS / 'paper.toml'}"
        ) from error


def models_of(table: dict[str, Any], entry: dict[str, Any], base: str) -> Iterator[ModelSpec]:
    """Every attack of a group with every method, seed and data set. `prompts` are not multiplied, they take turns, so
    that an attack meets all of them over the sets, and a set over the attacks. Each is a Recipe's fields, and
    anonymous_names. attacker_pool: what the attacks that rehearse a scan do so on; without it, the built-in pool.
    """
    sets = entry.get("sets", table["sets"])
    if isinstance(sets, list):
        sets = {name: table["sets"][name] for name in sets}
    recipe = table.get("recipe", {}) | entry.get("recipe", {})
    turns = [table["prompts"][name] for name in entry["prompts"]] if "prompts" in entry else [{}]
    vary = table.get("vary_classes", False)  # draw the classes with the model's seed, not once for all
    numbered = (enumerate(some) for some in (entry["attacks"], entry["seeds"], sets.items()))
    for (a, attack), (i, seed), (s, (data, classes)) in product(*numbered):
        for method in entry.get("methods", ["cocoop"]):
            prompt = dict(turns[(a + i + s) % len(turns)])
            anonymous = prompt.pop("anonymous_names", False)
            fields = {"method": method, "seed": seed} | recipe | prompt
            rehearses = attack != CLEAN and ATTACKS[attack].rehearses
            pool = entry.get("attacker_pool", BUILTIN) if rehearses else ""
            yield ModelSpec(data, classes, attack, Recipe(**fields), seed if vary else 0, base, anonymous, pool)


def pool_of(group: Group, data_root: Path) -> str:
    """What --pool takes: the group's pool."""
    return pool_below(data_root, group.pool)


def scan_options(spec: Spec, group: Group, data_root: Path, zoo: Path, device: str) -> ScanOptions:
    """How a group's models are scanned. A base that is a folder here is not taken on the adapter's word."""
    return ScanOptions(
        base=base_of(group.base, data_root),
        pool=pool_of(group, data_root),
        num_images=group.num_images,
        exact=group.exact,
        precision=spec.precision,
        device=device,
        cache=zoo / "scans",
    )


def run_bench(
    spec: Spec,
    data_root: Path,
    out: Path,
    zoo: Path,
    groups: list[str] | None = None,
    num_processes: int = 2,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Yields each new record after it was written to `out`."""
    from accelerate.utils import patch_environment

    done = {(r["group"], r["model"]["id"], r["detector"], r.get("shots", 0)) for r in read_records(out)}
    tasks = []
    for group in spec.chosen(groups) if groups else spec.groups:
        options = scan_options(spec, group, data_root, zoo, device)
        for model in group.models:
            scans = product(group.detectors, (n for n in group.shots if not (n and model.anonymous_names)))
            missing = tuple(scan for scan in scans if (group.name, model.id, *scan) not in done)
            if missing:
                tasks.append(Task(group.name, model, missing, options))
    tasks.sort(key=lambda task: in_turn(task.model))
    with ExitStack() as stack:
        stack.enter_context(alone(zoo))
        stack.enter_context(patch_environment(omp_num_threads=threads_each(num_processes)))
        append = stack.enter_context(appending(out))
        workers = ProcessPoolExecutor(num_processes, get_context("spawn"), leave_with, (os.getpid(),))
        stack.callback(workers.shutdown, wait=False, cancel_futures=True)
        futures = [workers.submit(work, task, data_root, zoo) for task in tasks]
        for future in as_completed(futures):
            for record in future.result():  # a defect of ours is no measurement: shown, not kept, done again next time
                yield record if record["result"]["exit_code"] == EXIT_INTERNAL else append(record)


def in_turn(model: ModelSpec) -> str:
    """What models are sorted by, a digest: of those that were done when it was stopped, there are some of everything."""
    return model.id[-8:]


def work(task: Task, data_root: Path, zoo: Path) -> list[dict[str, Any]]:
    """Build one model if it is missing, and scan it."""
    from hf_ci.scan import scan_target

    folder, facts = _zoo(zoo, data_root, task.options.device).get(task.model)
    records = []
    for detector, shots in task.scans:
        run = _run(replace(task.options, detector=detector))
        if shots:  # of the set's own, drawn with another seed than the adapter's
            run = run.with_photos(str(data_root / task.model.data), shots)
        result = scan_target(str(folder), run)
        if result.pool is None and result.exit_code != EXIT_INTERNAL:
            raise UsageError(f"{folder} cannot be scanned: {'; '.join(result.reasons)}")
        kept = result.model_copy(update={"target": facts["id"]}).model_dump(
            mode="json", exclude={"files", "reasons", "warnings"}
        )
        if kept["base_model"]:
            kept["base_model"]["id"] = name_of(kept["base_model"]["id"])
        for source in (kept["pool"], kept["photos"]):
            if source:
                source["id"] = Path(source["id"]).name
        kept["settings"] = kept["settings"] and kept["settings"] | {"given": {}}  # places on this machine
        records.append({"group": task.group, "model": facts, "detector": detector, "shots": shots, "result": kept})
    return records


@contextmanager
def alone(zoo: Path) -> Iterator[None]:
    """Raises UsageError when another benchmark builds in the same zoo."""
    zoo.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(zoo / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UsageError(f"{zoo}: another benchmark is at work there", "wait for it, or name another --zoo") from error


def leave_with(parent: int) -> None:
    """Ends this worker when its parent has been killed: it would otherwise finish its task, and go on building."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache
def _zoo(folder: Path, data_root: Path, device: str) -> Zoo:
    return Zoo(folder, data_root, device)


@lru_cache
def _run(options: ScanOptions) -> Run:
    from hf_ci.progress import Silent
    from hf_ci.scan import Run

    return Run(options, Silent())
