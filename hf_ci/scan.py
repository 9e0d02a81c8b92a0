"""The walk: target -> adapter -> prompted CLIP -> inversions -> verdict -> report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any

import torch
from accelerate import PartialState

from hf_ci.certain import certain
from hf_ci.checkpoints.read import read_fetched
from hf_ci.demonstration import demonstrated
from hf_ci.detect import Detector, Verdict
from hf_ci.detect.units import examine_units, unit_warnings, unjudged, with_units
from hf_ci.detect.verdict import doubted, named, unmeasured
from hf_ci.errors import (
    EXIT_INTERNAL,
    AdapterError,
    HfCiError,
    Inconclusive,
    UsageError,
    first_line,
    is_defect,
    write_log,
)
from hf_ci.files import SCANNED, WEIGHTS
from hf_ci.hub import BaseModel, Fetched, check_merged, fetch_base, fetch_text, named_base
from hf_ci.hub.names import BUILTIN
from hf_ci.hub.target import hashes, sha256
from hf_ci.inversion import ON_PHOTOS, PERTURBATION, WIDE, Done, Inversion, Job, run_job
from hf_ci.inversion.probes import PROBE_KINDS, Probed, passes
from hf_ci.photos import FEW, Witnesses, ask
from hf_ci.places import check_folder
from hf_ci.pools import Pool, load_pool
from hf_ci.pools.photos import Photos, few_photos
from hf_ci.progress import Silent, within
from hf_ci.prompts import Adapter, FrozenCLIP, load_clip
from hf_ci.prompts.adapter import name_warnings
from hf_ci.prompts.clip import load_processor
from hf_ci.prompts.encoders import check_encoders
from hf_ci.prompts.prompted import check_fits
from hf_ci.report import (
    MADE_POOL,
    VULNERABLE_CLASSES,
    BaseModelRef,
    ClassScore,
    Cost,
    DetectorRef,
    NamedClass,
    PhotosRef,
    PoolRef,
    Report,
    ScannedFile,
    ScanResult,
    Settings,
    Timing,
    failure,
)
from hf_ci.settings import ScanOptions, pick_device, pick_precision, read_class_names

Fetch = Callable[[str], Fetched]
FetchBase = Callable[[str, str | None], BaseModel]
KINDS = {
    PERTURBATION: "a small change of all pixels",
    WIDE: "a change of all pixels twice as large",
    "frame": "a frame around the image",
    "patch": "a patch at any place",
}
WITH_PHOTOS = KINDS | {ON_PHOTOS: "a small change of your photos"}  # looked for where there are any
NOT_LOOKED_FOR = (
    "an object or another thing with a meaning",
    "a trigger for images of one class alone",
    "a trigger in the text",
    "a trigger that needs two changes at once",
)
EXIT_CODES = {"clean": 0, "backdoored": 1, "inconclusive": 4}


class Run:
    """What the targets of one run share: options, base models (each at the commit that it had when it was first
    asked for), and the last two of those in memory with the pool as each takes it, and what each makes of it under probes.

    fetch_base: for whoever has fetched base models already.
    """

    def __init__(self, options: ScanOptions, progress: Silent, fetch_base: FetchBase | None = None):
        self.options, self.progress, self.fetch_base = options, progress, fetch_base or once()
        self.device = pick_device(options.device)
        self.precision = pick_precision(options.precision, self.device)
        state = PartialState(cpu=self.device.type == "cpu")
        self.is_main_process = state.is_main_process
        if state.num_processes > 1 and options.num_processes > 1:
            raise UsageError(
                f"--num-processes {options.num_processes} within {state.num_processes} processes of a launcher",
                "use one or the other",
            )
        self.detector = options.make_detector()
        self.calibration_sha256 = options.calibration and sha256(options.calibration)
        self.class_names = read_class_names(options.classes) if options.classes else None
        self.clip = lru_cache(maxsize=2)(lambda folder: load_clip(folder, self.device, self.precision))
        self.pool = lru_cache(maxsize=2)(
            lambda folder: load_pool(options.pool, options.num_images, options.seed, load_processor(folder))
        )
        self.probed = lru_cache(maxsize=2)(
            lambda folder, place: Probed(
                self.clip(folder).image_features, self.pool(folder).images.to(self.device), place
            )
        )
        for folder, flag in ((options.cache, "--cache"), (options.save_trigger, "--save-trigger")):
            if folder:
                check_folder(folder, flag)

    def with_photos(self, data: str, shots: int) -> Run:
        """The same run, which is given labelled photos."""
        other = copy(self)
        other.options = replace(self.options, data=data, shots=shots)
        return other

    def photos(self, base: BaseModel, adapter: Adapter) -> Photos:
        """Of `--data`, a few of each of the adapter's classes."""
        options = self.options
        return few_photos(
            certain(options.data), adapter.class_names, options.shots, options.seed, load_processor(base.folder)
        )


