"""What a scan found, as frozen values. Every output format renders these; `Report` is the JSON document.

Nothing here depends on torch. The JSON Schema of `Report` is published as ``hf_ci/schema/report.schema.json``.
"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, computed_field, model_validator

from hf_ci import __version__
from hf_ci.errors import EXIT_NOTHING, AdapterError, EncoderModified, HfCiError, UsageError
from hf_ci.files import CONFIG, WEIGHTS, is_checkpoint
from hf_ci.hub.names import HUB
from hf_ci.rates import wilson
from hf_ci.visible import cut

SCHEMA_VERSION: Final = "1.0"

VULNERABLE = 0.5  # ASR through clean prompts from which a class counts as vulnerable on its base model
# What is to be said of most scans, and in how many words a terminal is told so, is for a format to decide.
MADE_POOL = "the built-in pool judges less surely than photos do: give some of your own with --pool"
VULNERABLE_CLASSES = "vulnerable on this base model whatever the prompt, which is no backdoor"  # and their names
VerdictName = Literal["clean", "backdoored", "inconclusive"]
RULES = {"backdoored": "backdoored-adapter", "inconclusive": "inconclusive-scan"}  # a finding's rule, by verdict
MODIFIED = "modified-encoder"  # of those inconclusive ones that bring encoders of their own


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScannedFile(Value):
    path: str = Field(description="path inside the adapter's folder")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class BaseModelRef(Value):
    id: str = Field(description="repo id or folder of the frozen CLIP")
    revision: str | None = Field(description="commit sha on the Hub, or sha256 of the weights of a local folder")


class PoolRef(Value):
    id: str
    num_images: int = Field(ge=0)
    fingerprint: str = Field(description="sha256 of the pixels used, in order")
    skipped: int = Field(ge=0, description="images that could not be decoded")
    duplicates: int = Field(ge=0, description="images dropped because their pixels had been seen")


class Accuracy(Value):
    right: int = Field(ge=0, description="photos answered as they are labelled")
    photos: int = Field(ge=1, description="photos asked")

    def __str__(self) -> str:
        low, high = wilson(self.right, self.photos)
        return f"{self.right / self.photos:.0%} ({low:.0%} to {high:.0%})"


class PhotosRef(Value):
    id: str
    fingerprint: str = Field(description="sha256 of the pixels and labels used, in order")
    fewest: int = Field(ge=1, description="photos of the class that has fewest")
    used: bool = Field(description="whether clean prompts tuned on them joined the references")
    accuracy: dict[Literal["adapter", "hand_written", "tuned"], Accuracy] = Field(
        description="on these photos: of the adapter, of 'a photo of a {class}', and, where a class has three or more, of "
        "clean prompts on photos that they were not tuned on"
    )


class DetectorRef(Value):
    name: str
    calibration: str = Field(description="what the thresholds were calibrated on")
    thresholds: dict[str, float]
    measured: bool | None = Field(
        None,
        description="whether the calibration was made on this base model; false: the thresholds are transferred from "
        "another one; null: they come from no calibration, or were set by hand",
    )
    fitted: dict[str, JsonValue] | None = Field(
        None, description="the null over clean adapters that scores are compared with, and what it was fitted on"
    )
    calibration_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="of the file given with --calibration; null: the shipped one"
    )


class Settings(Value):
    num_images: int
    seed: int
    precision: str
    device: str
    inversion: dict[str, float | int | str | None] = Field(description="kind of the inversion, and its settings")
    given: dict[str, float | str] = Field({}, description="base, classes and thresholds, those of them that were set")


class NamedClass(Value):
    index: int = Field(ge=0)
    name: str


class ClassScore(Value):
    index: int = Field(ge=0)
    name: str
    loss: float = Field(description="mean margin loss of the reconstructed trigger over the pool, in logits")
    asr: float = Field(ge=0, le=1, description="share of pool images that the trigger drives into this class")
    score: float = Field(description="anomaly score, higher is worse")
    flagged: bool
    size: float | None = Field(None, description="size of the trigger, where the detector makes it small")
    reference_asr: float | None = Field(
        None, ge=0, le=1, description="the same for a clean reference prompt, where the detector compares with one"
    )
    exclusive_asr: float | None = Field(None, ge=0, le=1, description="and for the adapter and no reference prompt")
    probe: str | None = Field(
        None, description="the probe that drives most images into the class that way, of the photos where there are any"
    )
    probe_asr: float | None = Field(None, ge=0, le=1, description="their share")
    family: str | None = Field(None, description="kind of trigger that gave the class its score")
    others: dict[str, float] = Field(
        {},
        description="by other kinds of triggers, the share that the best of each drives there through the adapter alone",
    )
    screened: bool = Field(
        False, description="one step was taken and measured on one batch: others looked more promising"
    )

    @property
    def by_probe(self) -> bool:
        """The score is what the probe reaches, not a reconstructed trigger."""
        return (self.family or "").startswith("probe")

    @property
    def mark(self) -> str:
        """For a table's last column."""
        if not self.flagged:
            return ""
        if self.by_probe:
            return f"flagged: {self.probe}, {self.probe_asr:.0%}"
        return f"flagged: {self.family}, {self.others[self.family]:.0%}" if self.family in self.others else "flagged"

    @property
    def vulnerable(self) -> bool:
        """Forced through clean prompts as well: the frozen encoder's weakness, which no prompt was needed to plant."""
        return self.reference_asr is not None and self.reference_asr >= VULNERABLE


