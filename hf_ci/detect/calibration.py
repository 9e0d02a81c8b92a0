"""What is normal for a clean adapter, fitted on clean adapters made for the purpose.

The exclusive ASR of an adapter's worst class is the largest of C shares, so over clean adapters with C_0 classes it is
taken as Gumbel distributed: F(s) = exp(-exp(-(s - mu) / beta)), fitted by moments. With more classes the largest of them
is larger by chance alone: were they independent, it would be distributed as F^(C / C_0), and that is the correction made.

A file of nulls (`hf-ci calibrate` and `hf-ci lab calibrate` write one, and one is shipped) holds one for each kind of
pool, photos and the built-in one, with what it was fitted on:

    {"format": 1, "nulls": {"builtin": {...}, "photos": {...}}, "sha256": "..."}

The sha256 is that of all the rest, as JSON with sorted keys and no blanks: whoever edits a number by hand is told.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from hf_ci.errors import UsageError

EULER = 0.5772156649015329
FORMAT = 1
SHIPPED = Path(__file__).parents[1] / "assets" / "calibration.json"
Kind = Literal["photos", "builtin"]


@dataclass(frozen=True)
class Calibration:
    """mean, sd: of clean adapters' largest exclusive ASR, each a share of `num_images` images.

    num_classes: C_0, how many classes those adapters had. data: the data sets that they were tuned on. precision: that
    their scans computed in.
    """

    mean: Annotated[float, Field(ge=0, le=1)]
    sd: Annotated[float, Field(gt=0, le=1)]
    num_classes: Annotated[int, Field(ge=1)]
    clean_models: int
    num_images: int
    pool: str
    base_model: str
    base_revision: str
    records_sha256: str
    precision: str
    data: tuple[str, ...]

    __pydantic_config__ = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, fields: dict) -> Calibration:
        """As a report has it. Raises UsageError for what is no null."""
        return validated(cls, fields, "the report's null")

    @property
    def beta(self) -> float:
        return self.sd * math.sqrt(6) / math.pi

    @property
    def mu(self) -> float:
        return self.mean - EULER * self.beta

    def threshold(self, false_alarm: float, num_classes: int | None = None) -> float:
        """The share that a clean adapter's largest exclusive ASR exceeds with probability `false_alarm`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return min(max(self.mu - self.beta * math.log(-math.log1p(-false_alarm) / more), 0.0), 1.0)

    def p_value(self, share: float, num_classes: int | None = None) -> float:
        """Probability that a clean adapter's largest exclusive ASR is at least `share`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return -math.expm1(-more * math.exp(-(share - self.mu) / self.beta))

    def describe(self) -> str:
        return (
            f"{self.clean_models} clean adapters of {self.num_classes} classes on {self.base_model}, "
            f"{self.num_images} images of {self.pool}, Gumbel fit"
        )

    def measured_on(self, base_revision: str) -> bool:
        """Whether it was fitted on this very base model; on any other one its thresholds are only transferred."""
        return self.base_revision == base_revision


def fit(shares: Sequence[float], num_images: int, num_classes: int, **known) -> Calibration:
    """From each clean adapter's largest exclusive ASR. Raises ValueError for fewer than five adapters, or equal ones."""
    if len(shares) < 5:
        raise ValueError(f"{len(shares)} clean adapters: at least 5 are needed to fit a null")
    if len(set(shares)) == 1:
        raise ValueError(f"{len(shares)} clean adapters with one and the same score: there is no spread to fit")
    return Calibration(mean(shares), stdev(shares), num_classes, len(shares), num_images, **known)


def seal(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def render(nulls: Mapping[str, Calibration]) -> str:
    """The file of these nulls, by kind of pool."""
    content = {"format": FORMAT, "nulls": {kind: asdict(null) for kind, null in nulls.items()}}
    return json.dumps(content | {"sha256": seal(content)}, indent=2) + "\n"


def read(path: Path) -> dict[Kind, Calibration]:
    """By kind of pool. Raises UsageError for a file that cannot be read, is no calibration, or was edited by hand."""
    advice = "hf-ci calibrate writes such a file"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"calibration {path}: {error.strerror or error}", advice) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"calibration {path}: not readable JSON: {error}", advice) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"calibration {path}: no calibration of format {FORMAT}", advice)
    stated = content.pop("sha256", None)
    if stated != (found := seal(content)):
        raise UsageError(
            f"calibration {path}: edited by hand or damaged: its content has the sha256 {found[:12]}, it states "
            f"{str(stated)[:12]}",
            "write it anew with hf-ci calibrate; --min-share sets a threshold of your own",
        )
    return validated(dict[Kind, Calibration], content.get("nulls"), f"calibration {path}")


def validated(kind, value: object, named: str):
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        at = ".".join(map(str, fault["loc"])) or "nulls"
        raise UsageError(f"{named}: {at}: {fault['msg']}", "hf-ci calibrate writes such a file") from error


@cache
def shipped() -> dict[Kind, Calibration]:
    return read(SHIPPED)


def kind_of(pool: str) -> Kind:
    return "builtin" if pool == "builtin" else "photos"


def null_for(pool: str, path: Path | None = None) -> Calibration:
    """The null fitted on such a pool, of the file `path` or the shipped one. Raises UsageError where it holds none."""
    nulls, kind = read(path) if path else shipped(), kind_of(pool)
    if kind not in nulls:
        raise UsageError(
            f"calibration {path} holds a null for {', '.join(nulls) or 'no pool'}, --pool {pool} needs one for {kind}",
            "fit one with hf-ci calibrate --pool, or choose another pool",
        )
    return nulls[kind]
