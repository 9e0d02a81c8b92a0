"""Hostile targets: each is a folder, made from a good adapter's, with the exit code and the words that it has to end with.

In most the lie is in the files; nothing of what they hold may run, and none may be judged as if it were whole.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dassl import save_checkpoint
from making import raw_safetensors
from safetensors.torch import load, save

from hf_ci.files import CONFIG, FILES, PROMPT, WEIGHTS

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """make: spoils the folder. target: of the scan, below it. said: in the reasons. code: the exit code."""

    make: Callable[[Path], None]
    said: str
    code: int = 4
    target: str = "."


def case(said: str, code: int = 4, target: str = "."):
    def keep(make):
        CASES[make.__name__.replace("_", " ")] = Case(make, said, code, target)
        return make

    return keep


def config(folder: Path, name: str = CONFIG, **fields) -> None:
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(found | fields))


def weights(folder: Path, change: Callable[[dict], dict]) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(save(change(tensors)))


def header(folder: Path, table: dict | bytes, data: bytes = b"") -> None:
    (folder / WEIGHTS).write_bytes(raw_safetensors(table, data))


def without_adapter(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink()


class Runs:
    """Unpickled in the usual way, it makes a file called pwned in the working directory."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


# ---------------------------------------------------------------- pickles

PICKLE = "wants 'posix.system'"


@case(PICKLE, target="model.pth.tar-50")
def code_in_the_place_of_a_checkpoint(folder):
    without_adapter(folder)
    torch.save(Runs(), folder / "model.pth.tar-50")


@case(PICKLE, target="model.pth.tar-50")
def code_in_an_optimisers_state(folder):
    without_adapter(folder)
    torch.save(
        {"state_dict": {"ctx": torch.zeros(4, 8)}, "optimizer": {"state": [Runs()]}}, folder / "model.pth.tar-50"
    )


@case(PICKLE, target="model.pth.tar-50")
def code_nested_in_a_key(folder):
    without_adapter(folder)
    torch.save({"state_dict": {"ctx": {"deep": [({"x": Runs()},)]}}}, folder / "model.pth.tar-50")


@case("posix.system", target="ctx.pt")
def code_in_a_plain_pickle(folder):
    without_adapter(folder)
    (folder / "ctx.pt").write_bytes(pickle.dumps(Runs(), protocol=4))


