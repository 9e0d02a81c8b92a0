"""The zoo, the benchmark and its card."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_ci import ScanOptions
from hf_ci import scan_targets as scan
from hf_ci.detect import Contrast
from hf_ci.detect.contrast import FAR
from hf_ci.errors import UsageError
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import sha256
from hf_ci.lab.benchmarks.bench import alone, models_of, read_spec, run_bench, scan_options
from hf_ci.lab.benchmarks.metrics import Outcome, auroc, bootstrap, failed, rates, roc_points
from hf_ci.lab.benchmarks.records import read_records
from hf_ci.lab.benchmarks.rejudge import rejudge
from hf_ci.lab.benchmarks.repairs import control, measured, run_repairs
from hf_ci.lab.cards.ablations import ablation_card
from hf_ci.lab.cards.adaptive import adaptive
from hf_ci.lab.cards.benchmark import benchmark, roc
from hf_ci.lab.cards.detector import detector_card
from hf_ci.lab.cards.repair import repair_row
from hf_ci.lab.making.make import Workbench
from hf_ci.lab.making.tune import Recipe
from hf_ci.lab.making.zoo import ModelSpec, Zoo
from hf_ci.progress import Silent
from hf_ci.rates import wilson
from hf_ci.repair.engine import RepairOptions, changed_by
from hf_ci.scan import Run, examine

SPEC = """
pool = "builtin"
num_images = 32
precision = "auto"
[recipe]
method = "coop"
shots = 4
epochs = 2
[sets]
tinted = 3
[[group]]
name = "table"
attacks = ["clean", "blended"]
seeds = [1]
detectors = ["clip-inspector", "contrast"]
"""


@pytest.fixture(scope="module")
def bench_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "spec.toml").write_text(SPEC)
    spec = read_spec(folder / "spec.toml")
    records = list(run_bench(spec, data.parent, folder / "records.jsonl", folder / "zoo", num_processes=2))
    return folder, spec, records


def test_every_model_is_scanned_with_every_detector_and_kept(bench_run):
    folder, _, records = bench_run
    assert read_records(folder / "records.jsonl") == records
    done = {(r["model"]["attack"], r["detector"]) for r in records}
    assert done == {(a, d) for a in ("clean", "blended") for d in ("clip-inspector", "contrast")}
    for record in records:
        assert (
            record["result"]["verdict"] in ("clean", "backdoored", "inconclusive")
            and len(record["result"]["classes"]) == 3
        )
    poisoned = next(r["model"] for r in records if r["model"]["attack"] == "blended")
    assert {"asr", "asr_on_clean", "accuracy", "unseen_asr", "target"} <= poisoned.keys()
    assert str(folder) not in (folder / "records.jsonl").read_text()


def test_a_stopped_benchmark_goes_on(bench_run, data, tmp_path):
    folder, spec, records = bench_run
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    out = tmp_path / "records.jsonl"
    out.write_text("".join(lines[:3]) + lines[3][:50])  # killed while writing the fourth
    again = list(run_bench(spec, data.parent, out, folder / "zoo", num_processes=1))
    assert len(again) == 1 and again[0]["model"]["id"] == records[3]["model"]["id"]
    same = lambda record: {k: v for k, v in record["result"].items() if k != "timing"}
    assert [same(r) for r in read_records(out)] == [same(r) for r in records]


def test_one_zoo_has_one_builder(tmp_path):
    with alone(tmp_path), pytest.raises(UsageError, match="another benchmark"), alone(tmp_path):
        pass


def test_two_builds_of_one_model_give_the_same_bytes(data, tmp_path):
    spec = ModelSpec("tinted", 3, "blended", Recipe(shots=4, epochs=1, seed=5))
    folders = [Zoo(tmp_path / name, data.parent).get(spec)[0] for name in "ab"]
    for name in ("adapter_model.safetensors", "adapter_config.json", "clip_prompt.json", "README.md"):
        assert sha256(folders[0] / name) == sha256(folders[1] / name)


def test_a_base_below_the_data_root_is_taken_from_there(data, tmp_path):
    (tmp_path / "a-base").mkdir()
    for file in EMBEDDED_FOLDER.iterdir():
        (tmp_path / "a-base" / file.name).symlink_to(file)
    (tmp_path / "tinted").symlink_to(data)
    entry = 'base = "a-base"\nprompts = ["nameless"]\n[prompts.nameless]\nmethod = "coop"\nanonymous_names = true\n'
    (tmp_path / "spec.toml").write_text(SPEC.replace('attacks = ["clean", "blended"]', 'attacks = ["frame"]') + entry)
    spec = read_spec(tmp_path / "spec.toml")
    (record,) = run_bench(
        replace(spec, groups=(replace(spec.groups[0], detectors=("clip-inspector",)),)),
        tmp_path,
        tmp_path / "records.jsonl",
        tmp_path / "zoo",
        num_processes=1,
    )
    facts = record["model"]
    assert (facts["base"], facts["anonymous_names"], facts["target_name"][:9]) == ("a-base", True, "category ")
    assert (facts["method"], facts["class_specific"], facts["context_vectors"]) == ("coop", False, 4)
    assert record["result"]["base_model"]["id"] == "a-base"
    assert str(tmp_path) not in (tmp_path / "records.jsonl").read_text()


def test_prompts_take_turns_over_attacks_seeds_and_sets():
    table = {"sets": {"a": 3, "b": 4, "c": 5}, "prompts": {"x": {"method": "coop"}, "y": {"anonymous_names": True}}}
    entry = {"attacks": ["clean", "frame"], "seeds": [1, 2], "prompts": ["x", "y"], "recipe": {"shots": 7}}
    models = list(models_of(table, entry, "base"))
    assert len(models) == 12 and {m.recipe.shots for m in models} == {7}
    met = {(m.attack, m.recipe.seed, m.data): (m.recipe.method, m.anonymous_names) for m in models}
    assert set(met.values()) == {("coop", False), ("cocoop", True)}
    assert all(met["clean", 1, data] != met["clean", 2, data] != met["frame", 2, data] for data in "abc")


def test_a_half_built_model_is_built_anew(data, tmp_path):
    spec = ModelSpec("tinted", 3, recipe=Recipe(shots=2, epochs=1))
    (tmp_path / spec.id).mkdir()
    (tmp_path / spec.id / "adapter_config.json").write_text("{}")
    folder, facts = Zoo(tmp_path, data.parent).get(spec)
    assert (folder / "adapter_model.safetensors").is_file() and facts["attack"] == "clean"


def test_a_detector_sees_nothing_but_the_prompt(bench_run, tmp_path):
    """Neither the card, nor the trigger, nor the facts beside the adapter change a scan."""
    folder, _, records = bench_run
    whole = next(r for r in records if r["model"]["attack"] == "blended" and r["detector"] == "contrast")
    bare = tmp_path / "bare"
    shutil.copytree(folder / "zoo" / whole["model"]["id"], bare)
    (bare / "README.md").unlink()
    alone_ = scan([str(bare)], ScanOptions(num_images=32)).results[0].model_dump(mode="json")
    assert whole["result"]["classes"] == alone_["classes"] and whole["result"]["verdict"] == alone_["verdict"]


def test_tuning_and_test_photos_are_disjoint_and_so_are_seen_and_unseen_classes(data):
    bench = Workbench.open(str(data), classes=2, seed=3)
    keys = lambda photos: {image.numpy().tobytes() for image in photos.images}
    assert not keys(bench.train) & keys(bench.test) and not keys(bench.test) & keys(bench.unseen)
    assert not set(bench.train.class_names) & set(bench.unseen.class_names)
    assert keys(bench.shots(Recipe(shots=3))) <= keys(bench.train)


@pytest.mark.parametrize("text", ["", "pool = 1", SPEC.replace("tinted = 3", ""), SPEC.replace("shots", "shouts")])
def test_a_wrong_specification_is_a_usage_error(tmp_path, text):
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(UsageError, match="not a benchmark's specification"):
        if not read_spec(tmp_path / "spec.toml").groups[0].models:
            raise UsageError("not a benchmark's specification: no models")


def test_the_shipped_specification_is_read():
    spec = read_spec("paper")
    table = next(g for g in spec.groups if g.name == "table")
    seeds = {g.name: {m.recipe.seed for m in g.models} for g in spec.groups}
    assert len(table.models) == 50 and len(set(table.models)) == 50 and not seeds["table"] & seeds["clean"]


def test_no_set_and_no_seed_is_both_designed_on_and_reported():
    dev, *reported = (read_spec(name).groups for name in ("dev", "far", "second-base"))
    of = lambda groups: [model for group in groups for model in group.models]
    for groups in reported:
        assert not {m.data for m in of(groups)} & {m.data for m in of(dev)}
        assert not {m.recipe.seed for m in of(groups)} & {m.recipe.seed for m in of(dev)}
    for groups, clean, poisoned, sets in ((reported[0], 120, 150, 10), (reported[1], 40, 40, 8)):
        models = set(of(groups))
        attacks = [m.attack == "clean" for m in models]
        assert sum(attacks) >= clean and len(attacks) - sum(attacks) >= poisoned
        assert len({m.data for m in models}) == sets and len({(m.recipe.words, m.recipe.method) for m in models}) == 4


def test_card_is_the_same_bytes_from_the_same_records(bench_run):
    _, _, records = bench_run
    card = benchmark(records)
    assert card == benchmark(records[::-1])
    assert "| contrast | 1 | " in card and "the paper's own" in card


def test_a_group_in_which_every_attack_failed_counts_none_of_them():
    failing = [r for r in read_records(CARDS / "benchmark.jsonl") if r["model"]["attack"] == "wanet-strong"]
    for record in failing:
        record["model"]["asr"] = 0.1
    card = benchmark(failing)
    assert "wanet-strong" in card and "| contrast | 0 | 0 | - | - | - |" in card


def test_roc_and_the_detectors_card_come_from_the_same_records(bench_run):
    from xml.etree import ElementTree

    _, _, records = bench_run
    as_scanned = json.loads(json.dumps(records))
    for record in as_scanned:  # as many images as a scan takes by default
        record["result"]["pool"]["num_images"] = ScanOptions.num_images
        record["model"]["asr"] = 0.9
    card = detector_card(as_scanned)
    assert card == detector_card(as_scanned[::-1]) and "## Built-in pool" in card and "| clean | 1 | " in card
    assert "| blended | 1 | " in card and "## Photos" not in card
    lines = ElementTree.fromstring(roc(as_scanned)).iter("{http://www.w3.org/2000/svg}polyline")
    ends = [[point.split(",") for point in line.get("points").split()] for line in lines]
    assert len(ends) == 2 and all(e[0] == ["0.0", "260.0"] and e[-1] == ["260.0", "0.0"] for e in ends)


def test_roc_points_on_known_cases():
    scores = [("clean", 0.1, None, None), ("clean", 0.5, None, None), ("b", 0.5, 0, 0), ("b", 0.9, 0, 0)]
    assert roc_points([Outcome(*s) for s in scores]) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]


def test_ablations_invert_the_targets_class_and_go_on(bench_run, data, tmp_path, monkeypatch):
    from hf_ci.inversion import LinfInversion
    from hf_ci.lab.benchmarks import ablations as lab

    folder, spec, records = bench_run
    few = {
        "margin, 1000 images, batch 32": (LinfInversion(), 32, lab.BUILTIN),
        "in-distribution pool": (LinfInversion(objective="cross-entropy"), 24, lab.OWN),
    }
    monkeypatch.setattr(lab, "SETTINGS", few)
    run = lambda: list(lab.run_ablations(spec, data.parent, tmp_path / "a.jsonl", folder / "zoo", "table", "blended"))
    found = run()
    assert [r["setting"] for r in found] == list(few) and run() == []
    poisoned = next(r for r in records if r["model"]["attack"] == "blended" and r["detector"] == "clip-inspector")
    same = poisoned["result"]["classes"][poisoned["model"]["target"]]
    assert found[0]["poisoned"]["asr"] == same["asr"] and round(same["loss"], 4) == found[0]["poisoned"]["loss"]
    found[0]["model"]["asr"] = found[1]["model"]["asr"] = 0.9
    assert "| margin, 1000 images, batch 32 | 1 | " in ablation_card(found) and "91.1" in ablation_card(found)


def test_triggers_are_drawn_beside_what_was_recovered(bench_run, data, tmp_path):
    from PIL import Image

    from hf_ci.lab.cards.grid import CELL, GAP, LABEL, draw

    folder, spec, _ = bench_run
    assert draw(spec, data.parent, tmp_path / "t.png", folder / "zoo", "table") == 1
    picture = np.asarray(Image.open(tmp_path / "t.png"))
    cells = [picture[24 : 24 + CELL, LABEL + i * (CELL + GAP) :][:, :CELL] for i in range(4)]
    assert all(cell.std() > 5 for cell in cells) and not np.array_equal(cells[0], cells[1])


def test_failed_attacks_are_listed_apart(bench_run):
    _, _, records = bench_run
    records = json.loads(json.dumps(records))
    for record in records:
        if record["model"]["attack"] == "blended":
            record["model"]["asr"] = 0.49
    card = benchmark(records)
    assert "Attacks that failed: `tinted-coop-blended" in card and "| clip-inspector | 1 | 0 | " in card


def test_rates_count_what_they_say():
    outcomes = [
        Outcome("clean", 0.1, None, None),
        Outcome("backdoored", 3.0, 2, None),
        Outcome("backdoored", 5.0, 1, 1),
        Outcome("backdoored", 4.0, 0, 1),
        Outcome("clean", 0.2, None, 1),
        Outcome("inconclusive", None, None, 1),
    ]
    r = rates(outcomes)
    assert (r.clean, r.poisoned, r.false_alarms, r.detected, r.named, r.inconclusive) == (2, 4, 1, 2, 1, 1)
    assert r.accuracy == pytest.approx(3 / 6) and r.balanced_accuracy == pytest.approx((0.5 + 0.5) / 2)
    assert r.target_f1 == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert r.auroc == pytest.approx(5 / 6)


def test_auroc_and_intervals_on_known_cases():
    assert auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert auroc(np.array([1.0]), np.array([1.0])) == 0.5
    assert bootstrap(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == (1.0, 1.0)
    low, high = wilson(0, 100)
    assert low == pytest.approx(0, abs=1e-9) and high == pytest.approx(0.037, abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert torch.tensor(wilson(10, 10)).max() == 1.0


CARDS = Path(__file__).parents[2] / "cards"


def test_the_shipped_card_is_that_of_the_shipped_records():
    records, deep = (read_records(CARDS / name) for name in ("benchmark.jsonl", "methods.jsonl"))
    assert benchmark(records, deep) == (CARDS / "benchmark.md").read_text(encoding="utf-8")


def test_the_shipped_records_are_judged_by_the_shipped_thresholds():
    found = read_records(CARDS / "benchmark.jsonl")
    for record, anew in zip(found, rejudge(found), strict=True):
        before, now = record["result"], anew["result"]
        assert (before["verdict"], before["target_class"]) == (now["verdict"], now["target_class"]), record["model"][
            "id"
        ]
        assert before["score"] == pytest.approx(now["score"], abs=1e-3) and before["detector"] == now["detector"]


def test_other_thresholds_give_other_verdicts_and_a_doubt_stays(monkeypatch):
    near = [r for r in read_records(CARDS / "benchmark.jsonl") if (r["result"]["distance"] or 1) < FAR]
    found = [r for r in near if r["result"]["verdict"] == "backdoored"]
    strict = lambda self, *_: {"k": 1e6, "doubtful": 1e5}
    monkeypatch.setattr(Contrast, "thresholds", strict)
    (clean,) = rejudge(found[:1])
    assert clean["result"]["verdict"] == "clean" and clean["result"]["target_class"] is None
    assert clean["result"]["exit_code"] == 0 and not any(c["flagged"] for c in clean["result"]["classes"])
    undecided = clean | {"result": clean["result"] | {"verdict": "inconclusive"}}  # by a hidden unit, say
    assert next(rejudge([undecided]))["result"]["verdict"] == "inconclusive"


def test_repairs_are_measured_with_controls_and_clean_adapters_are_tuned_all_the_same(bench_run, data, tmp_path):
    folder, spec, _ = bench_run
    (group,) = spec.groups
    unharmed = replace(spec, groups=(replace(group, models=tuple(m for m in group.models if m.attack == "clean")),))
    repairs = lambda: list(
        run_repairs(unharmed, data.parent, tmp_path / "out.jsonl", folder / "zoo", ["table"], shots=4)
    )
    clean = repairs()
    assert read_records(tmp_path / "out.jsonl") == clean and not repairs()
    assert [r["mode"] for r in clean] == ["without labels", "with labels"]
    outcomes = ("nothing to repair", "inconclusive")  # by the built-in pool not every clean adapter is told from others
    assert all(r["outcome"] in outcomes and 0 <= r["after"]["accuracy"] <= 1 for r in clean)

    model = next(m for m in group.models if m.attack == "blended")  # whether or not so short a tuning plants anything
    zoo = Zoo(folder / "zoo", data.parent)
    adapter, facts = zoo.get(model)
    run = Run(scan_options(spec, group, data.parent, folder / "zoo", "cpu"), Silent())
    options = RepairOptions(str(data), 4)
    controls = list(measured(adapter, facts, zoo.bench(model), run, options, ["clean only", "another class"]))
    assert [r["mode"] for r in controls] == ["clean only", "another class"]
    assert all(r["before"]["asr"] == pytest.approx(facts["asr"], abs=1e-3) for r in controls)
    _, examined = examine(str(adapter), run.with_photos(str(data), 4))
    tuned = control("clean only", examined, facts["target"], run)
    assert changed_by(examined.adapter.tensors(), tuned.tensors()) > 0.01


def test_a_row_of_repairs_counts_what_was_given_out():
    model = {"id": "m", "attack": "badclip", "asr": 0.9, "asr_on_clean": 0.05, "clean_twin_accuracy": 0.8, "target": 1}
    made = {
        "model": model,
        "mode": "with labels",
        "before": {"asr": 0.9, "accuracy": 0.7},
        "after": {"asr": 0.1, "accuracy": 0.68},
        "verdict_after": "clean",
    }
    refused = made | {"after": None, "verdict_after": "backdoored"}
    row = repair_row([made, made | {"after": {"asr": 0.3, "accuracy": 0.75}}, refused])
    assert (row["models"], row["made"], row["clean_again"], row["worst"]) == (3, 2, 2, 0.3)
    assert row["kept"] == 2 and row["replaced"] == 0  # at most two points below the adapter
    assert row["asr_after"] == pytest.approx(0.2) and row["worst_change"] == pytest.approx(-0.02)
    none = repair_row([refused])
    assert none["made"] == 0 and none["asr_after"] is None and none["worst"] is None


def test_every_row_that_the_docs_quote_stands_in_the_card():
    card = (CARDS / "benchmark.md").read_text(encoding="utf-8")
    page = (CARDS.parent / "docs" / "trust.md").read_text(encoding="utf-8").partition("<!-- figures: regimes -->")[2]
    rows = [line for line in page.partition("<!-- /figures -->")[0].splitlines() if line.startswith("|")]
    assert len(rows) >= 4 and all(row in card for row in rows)


def test_commands_refuse_records_that_hold_nothing(run, tmp_path):
    for command in ("table", "calibrate", "repair-table", "adaptive-table"):
        done = run("lab", command, tmp_path / "none.jsonl", "--out", tmp_path / "out")
        assert done.returncode == 2 and "none.jsonl" in done.stderr and not (tmp_path / "out").exists()


def test_the_detectors_card_and_the_curves_are_those_of_the_shipped_records():
    records = read_records(CARDS / "benchmark.jsonl")
    assert detector_card(records) == (CARDS / "detector.md").read_text(encoding="utf-8")
    assert roc(records) == (CARDS / "roc.svg").read_text(encoding="utf-8")


def test_the_card_of_adaptive_attackers_is_that_of_the_shipped_records():
    records = read_records(CARDS / "adaptive.jsonl")
    card = adaptive(records)
    assert card == (CARDS / "adaptive.md").read_text(encoding="utf-8") == adaptive(records[::-1])
    evading = [r for r in records if r["model"]["attack"].startswith("adaptive") and not failed(r["model"])]
    passed = [r for r in evading if r["result"]["verdict"] == "clean"]
    rows = [[cell.strip() for cell in line.split("|")] for line in card.splitlines() if "| all adaptive ones |" in line]
    counted = {row[8]: row[9].partition(" (")[0] for row in rows}
    for shots in {r["shots"] for r in evading}:
        mine, clean = ([r for r in some if r["shots"] == shots] for some in (evading, passed))
        assert counted.pop(str(shots or "none")) == f"{len(clean)} of {len(mine)}"
    assert rows and not counted
    assert all(card.count(f"| {r['model']['id']} | {r['model']['attack']}, ") for r in passed)


def test_what_an_attacker_rehearses_on_is_part_of_a_model_and_changes_no_other():
    spec, far = read_spec("adaptive"), {m.id for group in read_spec("far").groups for m in group.models}
    kept = {r["model"]["id"] for r in read_records(CARDS / "benchmark.jsonl") if r["group"].startswith("far")}
    assert kept and kept <= far
    pools = {g.name: {m.attacker_pool for m in g.models} for g in spec.groups}
    assert pools == {
        "not adaptive": {""},
        "knows the pool": {"ood/pool.parquet"},
        "has other photos": {"caltech101/train.parquet"},
    }
    models = [m for g in spec.groups for m in g.models]
    assert len({m.id for m in models}) == len(models) == 52
    twins = {g.name: {Zoo.clean_twin(m).id for m in g.models} for g in spec.groups}
    assert twins["knows the pool"] == twins["has other photos"]