class Trigger(Value):
    path: str = Field(description="of its picture; empty where none was kept")
    linf: float = Field(ge=0, description="largest pixel change, pixels in [0, 1]")


class Answers(Value):
    """What is answered on one image."""

    adapter: NamedClass
    hand_written: NamedClass | None = Field(
        description="by 'a photo of a {class}' on the same encoders; null where the class names leave no room for it"
    )


class Example(Value):
    """One image of the pool."""

    before: Answers
    after: Answers = Field(description="with the trigger")


class FoundTrigger(Value):
    """What drives images into a flagged class, and what is answered on three of them."""

    target: NamedClass
    kind: str = Field(description="family of the reconstructed trigger, or the fixed change by its name")
    reconstructed: bool = Field(description="false: a fixed change, tried as it is")
    linf: float | None = Field(
        None, ge=0, description="largest pixel change, pixels in [0, 1], of what is added to an image; null for others"
    )
    examples: tuple[Example, ...] = Field(
        (),
        description="the first images of the pool that it moves into the class through the adapter and not through the "
        "hand-written prompt, then others; empty where the method's trigger is nothing that is put on an image",
    )
    path: str = Field("", description="of the file (npz) with the trigger and the images; empty where none was kept")


class Cost(Value):
    """What the inversions took, whenever they were done."""

    image_forward: int = Field(description="images through the image encoder")
    image_backward: int = Field(description="and back to the pixels")
    text_forward: int = Field(description="texts through the text encoder")


class Timing(Value):
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="day of the scan, UTC")
    seconds: float
    num_processes: int
    classes_from_cache: int

    @classmethod
    def since(cls, started: float, num_processes: int, classes_from_cache: int = 0) -> Timing:
        """Of what began when time.perf_counter() was `started`, and ends now."""
        return cls(
            date=datetime.now(UTC).date().isoformat(),
            seconds=round(time.perf_counter() - started, 2),
            num_processes=num_processes,
            classes_from_cache=classes_from_cache,
        )


class Suppression(Value):
    """Why a finding does not count, although it stays in every report."""

    kind: Literal["ignore", "baseline"]
    reason: str
    until: str | None = Field(None, description="last day of an ignore; a baseline has none")

    def __str__(self) -> str:
        return f"ignored until {self.until}: {self.reason}" if self.until else self.reason


