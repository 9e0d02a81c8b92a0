"""What a scan costs: the count is that of what runs, measurements are kept, the card says which targets were met."""

from pathlib import Path

import pytest
import torch
from making import made_adapter
from torch.utils.flop_counter import FlopCounterMode

from hf_ci.errors import UsageError
from hf_ci.lab.benchmarks.records import read_records
from hf_ci.lab.cards.performance import performance, targets
from hf_ci.lab.cost import scale
from hf_ci.lab.cost.alone import Alone, in_a_process
from hf_ci.lab.cost.counting import BATCH, Shape, vit_b16
from hf_ci.lab.cost.plain import PlainPromptedCLIP
from hf_ci.lab.cost.profiling import marked, shares
from hf_ci.lab.cost.speed import PARTS, measure_speed
from hf_ci.lab.cost.timing import our_step, plain_step
from hf_ci.prompts import BesideReferences, PromptedCLIP

ROOT = Path(__file__).parents[2]
NAMES = tuple(f"thing {i}" for i in range(16))
PIXELS = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def flop(way) -> float:
    with FlopCounterMode(display=False) as counted:
        way()
    return counted.get_total_flops()


def test_a_step_of_32_images_takes_what_was_predicted_for_50_classes_of_a_vit():
    shape = vit_b16(50)
    assert 2 * shape.plain() / shape.classes / 1000 * 32 == pytest.approx(21e12, rel=0.05)
    assert 2 * shape.descent(32) == pytest.approx(2.4e12, rel=0.05)


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_the_count_is_that_of_what_runs(clip, method):
    """Attention, which is left out, adds a seventh to sequences of 77 tokens on so narrow a tower, less elsewhere."""
    model = PromptedCLIP.from_adapter(made_adapter(clip, method, NAMES), clip)
    shape, few = Shape.of(model), PIXELS[:2]
    with model.frozen_prompt():
        ours = flop(our_step(BesideReferences(model, few), few))
        plain = flop(plain_step(PlainPromptedCLIP(model), few))
    assert ours == pytest.approx(2 * shape.descent(2), rel=0.12)
    assert plain == pytest.approx(2 * 2 * shape.plain() / shape.classes / 1000, rel=0.16)


def test_a_scan_is_the_sum_of_its_steps_and_exact_has_all_rivals():
    shape = vit_b16(200)
    assert sum(shape.steps(256, 10).values()) == pytest.approx(
        shape.nearest(256) + 200 * shape.screening() + 10 * shape.inversion(256) + shape.others(10) + shape.probes(256)
    )
    assert shape.scan_exact(256) > 200 * shape.inversion(256) > sum(shape.steps(256, 10).values())


def test_a_profile_tells_the_encoders_from_the_rest(clip):
    model = PromptedCLIP.from_adapter(made_adapter(clip), clip)
    plain = PlainPromptedCLIP(model)
    with marked(clip, "image_features", "image encoder"), marked(plain, "text_features", "text encoder"):
        found = shares(plain_step(plain, PIXELS[:2]), ["image encoder", "text encoder"])
    assert sum(found.values()) == pytest.approx(1)
    assert found["text encoder"] > 0.2 and found["image encoder"] > 0.05 and 0 < found["rest"] < 0.5
    assert "image_features" not in vars(clip)


def test_what_was_measured_is_not_measured_again(tmp_path):
    asked = {"out": tmp_path / "s.jsonl", "sizes": [3], "parts": ["encoders", "scale"], "repeats": 1, "images": 32}
    first = list(measure_speed(**asked))
    assert list(measure_speed(**asked)) == [] and read_records(tmp_path / "s.jsonl") == first
    assert {r["part"] for r in first} == {"encoders", "scale"} and all(r["share"] > 0 for r in first if "share" in r)
    with pytest.raises(UsageError, match="no such part"):
        list(measure_speed(**asked | {"parts": ["nonsense"]}))


def test_two_processes_find_what_one_does(base):
    asked = {
        "base": str(base),
        "method": "coop",
        "classes": 4,
        "precision": "fp32",
        "device": "cpu",
        "images": 32,
    }
    one, two = (in_a_process(Alone(**asked, num_processes=n), OMP_NUM_THREADS="1") for n in (1, 2))
    assert one["digest"] == two["digest"] and two["start_up"] > one["start_up"]
    assert one["peak"] > one["before"] > 1e8


RECORDS = [
    {
        "part": "scan",
        "method": "cocoop",
        "classes": 50,
        "precision": "fp32",
        "whole": 5,
        "seconds": {"ours": 9.0},
        "ratio": {"exact": 20.0, "ours": 31.0},
        "counted": {"exact": 20.0, "ours": 40.0},
        "steps": {"probes": 1.0},
    },
    *(
        {
            "part": "growth",
            "method": "coop",
            "classes": n,
            "precision": "fp32",
            "whole": 5,
            "seconds": s,
            "before": 1e8,
            "peak": p,
        }
        for n, s, p in ((10, 1.0, 3e8), (200, 7.0, 3e8))
    ),
    {"part": "cache", "what": "unchanged", "seconds": {"first": 8.0, "again": 1.2}},
]


def test_the_card_says_which_targets_were_met_and_why_not():
    records = [record | {"base": "b", "device": "cpu", "threads": 1, "images": 256} for record in RECORDS]
    found = {t.name: t.met for t in targets({part: [r for r in records if r["part"] == part] for part in PARTS})}
    assert found == {"CoCoOp, 50 classes": True, "growth, time": False, "growth, memory": True, "unchanged": True}
    card = performance(records)
    assert "| the paper's recipe / a scan, CoCoOp, 50 classes | at least 30 | 31.0 | met |" in card
    assert card.count("**missed**") == 1 and "Every class is screened" in card and "## Rivals" not in card


def test_the_shipped_card_is_that_of_its_records():
    records = read_records(ROOT / "cards" / "performance.jsonl")
    assert performance(records) == (ROOT / "cards" / "performance.md").read_text(encoding="utf-8")


def test_the_plan_quotes_the_simulation():
    plan = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for r in scale.simulate():
        if r["plan"] == "adapters":
            assert f"| {r['way']} | {r['hours']:.2f} | {100 * r['efficiency']:.0f} % |" in plan
        elif r["processes"] in (1, 8, 64, 512):
            assert f"| {r['processes']} | {r['seconds']:.1f} | {100 * r['efficiency']:.0f} % |" in plan
            assert r["processes"] == 1 or f"{r['gathered_mb']} MB" in plan


def test_shares_are_even_and_many_gpus_wait_for_the_slowest():
    assert scale.shares(50, 8) == [7, 7, 6, 6, 6, 6, 6, 6] and scale.shares(3, 5) == [1, 1, 1, 0, 0]
    seconds = [sum(scale.scan_seconds(vit_b16(1000), n).values()) for n in (1, 8, 64)]
    assert seconds[0] > seconds[1] > seconds[2] > seconds[0] / 64
