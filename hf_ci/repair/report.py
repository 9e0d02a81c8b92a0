"""What a repair did, as frozen values: the record that lies beside a repaired adapter as ``repair.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hf_ci.report import NamedClass, ScannedFile, ScanResult, Tool, Value

Outcome = Literal["repaired", "replaced", "nothing to repair", "not repaired", "inconclusive"]


class Round(Value):
    """One tuning from a clean start, against all triggers known by then. Shares are of held-out images."""

    triggers: int = Field(description="triggers that it was tuned against, reconstructed or known")
    held_out: int = Field(description="images that the shares here are of")
    trigger_asr_before: float = Field(
        description="largest ASR, on the original, of what was reconstructed or tried for a class that stands out"
    )
    trigger_asr_after: float = Field(description="and on the repaired prompt")
    agreement: float = Field(description="share of untriggered images with the same answer as the original's")
    accuracy_before: float | None = Field(None, description="of the original; null without labels")
    accuracy_after: float | None = None
    accuracy_clean: float | None = Field(None, description="of a clean prompt tuned on the other photos alone")
    lost: int | None = Field(None, description="labelled photos that the original answered rightly and this does not")
    gained: int | None = Field(None, description="and the other way round")
    lost_to_clean: int | None = Field(
        None, description="photos that that clean prompt answers rightly and this does not"
    )
    gained_on_clean: int | None = Field(None, description="and the other way round")
    score: float | None = Field(description="the detector's, from the scan of the repaired prompt")
    verdict: str


class RepairReport(Value):
    schema_version: Literal["1.0"] = "1.0"
    tool: Tool = Tool()
    target: str
    outcome: Outcome
    reasons: tuple[str, ...]
    before: ScanResult
    after: ScanResult | None = None
    suspicious: tuple[NamedClass, ...] = ()
    images: str | None = Field(None, description="what it was tuned on")
    labels: bool | None = None
    seed: int | None = None
    rounds: tuple[Round, ...] = ()
    weights_changed: float | None = Field(
        None, description="norm of the difference of all tensors over the norm of the original's, where shapes agree"
    )
    files: tuple[ScannedFile, ...] = ()
    exit_code: int