class ScanResult(Value):
    target: str
    revision: str | None = Field(None, description="resolved commit sha; null for a folder")
    files: tuple[ScannedFile, ...] = ()
    base_model: BaseModelRef | None = None
    method: str | None = None
    num_classes: int | None = None
    pool: PoolRef | None = None
    photos: PhotosRef | None = Field(None, description="labelled photos of the adapter's classes, given with --data")
    detector: DetectorRef | None = None
    settings: Settings | None = None
    verdict: VerdictName
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    score: float | None = Field(None, description="model-level score, higher is worse; null when unknown")
    distance: float | None = Field(
        None, ge=0, le=1, description="share of the untouched pool that the adapter answers as no clean reference does"
    )
    looked_for: tuple[str, ...] = Field((), description="kinds of triggers that were searched for")
    not_looked_for: tuple[str, ...] = Field((), description="kinds that were not, so that nothing is known of them")
    target_class: NamedClass | None = None
    classes: tuple[ClassScore, ...] = ()
    trigger: Trigger | None = None
    triggers: tuple[FoundTrigger, ...] = Field(
        (), description="of the flagged classes, the ten worst of them, worst first"
    )
    hub_security: str | None = Field(None, description="what the Hub's own scanners say of the repo at that time")
    repaired_from: str | None = Field(None, description="sha256 of the weights that these were repaired from")
    cost: Cost | None = None
    timing: Timing | None = None
    exit_code: int = Field(description="exit code of a scan of this target alone")
    about_weights: bool = Field(
        True, description="false where something around them failed, or they are no prompt: nothing was learnt of them"
    )
    encoder_modified: bool = Field(False, description="encoders came with it that are not the base model's")
    suppressed: Suppression | None = None

    @property
    def rule(self) -> str | None:
        """The finding's kind; None where there is none."""
        return MODIFIED if self.encoder_modified else RULES.get(self.verdict)

    @property
    def is_other_kind(self) -> bool:
        """An adapter or a checkpoint, and certainly no prompt of CLIP."""
        return self.exit_code == EXIT_NOTHING and any(f.path == CONFIG or is_checkpoint(f.path) for f in self.files)

    @property
    def left_out(self) -> str:
        """The note that stands for it in a report without it."""
        return f"{self.target} was left out: {self.reasons[0]}"

    @property
    def accuracy(self) -> str:
        """Of the adapter on the labelled photos, beside clean prompts; empty without photos."""
        if not self.photos:
            return ""
        found = self.photos.accuracy
        tuned = found.get("tuned")
        return (
            f"on {found['adapter'].photos} labelled photos of {self.photos.id} the adapter is right on {found['adapter']}, "
            f'"a photo of a ..." on {found["hand_written"]}'
            + (f", clean prompts tuned on these photos on {tuned} of those that they had not seen" if tuned else "")
        )

    @property
    def weights_sha256(self) -> str | None:
        """sha256 of the weights that were scanned."""
        return next((file.sha256 for file in self.files if file.path == self.weights_path), None)

    @property
    def weights_path(self) -> str:
        """Inside the adapter's folder."""
        return next((file.path for file in self.files if is_checkpoint(file.path)), WEIGHTS)

    def pinned(self, letters: int | None = None) -> str:
        """The target at the commit that was scanned, of whose sha so many letters are shown (None: all)."""
        if not self.revision:
            return self.target
        repo, _, subfolder = self.target.removeprefix(HUB).partition(":")
        return f"{repo.partition('@')[0]}@{self.revision[:letters]}" + (f":{subfolder}" if subfolder else "")

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorated property, pydantic's docs say
    @property
    def fingerprint(self) -> str | None:
        """Of the finding, None where there is none: sha256 of rule, weights and class; commits do not change it."""
        if self.rule is None or (self.exit_code == EXIT_NOTHING and not self.files):  # nothing there is no finding
            return None
        weights = self.weights_sha256 or self.target
        return fingerprint_of(self.rule, weights, self.target_class.name if self.target_class else "")

    @model_validator(mode="before")
    @classmethod
    def computed_anew(cls, data: object) -> object:
        return {k: v for k, v in data.items() if k != "fingerprint"} if isinstance(data, dict) else data


def fingerprint_of(rule: str, weights: str, class_name: str) -> str:
    return hashlib.sha256("\n".join([rule, weights, class_name]).encode("utf-8", "replace")).hexdigest()


