"""Scans that were made before: an unchanged adapter is answered at once, without loading torch.

A result is kept under everything that it depends on: the adapter's files, the base model, the pool, the settings (with
what "auto" is decided by), our own code and that of the libraries that compute. Whatever cannot be compared cheaply (a
pool on the Hub) is scanned.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hf_ci.certain import certain
from hf_ci.errors import EXIT_INTERNAL, HfCiError, UsageError
from hf_ci.files import PROMPT, WEIGHTS, write_whole
from hf_ci.hub import BaseModel, Fetched, fetch_base, fetch_target, fetch_text, named_base, parse_target
from hf_ci.hub.names import BUILTIN, DATA_SET, is_folder, pool_files
from hf_ci.kind import check_kind, read_json
from hf_ci.progress import Silent
from hf_ci.report import Report, ScannedFile, ScanResult, Timing, failed, without_pictures
from hf_ci.settings import ScanOptions

NUMERIC_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "pillow", "numpy")
READ = ("classes", "calibration")  # files that are named: what they hold counts, not where they lie
IRRELEVANT = ("num_processes", "timeout", "cache", "save_trigger")  # to the numbers of a report


def scan_each(
    targets: Sequence[str], options: ScanOptions = ScanOptions(), progress: Silent = Silent(), jobs: int = 1
) -> Iterator[ScanResult]:
    """Each target's result as soon as there is one, recalled or scanned; `jobs` adapters are downloaded at a time.

    Raises UsageError, before any work is done, for a target that can be neither folder nor repo, or either.
    """
    run, setting, base_of = None, setting_of(options), cache(fetch_base)
    with ThreadPoolExecutor(jobs) as workers:
        # a folder may change while others are scanned, so it is read when its turn comes
        ahead = [
            workers.submit(fetch).result if remote else cache(fetch)
            for fetch, remote in [fetching(text) for text in targets]
        ]
        try:
            for text, fetch in zip(targets, ahead):
                started = time.perf_counter()
                progress.step(f"{text}: fetching")
                place = place_of(fetch, base_of, options, setting)
                result = place and recall(place, text, fetch(), options, started)
                result = result or refused(text, fetch, options, started)
                if result is None:
                    from hf_ci.scan import Run, scan_target

                    run = run or Run(options, progress, base_of)
                    result = scan_target(text, run, lambda _: fetch())
                    if place and run.is_main_process:
                        remember(place, result)
                progress.done()
                yield result
        finally:
            workers.shutdown(cancel_futures=True)


def fetching(text: str) -> tuple[Callable[[], Fetched], bool]:
    """What fetches a target, and whether that takes a download."""
    try:
        target = parse_target(text)
    except UsageError:
        raise
    except HfCiError:  # its scan meets it again and says what is wrong
        return partial(fetch_text, text), False
    return partial(fetch_target, target), target.kind == "hub"


def recall(place: Path, text: str, fetched: Fetched, options: ScanOptions, started: float) -> ScanResult | None:
    """What was found then, as of that day; None where nothing is kept, or where a picture is asked for as well."""
    try:
        kept = ScanResult.model_validate_json(place.read_bytes())
    except (OSError, ValidationError):
        return None
    if options.save_trigger and kept.target_class:
        return None
    timing = certain(kept.timing).model_copy(
        update={
            "seconds": round(time.perf_counter() - started, 2),
            "num_processes": options.num_processes,
            "classes_from_cache": kept.num_classes,
        }
    )
    here = {"target": text, "revision": fetched.revision, "hub_security": fetched.security, "timing": timing}
    return kept.model_copy(update=here)


def refused(text: str, fetch: Callable[[], Fetched], options: ScanOptions, started: float) -> ScanResult | None:
    """The result of a target that cannot be had, or whose small files rule it out, as its scan would give it: torch need
    not be loaded for that. None where there is something to scan."""
    if "LOCAL_RANK" in os.environ:  # the processes of a launcher have to work in step
        return None
    found: dict[str, Any] = {}
    try:
        fetched = fetch()
        files = tuple(ScannedFile(path=path, sha256=digest) for path, digest in fetched.files)
        found = {"revision": fetched.revision, "files": files, "hub_security": fetched.security}
        if fetched.checkpoint is None:
            check_kind(fetched.folder)
            if (fetched.folder / WEIGHTS).is_file() and (fetched.folder / PROMPT).is_file():
                read_json(fetched.folder / PROMPT)
        return None
    except UsageError:
        raise
    except HfCiError as error:
        return failed(text, error, timing=Timing.since(started, options.num_processes), **found)
    except Exception:  # a defect: the scan meets it again and says what is wrong
        return None


def remember(place: Path, result: ScanResult) -> None:
    """Verdicts are kept, failures are not: they may pass. Without room for it, the scan is made again next time."""
    if result.cost is not None and result.exit_code != EXIT_INTERNAL:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            (kept,) = without_pictures(Report(results=(result,))).results
            write_whole(place, kept.model_copy(update={"trigger": None}).model_dump_json().encode())


def setting_of(options: ScanOptions) -> list[Any] | None:
    """What the results of a whole run depend on beside adapter and base model; None where that is not known cheaply."""
    if options.cache is None or "LOCAL_RANK" in os.environ:  # the processes of a launcher have to work in step
        return None
    try:
        files = {name: path.read_bytes().hex() for name in READ if (path := getattr(options, name))}
        pool, photos = stamp(options.pool), stamp(options.data) if options.data else []
    except (OSError, HfCiError):  # the scan meets it again and says what is wrong
        return None
    settings = {name: value for name, value in asdict(options).items() if name not in IRRELEVANT}
    here = machine() if "auto" in (options.device, options.precision) else []
    return None if pool is None or photos is None else [pool, photos, settings | files, code(), here]


def place_of(
    fetch: Callable[[], Fetched],
    base_of: Callable[[str, str | None], BaseModel],
    options: ScanOptions,
    setting: list[Any] | None,
) -> Path | None:
    """Where this scan's result is kept; None where that cannot be known without scanning."""
    if setting is None:
        return None
    try:
        adapter = fetch()
        if adapter.checkpoint:  # its base model is not known before it is read
            return None
        config = check_kind(adapter.folder)  # no base model is fetched for another kind
        named = named_base(config.get("base_model_name_or_path") or "", config.get("revision"), options.base)
        base = base_of(*named)
        parts = [adapter.files, adapter.others, base.id, base.digest, *setting]
    except Exception:  # whatever it is, the scan meets it again and says what is wrong
        return None
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return certain(options.cache) / "results" / f"{digest[:32]}.json"


def stamp(pool: str) -> list[Any] | None:
    """Changes whenever a local pool's files do; None for a pool on the Hub."""
    if pool == BUILTIN:
        return []
    files = [str(p) for p in Path(pool).rglob("*")] if is_folder(pool, DATA_SET) else pool_files(pool)
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in sorted(files)] or None


ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri/render*", "/dev/dxg", "/dev/accel*")


@cache
def machine() -> list[str]:
    """What "auto" is decided by, as far as it can be told without torch: the processor's instructions; and where there is
    an accelerator, whose kind cannot be told, this very machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    accelerators = [path for pattern in ACCELERATORS for path in glob.glob(pattern)]
    hidden = sorted(f"{name}={value}" for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES"))
    one = [platform.node(), *sorted(accelerators), *hidden] if accelerators else []
    return [platform.system(), platform.machine(), processor, *one]


@cache
def code() -> list[str]:
    """Our own code and data, and the releases of the libraries that compute."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.rglob("*.py"), here / "assets" / "calibration.json"]):
        digest.update(path.read_bytes())
    return [digest.hexdigest(), *(f"{name} {version(name)}" for name in NUMERIC_LIBRARIES)]
