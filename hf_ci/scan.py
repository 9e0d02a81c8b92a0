"""The walk: target -> adapter -> prompted CLIP -> inversions -> verdict -> report."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hf_ci.detect import ClipInspector, Detector, Verdict
from hf_ci.errors import AdapterError, HfCiError, UsageError
from hf_ci.hub import BaseModel, Fetched, fetch_base, fetch_target, parse_target
from hf_ci.inversion import Inversion, InversionSettings, check_cache, invert_classes, launch
from hf_ci.inversion.engine import read_cached
from hf_ci.pools import Pool, load_pool
from hf_ci.progress import Silent
from hf_ci.prompts import Adapter, PromptedCLIP, load_clip, read_adapter
from hf_ci.prompts.clip import load_processor
from hf_ci.report import (
    BaseModelRef, ClassScore, DetectorRef, NamedClass, PoolRef, Report, ScannedFile, ScanResult, Settings, Timing,
    Trigger,
)

INVERSION_VERSION = 1  # part of the cache key: raise it whenever the same settings give other numbers
EXIT_CODES = {"clean": 0, "backdoored": 1, "inconclusive": 4}


@dataclass(frozen=True)
class ScanOptions:
    """What a scan may be asked for; the command line's flags, by the same names."""

    base: str | None = None
    pool: str = "builtin"
    num_images: int = 1000
    seed: int = 0
    k: float = 2.0
    min_asr: float = 0.5
    device: str = "auto"
    precision: str = "fp32"
    num_processes: int = 1
    classes: Path | None = None
    cache: Path | None = None
    save_trigger: Path | None = None

    def __post_init__(self):
        checks = [
            (self.num_images >= 1, f"--num-images {self.num_images}: expected at least 1"),
            (0 <= self.min_asr <= 1, f"--min-asr {self.min_asr}: expected a share between 0 and 1"),
            (self.num_processes >= 1, f"--num-processes {self.num_processes}: expected at least 1"),
            (self.precision in ("fp32", "bf16"), f"--precision {self.precision}: expected fp32 or bf16"),
        ]
        for fine, message in checks:
            if not fine:
                raise UsageError(message)


def scan(targets: Sequence[str], options: ScanOptions = ScanOptions(), progress=Silent()) -> Report:
    """Scan every target; what cannot be scanned is a result, too, never a clean one.

    Raises UsageError when the options themselves cannot be met (device, cache, class file).
    """
    device = pick_device(options.device)
    names = read_class_names(options.classes) if options.classes else None
    if options.cache:
        check_cache(options.cache)
    if options.save_trigger:
        check_cache(options.save_trigger)
    return Report(results=tuple(scan_target(text, options, device, names, progress) for text in targets))


