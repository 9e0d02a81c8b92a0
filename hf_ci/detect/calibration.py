"""What is normal for a clean adapter, fitted on clean adapters made for the purpose.

An adapter that learned much answers unlike any reference, and can be driven where they cannot be, whether or not
something was planted: what is normal depends on its *distance* d, the share of the untouched pool that it answers as no
reference does. For each family of triggers (perturbations, each mask, probes) a class's excess over its peers is
therefore put in units of what clean adapters at that distance show at most:

    z = (excess - (intercept + slope d)) / (spread + growth d)

Small changes of all pixels are one question asked in several ways: what is planted answers to all, what a clean adapter
happens to show to one of them. Their z are added, over the root of their number (Stouffer 1949), those on an adapter's own
photos with the pool's and the pool's by themselves; a class's score is the largest of these sums and of the other families'
z, and the adapter's is that of the largest class. Over clean adapters with C_0 classes, each scored by what is usual on
other data sets than its own, it is taken as Gumbel distributed: F(s) = exp(-exp(-(s - mu) / beta)), fitted by moments. With more classes the largest of them is larger by chance alone: were
they independent, it would be distributed as F^(C / C_0), and that is the correction made.

A file of nulls (`hf-ci calibrate` and `hf-ci lab calibrate` write one, and one is shipped) holds one for each kind of
pool, photos and the built-in one, with what it was fitted on, and beside it others for some adapters: for those of at most
FEW_CLASSES, which leave a class few peers, and for those with class-specific contexts. These vary more; theirs is fitted on
prompts of all kinds, the other one without them:

    {"format": 2, "nulls": {"builtin": {...}, "builtin, few classes": {...}, "builtin, class-specific": {...},
                            "builtin, few classes, class-specific": {...}, "photos": {...}, ...}, "sha256": "..."}

The sha256 is that of all the rest, as JSON with sorted keys and no blanks: whoever edits a number by hand is told.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from hf_ci.errors import UsageError
from hf_ci.inversion.trigger import ADDITIVE, ON_PHOTOS

EULER = 0.5772156649015329
FORMAT = 2
FEWEST = 5  # clean adapters that a null can be fitted on
FEW_CLASSES = 3  # with more, a class is held against three others
# Spread of an excess, at least: a share of some hundred images is known no better. Masks and probes are tried on 64 images.
NARROWEST, NARROWEST_OF_FEW = 0.02, 0.03
SHIPPED = Path(__file__).parents[1] / "assets" / "calibration.json"
PoolKind = Literal["photos", "builtin"]
Variant = Literal["", ", few classes", ", class-specific", ", few classes, class-specific"]
Kind = Literal[
    "photos",
    "photos, few classes",
    "photos, class-specific",
    "photos, few classes, class-specific",
    "builtin",
    "builtin, few classes",
    "builtin, class-specific",
    "builtin, few classes, class-specific",
]
Probability = Annotated[float, Field(ge=0, le=1)]
Number = TypeVar("Number", float, np.ndarray)
T = TypeVar("T")


@dataclass(frozen=True)
class Usual:
    """The largest excess of clean adapters in one family of triggers, by distance."""

    intercept: float
    slope: Annotated[float, Field(ge=0)]
    spread: Annotated[float, Field(ge=NARROWEST)]
    growth: Annotated[float, Field(ge=0)]

    __pydantic_config__ = ConfigDict(extra="forbid")

    def z(self, excess: Number, distance: float | np.ndarray) -> Number:
        over, deviation = excess - self.intercept - self.slope * distance, self.spread + self.growth * distance
        return cast(Number, over / deviation)

    def excess(self, z: float, distance: float) -> float:
        """The excess that has this z."""
        return self.intercept + self.slope * distance + z * (self.spread + self.growth * distance)

    @classmethod
    def fit(cls, excesses: Sequence[float], distances: Sequence[float], narrowest: float = NARROWEST) -> Usual:
        """Least squares on distance, of the excess and of how far it strays from that; what falls with it is held level.

        How far is usual is fitted by mean strays, then widened until the z have no more than unit deviation: a clean class
        may happen to be what waves look like, so that probes have a longer tail than the other families.
        """
        y, d = np.asarray(excesses, float), np.asarray(distances, float)
        intercept, slope = line(d, y)
        strays = np.abs(y - intercept - slope * d) * math.sqrt(
            math.pi / 2
        )  # of a normal, mean |x| is sd * sqrt(2 / pi)
        spread, growth = line(d, strays)
        fitted = cls(intercept, slope, max(spread, narrowest), growth)
        tail = max(1.0, float(np.sqrt(np.mean(fitted.z(y, d) ** 2))))
        return cls(intercept, slope, tail * fitted.spread, tail * growth)


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least squares line, level where it would fall or where x hardly varies."""
    varies = x.std() > 0.01
    slope = max(0.0, float(np.cov(x, y, bias=True)[0, 1] / x.var())) if varies else 0.0
    return float(y.mean() - slope * x.mean()), slope


