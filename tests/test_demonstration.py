"""What a finding looks like: triggers, images and answers, asked of the embedded CLIP."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from making import made_adapter

from hf_ci.cards.safety import with_picture
from hf_ci.demonstration import SHOWN, Untouched, demonstrated, moved
from hf_ci.inversion import Inversion
from hf_ci.inversion.probes import probes
from hf_ci.prompts import PromptedCLIP
from hf_ci.prompts.prompted import reference_adapter
from hf_ci.report import Answers, ClassScore, NamedClass, Report, ScanResult

NAMES = tuple(f"class {i}" for i in range(12))


@pytest.fixture(scope="module")
def pool():
    return torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def inversion(c, family="perturbation", others=()):
    generator = torch.Generator().manual_seed(c)
    shape = (3, 10, 10) if family == "patch" else (3, 64, 64)
    delta = torch.rand(shape, generator=generator)
    delta = delta if family in ("patch", "image") else (delta - 0.5) * 8 / 255
    return Inversion(c, loss=-1.0, asr=0.5, delta=delta, family=family, others=others)


def score(c, family, flagged=True, probe="turn by 90 degrees"):
    return ClassScore(
        index=c,
        name=NAMES[c],
        loss=-1.0,
        asr=0.5,
        score=20.0 - c,
        flagged=flagged,
        family=family,
        probe=probe,
        probe_asr=0.5,
    )


def found(adapter, clip, pool, families, folder=None, target=0):
    inversions = [inversion(c, others=(inversion(c, "patch"),)) for c in range(len(NAMES))]
    inversions[3] = inversion(3, "image")
    classes = [score(c, family, flagged=family != "unflagged") for c, family in enumerate(families)]
    return demonstrated(adapter, clip, pool, inversions, classes, target, "org/model", folder), inversions


@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_the_answers_are_those_on_the_kept_images_and_the_images_have_the_trigger(clip, pool, tmp_path, method):
    adapter = made_adapter(clip, method, NAMES)
    families = ["unflagged", "perturbation", "patch", None, "probe"] + ["unflagged"] * 7
    result, inversions = found(adapter, clip, pool, families, tmp_path, target=4)
    fixed, perturbation, patch, image = result["triggers"]  # the target's first
    assert [one.target.index for one in result["triggers"]] == [4, 1, 2, 3]
    assert (fixed.kind, fixed.reconstructed, fixed.linf) == ("turn by 90 degrees", False, None)
    assert (patch.kind, patch.linf, perturbation.kind) == ("patch", None, "perturbation")
    assert perturbation.linf == pytest.approx(4 / 255, rel=0.01) and result["trigger"] is None
    assert image.examples == () and "changed" not in np.load(image.path)
    models = [PromptedCLIP.from_adapter(one, clip) for one in (adapter, reference_adapter(clip, NAMES))]
    ways = {4: probes(64)["turn by 90 degrees"], 1: inversions[1].trigger()}
    for one in (fixed, perturbation, patch):
        kept = np.load(one.path)
        assert len(one.examples) == len(kept["examples"]) == SHOWN
        if one.target.index in ways:
            changed = ways[one.target.index](torch.from_numpy(kept["examples"]).float() / 255)
            assert np.abs(changed.numpy() * 255 - kept["changed"]).max() <= 0.501
        for name, side in (("examples", "before"), ("changed", "after")):
            with torch.no_grad():
                x = torch.from_numpy(kept[name]).float() / 255
                adapted, by_hand = (model(x).argmax(-1).tolist() for model in models)
            told = [getattr(example, side) for example in one.examples]
            assert [answers.adapter.index for answers in told] == adapted
            assert [answers.hand_written.index for answers in told] == by_hand
            assert all(answers.adapter.name == NAMES[answers.adapter.index] for answers in told)


def test_images_that_the_trigger_moves_come_first_and_then_others_in_their_order():
    """Grey images, answered by how bright they are; the trigger makes them brighter by 64."""

    def ask(images):
        bright = [float(image.float().mean()) for image in images]
        said = lambda here: NamedClass(index=0, name="bright") if here else NamedClass(index=1, name="dark")
        return [Answers(adapter=said(value >= 128), hand_written=said(value >= 170)) for value in bright]

    def shown(*values):
        images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        found = moved(score(0, "perturbation"), lambda x: (x + 64 / 255).clamp(0, 1), Untouched(images, ask))
        examples, kept, changed = found
        assert (changed.int() - kept.int() == 64).all() and len(examples) == len(kept)
        return kept[:, 0, 0, 0].tolist()

    assert shown(180, 10, 110, 70, 20, 90, 30, 40, 100, 105) == [70, 90, 100]  # 180 is bright before, 110 for both then
    assert shown(180, 10, 70, 20) == [70, 180, 10]
    assert shown(10, 20) == [10, 20]


def test_ten_classes_are_shown_and_without_a_folder_nothing_is_kept(clip, pool):
    result, _ = found(made_adapter(clip, "coop", NAMES), clip, pool, ["perturbation"] * 12, target=5)
    indices = [one.target.index for one in result["triggers"]]
    assert indices == [5, 0, 1, 2, 3, 4, 6, 7, 8, 9] and {one.path for one in result["triggers"]} == {""}
    assert result["trigger"] is None


def test_a_name_too_long_for_the_hand_written_prompt_loses_no_finding(clip, pool):
    names = (("w " * (clip.max_length - 4)).strip(), *NAMES[1:])  # with one context vector, start, full stop and end
    adapter = made_adapter(clip, "coop", NAMES)
    adapter = replace(adapter, context=adapter.context[:1], class_names=names)
    result, _ = found(adapter, clip, pool, ["perturbation"] + ["unflagged"] * 11)
    (one,) = result["triggers"]
    assert len(one.examples) == SHOWN and all(example.after.hand_written is None for example in one.examples)


def test_what_is_written_beside_an_adapter_names_no_place_on_this_machine(clip, pool, tmp_path):
    result, _ = found(
        made_adapter(clip, "coop", NAMES), clip, pool, ["perturbation"] * 2 + ["unflagged"] * 10, tmp_path
    )
    assert Path(result["trigger"].path).is_file() and Path(result["triggers"][1].path).is_file()
    report = Report(
        results=(ScanResult(target="org/model", verdict="backdoored", reasons=("one",), exit_code=1, **result),)
    )
    written = with_picture(report, there=True)
    assert str(tmp_path) in report.model_dump_json() and str(tmp_path) not in written.model_dump_json()
    assert written.results[0].trigger.path.endswith("trigger.png")