def scan_target(text: str, options: ScanOptions, device: torch.device, names: tuple[str, ...] | None, progress) -> ScanResult:
    started, found, warnings = time.perf_counter(), {}, []
    try:
        progress.step(f"{text}: fetching the adapter")
        fetched = fetch_target(parse_target(text))
        found |= dict(revision=fetched.revision, files=tuple(ScannedFile(path=p, sha256=s) for p, s in fetched.files))
        adapter = read_adapter(fetched.folder, names)
        found |= dict(method=adapter.method, num_classes=len(adapter.class_names))
        check_finite(adapter)

        progress.step(f"{text}: loading the base model")
        base = fetch_base(*base_of(adapter, options.base))
        found |= dict(base_model=BaseModelRef(id=base.id, revision=base.revision))
        warnings += base_warnings(adapter, base)
        model = PromptedCLIP.from_adapter(adapter, load_clip(base.folder, device, options.precision))

        progress.step(f"{text}: drawing {options.num_images} images from pool {options.pool}")
        pool = load_pool(options.pool, options.num_images, options.seed, load_processor(base.folder))
        found |= dict(pool=PoolRef(id=pool.id, num_images=len(pool), fingerprint=pool.fingerprint,
                                   skipped=pool.skipped, duplicates=pool.duplicates))
        warnings += pool_warnings(pool, options.num_images)

        settings = InversionSettings(seed=options.seed)
        detector = ClipInspector(k=options.k, min_asr=options.min_asr)
        found |= dict(detector=DetectorRef(name=detector.name, calibration=detector.calibration),
                      settings=settings_of(options, settings, device))
        inversions, cached = run_inversions(text, fetched, base, adapter, model, pool, settings, options, progress)
        verdict = judge(detector, inversions, adapter.class_names)
        found |= findings(verdict, inversions, adapter.class_names)
        if options.save_trigger and verdict.target is not None:
            found |= dict(trigger=save_trigger(options.save_trigger, text, inversions[verdict.target], adapter.class_names))
        exit_code = EXIT_CODES[verdict.verdict]
    except HfCiError as error:
        if isinstance(error, UsageError):
            raise
        found |= dict(verdict="inconclusive", reasons=(str(error),))
        exit_code, cached = error.exit_code, 0
    finally:
        progress.done()
    timing = Timing(seconds=round(time.perf_counter() - started, 2), num_processes=options.num_processes,
                    classes_from_cache=cached)
    return ScanResult(target=text, warnings=tuple(warnings), timing=timing, exit_code=exit_code, **found)


# ---------------------------------------------------------------- steps


def run_inversions(text: str, fetched: Fetched, base: BaseModel, adapter: Adapter, model: PromptedCLIP, pool: Pool,
                   settings: InversionSettings, options: ScanOptions, progress) -> tuple[list[Inversion], int]:
    """All classes' inversions, and how many of them were in the cache before."""
    classes = range(len(adapter.class_names))
    device = model.clip.device
    with ExitStack() as stack:
        if options.cache:
            cache = options.cache / cache_key(fetched, base, adapter, pool, settings, options.precision, device)
        elif options.num_processes > 1:  # the processes hand their classes over through files
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hf-ci-")))
        else:
            cache = None
        known = [inversion for c in classes if (inversion := read_cached(cache, c))]
        progress.inversions(text, adapter.class_names)
        for inversion in known:
            progress.inverted(inversion)
        if options.num_processes > 1 and len(known) < len(classes):
            seen = {inversion.c for inversion in known}

            def poll() -> None:
                for c in set(classes) - seen:
                    if inversion := read_cached(cache, c):
                        seen.add(c)
                        progress.inverted(inversion)

            args = (adapter, str(base.folder), pool.images, settings, device.type, options.precision, str(cache))
            launch(inversion_worker, args, min(options.num_processes, len(classes)), device.type == "cpu", poll)
            progress = Silent()  # everything has been shown: what follows reads the files back
        fresh = {inversion.c for inversion in known}
        show = lambda inversion: None if inversion.c in fresh else progress.inverted(inversion)  # noqa: E731
        with model.frozen_prompt():
            inversions = invert_classes(model, pool.images.to(device), classes, settings, cache, show)
        return inversions, len(known)


def inversion_worker(adapter: Adapter, base_folder: str, images: torch.Tensor, settings: InversionSettings,
                     device_type: str, precision: str, cache: str) -> None:
    """One of several processes: inverts its share of the classes and leaves them in `cache`."""
    from accelerate import PartialState

    state = PartialState(cpu=device_type == "cpu")
    model = PromptedCLIP.from_adapter(adapter, load_clip(Path(base_folder), state.device, precision))
    with model.frozen_prompt():
        invert_classes(model, images.to(state.device), range(len(adapter.class_names)), settings, Path(cache))
    state.destroy_process_group()


def judge(detector: Detector, inversions: Sequence[Inversion], class_names: Sequence[str]) -> Verdict:
    return detector.judge(inversions, class_names)