def once() -> FetchBase:
    """fetch_base that asks for each base model once."""
    return cache(fetch_base)


def scan_targets(targets: Sequence[str], options: ScanOptions = ScanOptions(), progress: Silent = Silent()) -> Report:
    """Scan every target; what cannot be scanned is a result, too, never a clean one.

    Raises UsageError when the options themselves cannot be met (device, cache, class file), and for a target that can be
    neither folder nor repo, or either.
    """
    run = Run(options, progress)
    return Report(results=tuple(scan_target(text, run) for text in targets))


@dataclass(frozen=True)
class Examined:
    """What a scan had in its hands, for whoever goes on from there (repair). witnesses: what its labelled photos said."""

    fetched: Fetched
    adapter: Adapter
    base: BaseModel
    clip: FrozenCLIP
    pool: Pool
    inversions: Sequence[Inversion]
    witnesses: Witnesses | None = None


def scan_target(text: str, run: Run, fetch: Fetch = fetch_text) -> ScanResult:
    return examine(text, run, fetch)[0]


def examine(text: str, run: Run, fetch: Fetch = fetch_text) -> tuple[ScanResult, Examined | None]:
    """The result, and what it was made from; None where the target could not be scanned.

    fetch: for whoever has the adapter's files at hand already.
    """
    started, cached, examined = time.perf_counter(), 0, None
    found: dict[str, Any] = {}
    warnings: list[str] = []
    options, progress = run.options, run.progress
    try:
        progress.step(f"{text}: fetching the adapter")
        fetched = fetch(text)
        found |= {"revision": fetched.revision, "files": tuple(ScannedFile(path=p, sha256=s) for p, s in fetched.files)}
        found |= {"hub_security": fetched.security}
        adapter, remarks = read_fetched(fetched, run)
        warnings += remarks
        check_unchanged(fetched, adapter.files, fetched.own)
        found |= {
            "method": adapter.method,
            "num_classes": len(adapter.class_names),
            "repaired_from": adapter.repaired_from,
        }
        check_finite(adapter)
        warnings += name_warnings(adapter.class_names)

        progress.step(f"{text}: loading the base model")
        base = run.fetch_base(*named_base(adapter.base_model, adapter.base_revision, options.base))
        found |= {"base_model": BaseModelRef(id=base.id, revision=base.revision)}
        warnings += base_warnings(adapter, base)
        warnings += [] if options.base else check_merged(adapter.base_model, adapter.base_revision, base)
        clip = run.clip(base.folder)
        check_fits(adapter, clip)
        warnings += encoder_warnings(fetched, base)

        progress.step(f"{text}: drawing {options.num_images} images from pool {options.pool}")
        pool = run.pool(base.folder)
        found |= {
            "pool": PoolRef(
                id=pool.id,
                num_images=len(pool),
                fingerprint=pool.fingerprint,
                skipped=pool.skipped,
                duplicates=pool.duplicates,
            )
        }
        warnings += pool_warnings(pool, options.num_images)

        tuned: tuple[Adapter, ...]
        witnesses, tuned, own = None, (), None
        if options.data:
            progress.step(f"{text}: tuning clean prompts on photos of {options.data}")
            witnesses = ask(clip, adapter, run.photos(base, adapter), options.data, options.seed)
            found |= {"photos": photos_ref(witnesses)}
            warnings += photo_warnings(witnesses)
            tuned, own = witnesses.prompts, witnesses.own

        detector = run.detector.for_adapter(adapter.context.ndim == 3, len(adapter.class_names))
        inverter = detector.inverter(options.seed)
        found |= {
            "settings": Settings(
                num_images=options.num_images,
                seed=options.seed,
                precision=run.precision,
                device=run.device.type,
                inversion=dict(kind=type(inverter).__name__, exact=options.exact, **asdict(inverter)),
                given=options.given(),
            ),
        }
        if len(adapter.class_names) < 2:
            raise AdapterError("1 class: there is no other that it could be told from")
        progress.step(f"{text}: examining what no image of the pool wakes")
        units = examine_units(adapter, clip, pool.images, options.seed, tuned)
        warnings += unit_warnings(units)
        job = Job(
            adapter,
            base.folder,
            base.digest,
            pool.images,
            pool.fingerprint,
            inverter,
            run.precision,
            run.device.type,
            options.exact,
            tuned,
            own,
        )
        progress.inversions(text, adapter.class_names, job.num_inversions)
        cache = options.cache
        probed = run.probed(base.folder, cache and cache / job.shared)
        alone = PartialState().num_processes == 1  # of several under a launcher, one would leave the others waiting
        inverted = within(options.timeout * alone, started, text, job.num_inversions, progress)
        done = run_job(job, clip, options.num_processes, cache, inverted, probed)
        inversions, cached, known = done.inversions, done.cached, units
        if inverter.uses_reference:
            inversions = with_units(inversions, units)
        else:  # a rule about losses knows nothing of what opens them
            known = tuple(replace(unit, inversion=None) for unit in units)
        verdict = detector.judge(inversions, adapter.class_names, done.distance)
        verdict = doubted(verdict, [*unjudged(known, adapter.class_names), *not_judged(fetched)])
        verdict = unmeasured(verdict, adapter.method, adapter.class_names)
        found |= findings(verdict, inversions, adapter.class_names)
        found |= {"distance": done.distance, "detector": detector_ref(detector, done, base, run)}
        sought = looked_for(inversions)
        missed = (*(kind for kind in (*KINDS.values(), *PROBE_KINDS) if kind not in sought), *NOT_LOOKED_FOR)
        found |= {"looked_for": sought, "not_looked_for": missed}
        warnings += transfer_warnings(found["detector"], base) + vulnerable_warnings(found["classes"])
        found |= {"cost": cost_of(inversions, adapter, len(pool), 0 if own is None else len(own), tuned)}
        examined = Examined(fetched, adapter, base, clip, pool, inversions, witnesses)
        if verdict.target is not None:
            folder = options.save_trigger if run.is_main_process else None
            found |= demonstrated(
                adapter, clip, pool.images, inversions, found["classes"], verdict.target, text, folder
            )
        found |= {"exit_code": EXIT_CODES[verdict.verdict]}
    except UsageError:
        raise
    except HfCiError as error:
        found |= failure(error)
    except BaseException as error:  # a defect of ours; the other targets' results are not lost with it
        if not is_defect(error):
            raise
        reason = f"internal error: {type(error).__name__}: {first_line(error)}; please report it with {write_log()}"
        found |= {"verdict": "inconclusive", "reasons": (reason,), "about_weights": False, "exit_code": EXIT_INTERNAL}
    finally:
        progress.done()
    timing = Timing.since(started, options.num_processes, cached)
    return ScanResult(target=text, warnings=tuple(warnings), timing=timing, **found), examined


