"""Hidden units that no ordinary image flips: a backdoor in one is found, clean adapters have none that matters."""

from dataclasses import replace

import pytest
import torch
from making import ANIMALS, made_adapter

from hf_ci.detect import Contrast
from hf_ci.detect.units import Unit, check_gain, examine_units, hidden_part, push, unjudged, with_units
from hf_ci.errors import AdapterError
from hf_ci.inversion import Inversion
from hf_ci.prompts import PromptedCLIP


def inversion(c, exclusive, **other):
    return Inversion(c, 0.0, exclusive, torch.zeros(3, 8, 8), reference_asr=0.0, exclusive_asr=exclusive, **other)


OPENED = Unit(3, active=0.0, c=1, possible=0.9, flipped=0.9, inversion=inversion(1, 0.8, forward=3, backward=2))


def test_what_opens_a_unit_counts_as_any_trigger():
    before = [inversion(c, 0.05, probe="a wave", probe_asr=0.1, forward=10, backward=5) for c in range(5)]
    after = with_units(before, [OPENED])
    assert [i.exclusive_asr for i in after] == [0.05, 0.8, 0.05, 0.05, 0.05]
    assert (after[1].probe, after[1].forward, after[1].backward) == ("a wave", 13, 7)
    verdict = Contrast().judge(after, ANIMALS)
    assert (verdict.verdict, verdict.target) == ("backdoored", 1)
    better = [inversion(c, 0.9) for c in range(5)]
    assert with_units(better, [OPENED]) == better


def test_what_could_act_and_was_not_opened_is_not_judged():
    shut = replace(OPENED, flipped=0.2, forced=0.4)  # a larger trigger that was made to flip it drives images somewhere
    assert not unjudged([OPENED, replace(shut, forced=0.1)], ANIMALS)
    for unit in (shut, replace(OPENED, inversion=None)):
        (reason,) = unjudged([unit], ANIMALS)
        assert "hidden unit 3" in reason and "'dog'" in reason and "90%" in reason


def test_the_hidden_part_is_what_no_gradient_tells(clip):
    """Of the meta-net's answer along a push, all that is not the line which it starts on."""
    model = PromptedCLIP.from_adapter(made_adapter(clip), clip)
    net, features = model.prompt.meta_net, torch.nn.functional.normalize(torch.randn(6, clip.feature_dim), dim=1)
    pre = net.linear1(features)
    for unit in range(4):
        pushed = push(model, features, unit, 2.0)
        assert ((net.linear1(pushed)[:, unit] > 0) != (pre[:, unit] > 0)).any()
        line = ((pre > 0) * net.linear1(pushed)) @ net.linear2.weight.T + net.linear2.bias
        found = hidden_part(model, features, pushed, torch.ones(pre.shape[1]))
        torch.testing.assert_close(found, net(pushed) - line, atol=1e-4, rtol=1e-3)


def test_a_prompt_without_a_meta_net_has_no_units(clip):
    assert examine_units(made_adapter(clip, "coop"), clip, torch.zeros(2, 3, 64, 64, dtype=torch.uint8)) == ()


def test_contexts_that_may_overflow_are_refused(clip):
    adapter = made_adapter(clip)
    check_gain(adapter)
    for name, factor in (("linear2.weight", 1e7), ("linear1.weight", 1e30), ("linear2.bias", 1e38)):
        huge = adapter.meta_net | {name: adapter.meta_net[name] * factor}
        with pytest.raises(AdapterError, match="overflow"):
            check_gain(replace(adapter, meta_net=huge))
    with pytest.raises(AdapterError, match="overflow"):
        check_gain(replace(made_adapter(clip, "coop"), context=adapter.context * 1e6))
    wide = adapter.meta_net | {"linear1.weight": torch.zeros(5000, clip.feature_dim)}
    with pytest.raises(AdapterError, match="5000 hidden units"):
        check_gain(replace(adapter, meta_net=wide))