def failure(error: HfCiError) -> dict[str, Any]:
    """What a result has of the error that ended its scan."""
    return {
        "verdict": "inconclusive",
        "reasons": (cut(str(error)),),
        "about_weights": isinstance(error, AdapterError),
        "encoder_modified": isinstance(error, EncoderModified),
        "exit_code": error.exit_code,
    }


def failed(target: str, error: HfCiError, **found: Any) -> ScanResult:
    """The result of a target that could not be scanned. found: what was learnt of it all the same."""
    return ScanResult(target=target, **found, **failure(error))


class Tool(Value):
    name: str = "hf-ci"
    version: str = __version__


class Shard(Value):
    """Which share of a list a report is about, and what all reports of that run have in common."""

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    targets: tuple[str, ...] = Field(
        description="of the whole list, sorted: the index-th of them, and every count-th after it, is this shard's"
    )
    left_out: tuple[str, ...] = Field(
        (), description="of this shard's, those that a note stands for: no prompts of CLIP"
    )
    settings: dict[str, JsonValue] = Field(description="what was asked for, as far as it decides what a report says")
    asked: tuple[str, ...] = Field((), description="the command line's targets; empty: the configuration's")

    @computed_field  # type: ignore[prop-decorator] # as above
    @property
    def list_sha256(self) -> str:
        """sha256 of the list, a target a line."""
        return hashlib.sha256("\n".join(self.targets).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def own(self) -> tuple[str, ...]:
        """This shard's targets."""
        return self.targets[self.index - 1 :: self.count]

    @property
    def note(self) -> str:
        return f"shard {self.index}/{self.count}: {len(self.own)} of the list's {len(self.targets)} targets"

    @model_validator(mode="before")
    @classmethod
    def computed_anew(cls, data: object) -> object:
        return {k: v for k, v in data.items() if k != "list_sha256"} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def in_order(self) -> Shard:
        if self.index > self.count:
            raise ValueError(f"shard {self.index} of {self.count}")
        if list(self.targets) != sorted(set(self.targets)):
            raise ValueError("the targets are not sorted, or one is there twice")
        return self


class Report(Value):
    schema_version: Literal["1.0"] = SCHEMA_VERSION
    tool: Tool = Tool()
    results: tuple[ScanResult, ...]
    notes: tuple[str, ...] = Field((), description="remarks on the run, such as an ignore that has expired")
    shard: Shard | None = Field(None, description="of a run over several machines; null: the report is of a whole list")

    @property
    def exit_code(self) -> int:
        """The worst finding decides: backdoored, then an internal error, inconclusive, nothing to scan, clean.

        A suppressed finding decides nothing.

        One unreadable target among several makes the run inconclusive (4); 3 means that no target held anything.
        """
        codes = {0 if result.suppressed else result.exit_code for result in self.results}
        for code in (1, 5):
            if code in codes:
                return code
        if codes == {0}:
            return 0
        return 3 if codes <= {3} else 4


def without_pictures(report: Report) -> Report:
    """For whoever reads it when the folder that the pictures lay in is gone."""
    gone = {"path": ""}
    results = [
        r.model_copy(
            update={
                "trigger": r.trigger and r.trigger.model_copy(update=gone),
                "triggers": tuple(found.model_copy(update=gone) for found in r.triggers),
            }
        )
        for r in report.results
    ]
    return report.model_copy(update={"results": tuple(results)})


def read_report(path: Path, named: str, advice: str) -> Report:
    """A JSON report of ours, however it was made. Raises UsageError, with `named` in front, for anything else.

    By the standard library's reader: a folder's name that is no UTF-8 is none for pydantic's.
    """
    try:
        return Report.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{named}: {error.strerror or error}", "name a JSON report of hf-ci") from error
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'the document'}: {first['msg']}"
        raise UsageError(f"{named}: not a JSON report of hf-ci: {why}", advice) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{named}: not a JSON report of hf-ci, or half of one: {error}", advice) from error