# ---------------------------------------------------------------- steps


def findings(verdict: Verdict, inversions: Sequence[Inversion], class_names: Sequence[str]) -> dict[str, Any]:
    families: Sequence[str | None] = verdict.families or [None] * len(inversions)
    classes = tuple(
        ClassScore(
            index=i.c,
            name=class_names[i.c],
            loss=round(i.loss, 6),
            asr=round(i.asr, 6),
            score=round(score, 6),
            flagged=flag,
            size=i.size,
            reference_asr=i.reference_asr,
            exclusive_asr=None if i.exclusive_asr is None else round(i.exclusive_asr, 6),
            probe=i.probe,
            probe_asr=i.probe_asr,
            screened=i.screened,
            family=family,
            others={o.family: round(certain(o.exclusive_asr), 6) for o in i.others if not o.screened},
        )
        for i, score, flag, family in zip(inversions, verdict.scores, verdict.flagged, families)
    )
    target = None if verdict.target is None else NamedClass(index=verdict.target, name=class_names[verdict.target])
    return {
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "classes": classes,
        "target_class": target,
        "score": None if verdict.score is None else round(verdict.score, 6),
    }


def looked_for(inversions: Sequence[Inversion]) -> tuple[str, ...]:
    """The kinds of triggers that were searched for, in words."""
    one = inversions[0]
    return (
        *(WITH_PHOTOS.get(o.family, o.family) for o in (one, *one.others)),
        *(PROBE_KINDS if one.probe else ()),
    )


def cost_of(
    inversions: Sequence[Inversion],
    adapter: Adapter,
    num_images: int,
    num_photos: int,
    tuned: Sequence[Adapter] = (),
) -> Cost:
    """With the probes, which are tried on the pool, or on the photos where there are any. A context that ignores the image is encoded once for each class, any other one for each image and class."""
    forward, backward = sum(i.forward for i in inversions), sum(i.backward for i in inversions)
    forward += sum(o.forward for i in inversions for o in i.others)
    backward += sum(o.backward for i in inversions for o in i.others)
    if any(i.probe for i in inversions):
        forward += num_images + passes(num_photos) if num_photos else passes(num_images)
    compared = inversions[0].reference_asr is not None
    if adapter.layers.image and compared:  # once for the adapter, once for its references, and for each with its own
        encoders = 2 + sum(bool(one.layers.image) for one in tuned)
        forward, backward = encoders * forward, encoders * backward
    text = len(adapter.class_names) * (forward if adapter.meta_net else 1)
    return Cost(image_forward=forward, image_backward=backward, text_forward=text)