@case("compressed", target="ctx.pt")
def a_zip_bomb(folder):
    without_adapter(folder)
    with zipfile.ZipFile(folder / "ctx.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))


@case("cannot be read", target="ctx.pt")
def a_zip_whose_members_climb_out(folder):
    without_adapter(folder)
    torch.save({"ctx": torch.zeros(4, 8)}, file := io.BytesIO())
    with zipfile.ZipFile(file) as good, zipfile.ZipFile(folder / "ctx.pt", "w") as bad:
        for entry in good.infolist():
            bad.writestr(f"../../{entry.filename}", good.read(entry))


@case("more than a prompt's checkpoint takes", target="model.pth.tar-50")
def a_checkpoint_of_50_GB(folder):
    without_adapter(folder)
    (folder / "model.pth.tar-50").touch()
    os.truncate(folder / "model.pth.tar-50", 50 * 10**9)


@case("does not tell which CLIP")
def a_checkpoint_of_another_base(folder):
    without_adapter(folder)
    save_checkpoint({"ctx": torch.zeros(4, 8)}, folder)


# ---------------------------------------------------------------- safetensors that lie


@case("cannot be read")
def a_header_longer_than_the_file(folder):
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")


@case("cannot be read")
def a_header_of_100_MB(folder):
    header(folder, b'{"__metadata__": {"a": "' + b"x" * 10**8 + b'"}}')


@case("cannot be read")
def tensors_that_overlap(folder):
    spans = {"prompt_embeddings": [0, 512], "base_model.meta_net.linear1.bias": [256, 768]}
    header(folder, {k: {"dtype": "F32", "shape": [128], "data_offsets": at} for k, at in spans.items()}, bytes(768))


@case("cannot be read")
def one_name_twice(folder):
    one = '"prompt_embeddings": {"dtype": "F32", "shape": [4, 8], "data_offsets": [%d, %d]}'
    header(folder, ("{" + one % (0, 128) + ", " + one % (128, 256) + "}").encode(), bytes(256))


@case("cannot be read")
def a_shape_larger_than_its_bytes(folder):
    header(folder, {"prompt_embeddings": {"dtype": "F32", "shape": [10**6, 256], "data_offsets": [0, 128]}}, bytes(128))


@case("expected floating point")
def whole_numbers_for_weights(folder):
    weights(folder, lambda t: t | {"prompt_embeddings": torch.zeros(4, 256, dtype=torch.int64)})


@case("no matrix prompt_embeddings")
def a_prompt_of_another_rank(folder):
    weights(folder, lambda t: t | {"prompt_embeddings": torch.zeros(4, 4, 16)})


@case("dimensions")
def a_prompt_of_another_width(folder):
    weights(folder, lambda t: t | {"prompt_embeddings": torch.zeros(4, 16)})


def filled(value: float) -> Callable[[dict], dict]:
    return lambda t: t | {"prompt_embeddings": torch.full_like(t["prompt_embeddings"], value)}


@case("not finite")
def a_prompt_that_is_not_a_number(folder):
    weights(folder, filled(float("nan")))


@case("not finite")
def an_infinite_prompt(folder):
    weights(folder, filled(float("inf")))


@case("long")
def a_prompt_that_acts_through_overflow(folder):
    weights(folder, filled(1e30))


@case("", code=0)
def a_prompt_of_denormals(folder):
    """Nothing but the names is left of the prompt: that is judged as any other."""
    weights(folder, filled(1e-42))


@case("MB, at most")
def weights_of_50_GB(folder):
    os.truncate(folder / WEIGHTS, 50 * 10**9)


# ---------------------------------------------------------------- configurations that lie


@case("MB, at most")
def a_configuration_of_6_GB(folder):
    os.truncate(folder / CONFIG, 6 * 10**9)


@case("", code=0)
def a_billion_virtual_tokens(folder):
    """PEFT's own count is no part of what is judged, nor allocated for."""
    config(folder, num_virtual_tokens=10**9)


@case("", code=0)
def remote_code_in_the_configuration(folder):
    (folder / "evil.py").write_text("open('pwned', 'w')\nclass Evil: pass\n")
    config(folder, auto_mapping={"parent_library": "evil", "base_model_class": "evil.Evil"}, trust_remote_code=True)


@case("a folder on the machine where it was tuned")
def a_base_on_this_machine(folder):
    (folder / "evil").mkdir()
    (folder / "evil" / "config.json").write_text('{"model_type": "clip"}')
    config(folder, base_model_name_or_path="./evil")


@case("100000 class names")
def a_hundred_thousand_classes(folder):
    config(folder, PROMPT, class_names=[f"class {i}" for i in range(100_000)])


@case("occur more than once")
def a_target_hidden_behind_its_own_name(folder):
    names = json.loads((folder / PROMPT).read_text())["class_names"]
    config(folder, PROMPT, class_names=[*names[:-1], f"{names[0].upper()} "])


@case("class_names must be a list")
def class_names_that_are_numbers(folder):
    config(folder, PROMPT, class_names=[1, 2, 3])


@case("not readable JSON")
def json_nested_too_deeply(folder):
    (folder / PROMPT).write_text("[" * 100_000)


@case("not readable JSON")
def a_configuration_in_latin_1(folder):
    (folder / CONFIG).write_bytes(b'{"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "\xe4"}')


# ---------------------------------------------------------------- what lies around


@case("weights that were not judged")
def other_weights_beside(folder):
    (folder / "adapter_model.bin").write_bytes(b"x")


@case("weights that were not judged")
def a_second_adapter_below(folder):
    (folder / "more").mkdir()
    (folder / "more" / WEIGHTS).write_bytes(b"x")


@case("is no folder or checkpoint here", code=2, target="../../etc")
def a_path_that_climbs_out(folder):
    pass


@case("no adapter", code=3)
def an_empty_folder(folder):
    without_adapter(folder)


@case("there is no adapter_model.safetensors")
def a_weight_file_that_never_ends(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