def findings(verdict: Verdict, inversions: Sequence[Inversion], class_names: Sequence[str]) -> dict:
    classes = tuple(
        ClassScore(index=i.c, name=class_names[i.c], loss=round(i.loss, 6), asr=round(i.asr, 6), score=round(score, 6),
                   flagged=flag)
        for i, score, flag in zip(inversions, verdict.scores, verdict.flagged)
    )
    target = None if verdict.target is None else NamedClass(index=verdict.target, name=class_names[verdict.target])
    return dict(verdict=verdict.verdict, reasons=verdict.reasons, classes=classes, target_class=target,
                score=None if verdict.score is None else round(verdict.score, 6))


def save_trigger(folder: Path, text: str, inversion: Inversion, class_names: Sequence[str]) -> Trigger:
    """`delta` as npz, and as a picture: grey is no change, the brightest and darkest values are the ball's radius."""
    import numpy as np
    from PIL import Image

    slug = "".join(ch if ch.isalnum() else "-" for ch in f"{text}-{class_names[inversion.c]}").strip("-")[-80:]
    delta = inversion.delta.numpy()
    linf = float(np.abs(delta).max())
    np.savez(folder / f"{slug}.npz", delta=delta, class_index=inversion.c, asr=inversion.asr, loss=inversion.loss)
    picture = ((delta / max(linf, 1e-8) + 1) * 127.5).round().astype("uint8").transpose(1, 2, 0)
    path = folder / f"{slug}.png"
    Image.fromarray(picture).resize([256, 256], Image.Resampling.NEAREST).save(path)
    return Trigger(path=str(path), linf=linf)


# ---------------------------------------------------------------- what the walk stands on


def pick_device(name: str) -> torch.device:
    if name == "auto":  # Accelerate's choice: this process's own GPU where there are several
        from accelerate import PartialState

        return PartialState().device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}", "use cpu, cuda, cuda:N, mps or auto") from error
    return device


def read_class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path}: {error}", "give a text file with one class name a line") from error
    if not names:
        raise UsageError(f"--classes {path}: the file is empty", "give one class name a line")
    return names


def check_finite(adapter: Adapter) -> None:
    bad = [name for name, tensor in adapter.tensors().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(f"{', '.join(bad)}: holds values that are not finite", "the weights are damaged or unusable")


def base_of(adapter: Adapter, override: str | None) -> tuple[str, str | None]:
    if override is None:
        return adapter.base_model, adapter.base_revision
    id, _, revision = (override, "", "") if Path(override).exists() else override.partition("@")
    return id, revision or None


def base_warnings(adapter: Adapter, base: BaseModel) -> list[str]:
    if adapter.base_model and base.id != adapter.base_model:
        return [f"scanned on base model {base.id}, the adapter names {adapter.base_model}"]
    if adapter.base_revision and base.revision != adapter.base_revision:
        return [f"scanned on {base.id} at {base.revision[:12]}, the adapter names revision {adapter.base_revision[:12]}"]
    return []


def pool_warnings(pool: Pool, asked: int) -> list[str]:
    small = [f"the pool gave {len(pool)} images, {asked} were asked for"] if len(pool) < asked else []
    return small + ([f"{pool.skipped} images of the pool could not be read"] if pool.skipped else [])


def settings_of(options: ScanOptions, settings: InversionSettings, device: torch.device) -> Settings:
    return Settings(num_images=options.num_images, seed=options.seed, k=options.k, min_asr=options.min_asr,
                    epsilon=settings.epsilon, batch=settings.batch, step=settings.step, objective=settings.objective,
                    precision=options.precision, device=device.type)


def cache_key(fetched: Fetched, base: BaseModel, adapter: Adapter, pool: Pool, settings: InversionSettings,
              precision: str, device: torch.device) -> str:
    """Everything that the numbers depend on, and nothing else: a verdict's thresholds are not in it."""
    parts = dict(version=INVERSION_VERSION, files=fetched.files, base=base.revision, classes=adapter.class_names,
                 pool=pool.fingerprint, settings=asdict(settings), precision=precision, device=device.type)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def default_cache() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("hf-ci"))