# ---------------------------------------------------------------- what the walk stands on


def check_unchanged(fetched: Fetched, read: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Raises Inconclusive when of the files called `names` something else was read than was fetched."""
    if dict(read) != {name: digest for name, digest in fetched.files if name in names}:
        raise Inconclusive("its files changed while they were read", "scan it again")


def encoder_warnings(fetched: Fetched, base: BaseModel) -> list[str]:
    """Raises AdapterError where the adapter brings encoders that are not the base model's."""
    count = 0 if fetched.checkpoint else check_encoders(fetched.folder, base.folder)
    if not count:
        return []
    check_unchanged(fetched, hashes(fetched.folder), SCANNED)
    return [f"brings {count} encoder tensors, equal to the base's"]


def not_judged(fetched: Fetched) -> list[str]:
    """Weights that other loaders may take: who fetches the folder gets them, too."""
    if not fetched.others:
        return []
    return [
        f"weights that were not judged lie beside the adapter or below it: {named(fetched.others)}; only {WEIGHTS} was, and "
        "another loader may take another (remove them, or scan each by itself)"
    ]


def check_finite(adapter: Adapter) -> None:
    bad = [name for name, tensor in adapter.tensors().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise AdapterError(f"{', '.join(bad)}: holds values that are not finite", "the weights are damaged or unusable")


def base_warnings(adapter: Adapter, base: BaseModel) -> list[str]:
    if adapter.base_model and base.id != adapter.base_model:
        return [f"scanned on base model {base.id}, the adapter names {adapter.base_model}"]
    named_commit = re.fullmatch("[0-9a-f]{40,64}", adapter.base_revision or "")
    if named_commit and base.revision != adapter.base_revision:
        return [f"scanned on {base.id} at {base.revision[:12]}, the adapter names revision {named_commit[0][:12]}"]
    return []


def detector_ref(detector: Detector, done: Done, base: BaseModel, run: Run) -> DetectorRef:
    null, calibration, measured = detector.null, detector.calibration, None
    if null is not None and run.options.k is None:
        measured = null.measured_on(base.revision)
        calibration += (
            ", measured on this base model" if measured else f"; transferred to {named_at(base)}, not measured"
        )
    return DetectorRef(
        name=detector.name,
        calibration=calibration,
        thresholds=detector.thresholds(len(done.inversions), done.distance or 0.0),
        measured=measured,
        fitted=null and json.loads(json.dumps(asdict(null))),
        calibration_sha256=run.calibration_sha256,
    )


def transfer_warnings(detector: DetectorRef, base: BaseModel) -> list[str]:
    if detector.measured is not False:
        return []
    null = certain(detector.fitted)
    fitted = named_at(BaseModelRef.model_validate({"id": null["base_model"], "revision": null["base_revision"]}))
    return [
        f"the thresholds were fitted on {fitted} and are transferred to {named_at(base)}, not measured: hf-ci calibrate "
        "measures them"
    ]


def named_at(base: BaseModel | BaseModelRef) -> str:
    return f"{base.id}@{certain(base.revision)[:7]}"


def vulnerable_warnings(classes: Sequence[ClassScore]) -> list[str]:
    """Seen on the way: clean prompts are driven into a class, too. Not a finding about this adapter."""
    names = [c.name for c in classes if c.vulnerable]
    if not names:
        return []
    return [
        f"{VULNERABLE_CLASSES}: {named(names)} (a perturbation forces most images into it through hand-written prompts)"
    ]


def photos_ref(witnesses: Witnesses) -> PhotosRef:
    measured = {
        name: asdict(value) for name in ("adapter", "hand_written", "tuned") if (value := getattr(witnesses, name))
    }
    return PhotosRef(
        id=witnesses.source,
        fingerprint=witnesses.fingerprint,
        fewest=witnesses.fewest,
        used=witnesses.learned,
        accuracy=measured,
    )


def photo_warnings(witnesses: Witnesses) -> list[str]:
    if not witnesses.learned:
        return [
            f"prompts tuned on photos of {witnesses.source} guess photos that they have not seen: these labels cannot be "
            "learned, so the photos settle nothing and were left out; are they labelled rightly?"
        ]
    if witnesses.fewest < FEW:
        return [f"{witnesses.fewest} photos of a class settle little: give {FEW} at least, better 16"]
    return []


def pool_warnings(pool: Pool, asked: int) -> list[str]:
    small = [f"the pool gave {len(pool)} images, {asked} were asked for"] if len(pool) < asked else []
    return (
        [MADE_POOL] * (pool.id == BUILTIN)
        + small
        + ([f"{pool.skipped} images of the pool could not be read"] if pool.skipped else [])
    )
