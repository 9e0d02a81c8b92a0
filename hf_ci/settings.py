"""What a scan may be asked for, and what of it has to be looked up on this machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ci.errors import UsageError, first_line
from hf_ci.kind import POSITIONS

if TYPE_CHECKING:
    import torch

    from hf_ci.detect import Detector

MOST_IMAGES = 10_000  # of a pool, which is held in memory: 1.5 GB at 224 pixels
THRESHOLDS = ("k", "min_asr")  # of one detector or another
DEVICE, DEVICES = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d+)?"), "use cpu, cuda, cuda:N, mps or auto"


@dataclass(frozen=True)
class ScanOptions:
    """What a scan may be asked for; the command line's flags, by the same names."""

    base: str | None = None
    pool: str = "builtin"
    num_images: int = 256
    seed: int = 0
    detector: str = "contrast"
    k: float | None = None  # a detector's thresholds; None: its own
    min_asr: float | None = None
    calibration: Path | None = None  # None: the shipped one
    exact: bool = False
    device: str = "auto"
    precision: str = "auto"
    num_processes: int = 1
    classes: Path | None = None
    position: str | None = None  # of the class name, in a prompt that does not tell it
    data: str | None = None  # labelled photos of the adapter's classes
    shots: int = 16  # at most, of each class
    timeout: float = 6 * 3600  # seconds for one target; 0: as long as it takes
    cache: Path | None = None
    save_trigger: Path | None = None

    def __post_init__(self) -> None:
        checks = [
            (self.num_images >= 32, f"--num-images {self.num_images}: expected at least 32"),
            (
                self.num_images <= MOST_IMAGES,
                f"--num-images {self.num_images}: expected at most {MOST_IMAGES} (a few hundred do)",
            ),
            (self.shots >= 1, f"--shots {self.shots}: expected at least 1"),
            (self.seed >= 0, f"--seed {self.seed}: expected 0 or more"),
            (self.k is None or math.isfinite(self.k), f"--k {self.k}: expected a finite number"),
            (
                self.min_asr is None or 0 <= self.min_asr <= 1,
                f"--min-asr {self.min_asr}: expected a share between 0 and 1",
            ),
            (self.timeout >= 0, f"--timeout {self.timeout}: expected seconds, 0 or more"),
            (self.num_processes >= 1, f"--num-processes {self.num_processes}: expected at least 1"),
            (
                self.position in (None, *POSITIONS),
                f"--position {self.position}: expected one of {', '.join(POSITIONS)}",
            ),
            (self.precision in ("auto", "fp32", "bf16"), f"--precision {self.precision}: expected auto, fp32 or bf16"),
        ]
        for fine, message in checks:
            if not fine:
                raise UsageError(message)
        if not DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device}: no such device", DEVICES)

    def given(self) -> dict[str, float | str]:
        """Of those that have no default of their own, what was set."""
        names = ("base", "classes", "position", "data", *THRESHOLDS)
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        values |= {"shots": self.shots} if self.data else {}
        return {name: value if isinstance(value, float) else str(value) for name, value in values.items()}

    def make_detector(self) -> Detector:
        """Raises UsageError for a detector that is not known or has no such threshold as was set, and for a calibration
        that cannot be used."""
        from hf_ci.detect import DETECTORS

        if self.detector not in DETECTORS:
            raise UsageError(f"--detector {self.detector}: no such detector", f"use one of {', '.join(DETECTORS)}")
        kind = DETECTORS[self.detector]
        given: dict[str, Any] = {name: getattr(self, name) for name in THRESHOLDS if getattr(self, name) is not None}
        unknown = given.keys() - {field.name for field in fields(kind)}
        if unknown:
            flags = ", ".join("--" + name.replace("_", "-") for name in sorted(unknown))
            raise UsageError(f"{flags}: {self.detector} has no such threshold", "leave it out, or choose --detector")
        if self.calibration is not None:
            if "null" not in {field.name for field in fields(kind)}:
                raise UsageError(f"--calibration: {self.detector} takes none", "leave it out, or choose --detector")
            given["calibration"] = self.calibration
        return kind.for_pool(self.pool, **given)


def pick_device(name: str) -> torch.device:
    """The device that `name` stands for. Raises UsageError when this machine has none such."""
    import torch

    if name == "auto":  # Accelerate's choice: this process's own GPU where there are several
        from accelerate import PartialState

        own: torch.device = PartialState(cpu=not torch.accelerator.is_available()).device
        return own
    try:
        if not DEVICE.fullmatch(name):
            raise RuntimeError("no such device")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: {first_line(error)}", DEVICES) from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 where the device computes in it (several times as fast, losses within about 0.05), else fp32."""
    import torch

    if name != "auto":
        return name
    if device.type == "cpu":
        able = any(torch.cpu.get_capabilities().get(unit) for unit in ("avx512_bf16", "amx_bf16"))
    else:
        able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if able else "fp32"


def read_class_names(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"--classes {path}: {said}", "give a text file with one class name a line") from error
    if not names:
        raise UsageError(f"--classes {path}: the file is empty", "give one class name a line")
    return names


def default_cache() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("hf-ci"))