@dataclass(frozen=True)
class Calibration:
    """usual: by family of triggers. mean, sd: of clean adapters' scores, the largest class of each.

    num_classes: C_0, how many classes those adapters had. distances: the least and the largest. data: the data sets that
    they were tuned on. precision: that their scans computed in.
    """

    usual: dict[str, Usual]
    mean: Annotated[float, Field(allow_inf_nan=False)]
    sd: Annotated[float, Field(gt=0)]
    num_classes: Annotated[int, Field(ge=1)]
    distances: tuple[Probability, Probability]
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
    def of(cls, fields: dict[str, Any]) -> Calibration:
        """As a report has it. Raises UsageError for what is no null."""
        return validated(cls, fields, "the report's null")

    @property
    def beta(self) -> float:
        return self.sd * math.sqrt(6) / math.pi

    @property
    def mu(self) -> float:
        return self.mean - EULER * self.beta

    def threshold(self, false_alarm: float, num_classes: int | None = None) -> float:
        """The score that a clean adapter's exceeds with probability `false_alarm`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return self.mu - self.beta * math.log(-math.log1p(-false_alarm) / more)

    def p_value(self, score: float, num_classes: int | None = None) -> float:
        """Probability that a clean adapter's score is at least `score`."""
        more = (num_classes or self.num_classes) / self.num_classes
        return -math.expm1(-more * math.exp(-(score - self.mu) / self.beta))

    def describe(self) -> str:
        most = "at most " if self.num_classes <= FEW_CLASSES else ""
        return (
            f"{self.clean_models} scans of clean adapters of {most}{self.num_classes} classes on {self.base_model}, "
            f"{self.num_images} images of {self.pool}, distances {self.distances[0]:.2f} to {self.distances[1]:.2f}, "
            "Gumbel fit"
        )

    def measured_on(self, base_revision: str) -> bool:
        """Whether it was fitted on this very base model; on any other one its thresholds are only transferred."""
        return self.base_revision == base_revision


def questions(families: Iterable[str]) -> list[tuple[str, ...]]:
    """The families that are asked together: those of additive changes, with and without photos, and each other one.

    Photos add to what the pool tells and take nothing from it: whoever delivers an adapter may deliver them, too.
    """
    families = list(families)
    additive = tuple(family for family in families if family in ADDITIVE)
    pool = tuple(family for family in additive if family != ON_PHOTOS)
    alone: list[tuple[str, ...]] = [(family,) for family in families if family not in ADDITIVE]
    return list(dict.fromkeys([some for some in (additive, pool) if some] + alone))


def asked(z: Mapping[str, np.ndarray], families: tuple[str, ...]) -> np.ndarray:
    """What the z (C,) of some families come to together, (C,)."""
    total: np.ndarray = np.sum([z[family] for family in families], axis=0)
    return np.asarray(total / math.sqrt(len(families)))


def combined(z: Mapping[str, np.ndarray]) -> np.ndarray:
    """The z (C,) of each family -> the scores (C,) of the classes."""
    largest: np.ndarray = np.max([asked(z, families) for families in questions(z)], axis=0)
    return largest


