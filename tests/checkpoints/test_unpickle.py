"""Nothing in a pickle is ever run, whatever it was written for."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from dassl import save_checkpoint

from hf_ci.checkpoints.unpickle import unpickle
from hf_ci.errors import AdapterError, Inconclusive


class Call:
    """Unpickled in the usual way, it calls."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value, **options) -> bytes:
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_live_optimisers_and_schedules_are_passed_over(optimizer):
    weight = torch.nn.Parameter(torch.ones(2))
    live = optimizer([weight], lr=0.1)
    weight.grad = torch.ones(2)
    live.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(live, 10)
    found = unpickle(saved({"ctx": weight.data, "optimizer": live, "scheduler": schedule}), "x.pt")
    assert found["ctx"].shape == (2,) and not hasattr(found["scheduler"], "optimizer")


def test_a_real_layout_is_refused_without_the_stubs(tmp_path):
    """So the test files hold what real ones hold, and the stubs are what lets them through."""
    content = save_checkpoint({"ctx": torch.zeros(4, 8)}, tmp_path).read_bytes()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(content), weights_only=True)
    assert unpickle(content, "x")["state_dict"]["ctx"].shape == (4, 8)


OPTIONS = {"as now": {}, "protocol 4": {"pickle_protocol": 4}, "before 1.6": {"_use_new_zipfile_serialization": False}}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda path: Call(os.system, f"touch {path}"), "system"),
        (lambda path: Call(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: Call(torch.optim.SGD.mro), "mro|getattr"),
        (lambda path: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["system", "eval", "method", "module"],
)
def test_what_would_run_is_refused_by_name(tmp_path, value, named, options):
    content = saved({"ctx": torch.zeros(2, 2), "x": value(tmp_path / "ran")}, **options)
    with pytest.raises(Inconclusive, match=f"the pickle wants '.*({named})'"):
        unpickle(content, "model.pth.tar-10")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_torch_did_not_write_is_refused_by_name(tmp_path):
    with pytest.raises(Inconclusive, match="the pickle wants '.*system'"):
        unpickle(pickle.dumps(Call(os.system, f"touch {tmp_path / 'ran'}")), "x.pt")
    assert not (tmp_path / "ran").exists()


def test_what_this_process_allows_otherwise_counts_for_nothing():
    with torch.serialization.safe_globals([torch.nn.Linear]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(Inconclusive, match="Linear"):
            unpickle(saved(torch.nn.Linear(2, 2)), "x.pt")
        assert set(torch.serialization.get_safe_globals()) == before


def test_compressed_and_damaged_archives_are_refused():
    plain = zipfile.ZipFile(io.BytesIO(saved({"ctx": torch.zeros(1000)})))
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(AdapterError, match="compressed"):
        unpickle(packed.getvalue(), "x.pt")
    whole = saved({"ctx": torch.zeros(10)})
    for content in (b"", b"x", whole[:-100], whole[:300], pickle.dumps({"a": 1})):
        with pytest.raises(AdapterError, match="cannot be read"):
            unpickle(content, "x.pt")


def test_a_tensor_larger_than_its_storage_is_refused():
    whole = zipfile.ZipFile(io.BytesIO(saved({"ctx": torch.zeros(4)})))
    with zipfile.ZipFile(lying := io.BytesIO(), "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("data.pkl"):
                assert b"K\x04t" in content
                content = content.replace(b"K\x04t", b"J\x00\x00\x00\x10t").replace(
                    b"K\x04\x85", b"J\x00\x00\x00\x10\x85"
                )
            archive.writestr(name, content)
    with pytest.raises(AdapterError, match="cannot be read"):
        unpickle(lying.getvalue(), "x.pt")
