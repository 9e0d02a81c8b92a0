"""A step of an inversion stays on the device: a GPU is never waited for, and nothing is sent to it, within the loop.

The meta device stands in for a GPU. It computes nothing, so whatever asks it for a number raises.
"""

import pytest
import torch
from making import made_adapter
from torch.utils._python_dispatch import TorchDispatchMode

from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.inversion.contrast import ContrastInversion
from hf_ci.inversion.probes import probes
from hf_ci.prompts import BesideReferences, PromptedCLIP, load_clip, reference_adapter

NAMES = tuple(f"thing {i}" for i in range(20))


class Moves(TorchDispatchMode):
    """Counts copies to the meta device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [a for a in args if isinstance(a, torch.Tensor)]
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_meta and any(not a.is_meta and a.ndim for a in given):
            self.count += 1
        return found


@pytest.fixture
def away(clip, monkeypatch):
    """The embedded CLIP on the meta device; its reference prompts are made beforehand."""
    reference = reference_adapter(clip, NAMES)
    monkeypatch.setattr("hf_ci.prompts.prompted.reference_adapter", lambda *_: reference)
    return load_clip(EMBEDDED_FOLDER).to("meta")


def moves(clip, away, method: str, num_images: int) -> int:
    """Of a whole inversion, up to where its result is fetched."""
    adapted = PromptedCLIP.from_adapter(made_adapter(clip, method, NAMES), away)
    images = torch.zeros(num_images, 3, 64, 64, dtype=torch.uint8, device="meta")
    with adapted.frozen_prompt():
        model = BesideReferences(adapted, images)
        with Moves() as counted, pytest.raises(NotImplementedError, match="meta tensor"):
            ContrastInversion()(model, images, 3, 32)
    return counted.count


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_no_step_waits_for_the_device_or_sends_anything_there(clip, away, method):
    assert moves(clip, away, method, 32) == moves(clip, away, method, 160) <= 2  # the trigger itself, and the rows


def test_the_count_would_see_a_step_that_sends_its_rows():
    with Moves() as counted:
        torch.zeros(64, device="meta")[torch.arange(3).to("meta")]
    assert counted.count == 1


def test_probes_send_their_patterns_once():
    known = {name: probe for name, probe in probes(64, "meta").items() if "JPEG" not in name}  # PIL's, on the CPU
    with Moves() as counted:
        for probe in known.values():
            probe(torch.zeros(2, 3, 64, 64, device="meta"))
    assert counted.count == 0