def fit(
    excesses: Sequence[Mapping[str, Sequence[float] | np.ndarray]],
    distances: Sequence[float],
    data: Sequence[str],
    num_classes: int,
    **known: Any,
) -> Calibration:
    """excesses: of each clean adapter, by family, its classes'; in the order of `distances`, and of `data`, the set that it
    was tuned on. Some families want photos of the adapter's own classes, so that not all scans have them.

    An adapter that is to be judged was tuned on a set that no null has seen. So the scores that it is compared with are
    those of adapters by what is usual on the other sets, where there are any.

    Raises ValueError for too few adapters, or equal ones.
    """
    if len(distances) < FEWEST:
        raise ValueError(f"{len(distances)} clean adapters: at least {FEWEST} are needed to fit a null")
    models = list(zip(excesses, distances, data))
    usual = usual_of((found, d) for found, d, _ in models)
    on_others = {left: usual | usual_of((found, d) for found, d, name in models if name != left) for left in set(data)}
    scores = []
    for found, d, name in models:
        z = {family: of.z(np.asarray(found[family]), d) for family, of in on_others[name].items() if family in found}
        scores.append(float(combined(z).max()))
    if len(set(scores)) == 1:
        raise ValueError(f"{len(scores)} clean adapters with one and the same score: there is no spread to fit")
    between, sets = (min(distances), max(distances)), tuple(sorted(set(data)))
    return Calibration(usual, mean(scores), stdev(scores), num_classes, between, len(scores), data=sets, **known)


def usual_of(models: Iterable[tuple[Mapping[str, Sequence[float] | np.ndarray], float]]) -> dict[str, Usual]:
    """By family, fitted on the clean adapters (excesses, distance) that it was looked for in, where they are enough."""
    largest: dict[str, list[tuple[float, float]]] = {}
    for found, d in models:
        for family, excesses in found.items():
            largest.setdefault(family, []).append((max(excesses), d))
    narrowest: Callable[[str], float] = lambda family: NARROWEST if family in ADDITIVE else NARROWEST_OF_FEW
    return {
        family: Usual.fit([most for most, _ in known], [d for _, d in known], narrowest(family))
        for family, known in largest.items()
        if len(known) >= FEWEST
    }


def seal(content: dict[str, Any]) -> str:
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
            "write it anew with hf-ci calibrate; --k sets a threshold of your own",
        )
    return validated(dict[Kind, Calibration], content.get("nulls"), f"calibration {path}")


def validated(kind: type[T], value: object, named: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        at = ".".join(map(str, fault["loc"])) or "nulls"
        raise UsageError(f"{named}: {at}: {fault['msg']}", "hf-ci calibrate writes such a file") from error


@cache
def shipped() -> dict[Kind, Calibration]:
    return read(SHIPPED)


def kind_of(pool: str) -> PoolKind:
    return "builtin" if pool == "builtin" else "photos"


def variant(class_specific: bool, few: bool) -> Variant:
    """What follows the kind of pool in the name of a null: of adapters of few classes, with contexts of each class."""
    if few:
        return ", few classes, class-specific" if class_specific else ", few classes"
    return ", class-specific" if class_specific else ""


def nulls_for(pool: str, path: Path | None = None) -> dict[Variant, Calibration]:
    """Those fitted on such a pool, of the file `path` or the shipped one. Raises UsageError where it holds none."""
    nulls, kind = read(path) if path else shipped(), kind_of(pool)
    if kind not in nulls:
        raise UsageError(
            f"calibration {path} holds a null for {', '.join(nulls) or 'no pool'}, --pool {pool} needs one for {kind}",
            "fit one with hf-ci calibrate --pool, or choose another pool",
        )
    return {name: nulls[whole] for name in get_args(Variant) if (whole := kind + name) in nulls}


def null_for(pool: str) -> Calibration:
    """That of adapters of more than FEW_CLASSES, with shared contexts."""
    return nulls_for(pool)[""]
