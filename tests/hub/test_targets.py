"""Targets and base models through the real client against a loopback Hub."""

import json
import shutil
from functools import partial

import pytest
from datasets import Dataset, Features, Image
from making import made_adapter
from PIL import Image as PILImage

from hf_ci import ScanOptions, scan_targets
from hf_ci.dev.loopback import OWNER_TOKEN
from hf_ci.errors import NothingToScan, UsageError
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.hub.target import parse_target
from hf_ci.prompts import write_adapter

QUICK = ("--num-images", "32", "--format", "json")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("org/model", ("hub", "org/model", None, None)),
        ("org/model@v1.0", ("hub", "org/model", "v1.0", None)),
        ("org/model@refs/pr/3:prompts/a", ("hub", "org/model", "refs/pr/3", "prompts/a")),
        ("org/model:sub", ("hub", "org/model", None, "sub")),
    ],
)
def test_target_grammar(text, expected):
    target = parse_target(text)
    assert (target.kind, target.location, target.revision, target.subfolder) == expected


@pytest.mark.parametrize(
    "text",
    ["model", "-", "./nowhere", "/nowhere/a", "./a/adapter.safetensorz", "adapter.pt", "a/b/c", "org/model@", "~/x"],
)
def test_what_is_no_target_is_a_slip_of_the_pen(text):
    with pytest.raises(UsageError, match="is no folder or checkpoint here, nor of the form org/model"):
        parse_target(text)


@pytest.mark.parametrize("text", ["demo:", "demo:../clip", "nowhere/*"])
def test_a_demo_or_a_pattern_that_names_none_is_nothing_to_scan(text):
    with pytest.raises(NothingToScan):
        parse_target(text)


def test_a_folder_named_like_a_repo_is_neither_until_it_is_said_which(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = r"'org/model' is a folder here and may be a repo on the Hub \(write ./org/model or hf://org/model\)"
    with pytest.raises(UsageError, match=asked):
        parse_target("org/model")
    assert parse_target("org/model/").kind == "folder"  # as a shell completes it
    assert parse_target("./org/model").kind == "folder"
    assert parse_target("hf://org/model").kind == "hub"
    assert parse_target("org").kind == "folder"  # no repo has such a name


def test_no_folder_stands_in_for_a_base_model_or_a_pool_of_the_hub(tmp_path, monkeypatch, adapter_folder):
    """A pull request could otherwise bring a CLIP or photos along that hide its backdoor."""
    (tmp_path / "org" / "some").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for taken in ({"base": "org/some"}, {"pool": "org/some"}):
        with pytest.raises(UsageError, match="'org/some' is a folder here and may be a repo"):
            scan_targets(["./adapter"], ScanOptions(num_images=32, **taken))


def test_an_adapter_brings_no_base_model_along(tmp_path, monkeypatch, adapter_folder):
    """One that is blind, such as with patches of zero, would come out as clean."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "base")
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "org" / "clip")
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    for name in ("./base", "base", str(tmp_path / "base"), "/data/gone/clip", "org/clip"):
        changed = config | {"base_model_name_or_path": name}
        (adapter_folder / "adapter_config.json").write_text(json.dumps(changed))
        (result,) = scan_targets(["./adapter"], ScanOptions(num_images=32)).results
        assert result.exit_code == 4 and f"names {name!r} as its base model, a folder" in result.reasons[0]
        assert "with --base" in result.reasons[0]
    (result,) = scan_targets(
        ["./adapter"], ScanOptions(num_images=32, detector="clip-inspector", base="./base")
    ).results
    assert result.cost and "the adapter names org/clip" in result.warnings[0]


def files_on(clip, folder):
    write_adapter(made_adapter(clip, "coop"), folder, card="# an adapter\n")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def files(clip, tmp_path_factory):
    return files_on(clip, tmp_path_factory.mktemp("adapter") / "a")


@pytest.fixture
def hub(hub, hub_home, run):
    def scan(*args, **env):
        return run("scan", *args, *QUICK, env=hub.env(hub_home) | env)

    hub.scan = scan
    return hub


def result_of(done) -> dict:
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)["results"][0]


def test_the_commit_that_was_scanned_is_in_the_report(hub, files):
    first = hub.add_repo("user/adapter", files)
    second = hub.commit("user/adapter", {"README.md": b"# edited\n"})
    assert first != second
    result = result_of(hub.scan("user/adapter"))
    assert result["revision"] == second and {f["path"] for f in result["files"]} == set(files) - {"README.md"}
    assert result_of(hub.scan(f"user/adapter@{first}"))["revision"] == first
    fetched = [path for _, path in hub.requests if "/resolve/" in path]
    assert fetched and not [p for p in fetched if p.endswith("README.md")]  # what is not read is not fetched


def test_subfolder(hub, files):
    hub.add_repo("user/many", {f"prompts/a/{name}": data for name, data in files.items()})
    assert len(result_of(hub.scan("user/many:prompts/a"))["files"]) == 3
    done = hub.scan("user/many")
    reason = result_of(done)["reasons"][0]
    assert done.returncode == 3 and "found 1 below it: prompts/a (name one, as user/many:prompts/a" in reason


def test_a_whole_model_beside_the_adapter_is_fetched_and_compared_and_elsewhere_is_not(hub, files):
    whole = (EMBEDDED_FOLDER / "model.safetensors").read_bytes()
    hub.add_repo("user/both", files | {"model.safetensors": whole[:-1] + bytes([whole[-1] ^ 1])})
    done = hub.scan("user/both")
    assert done.returncode == 4 and "encoder modified: 1 of" in result_of(done)["reasons"][0]
    assert "model.safetensors" in {f["path"] for f in result_of(done)["files"]}
    hub.add_repo("user/model", {"model.safetensors": whole})
    assert hub.scan("user/model").returncode == 3
    assert not [path for _, path in hub.requests if "user/model/resolve" in path and path.endswith("model.safetensors")]


def test_offline_a_fetched_adapter_is_scanned_and_another_is_inconclusive(hub, files):
    sha = hub.add_repo("user/adapter", files)
    hub.scan("user/adapter")
    asked = len(hub.requests)
    offline = result_of(hub.scan("user/adapter", HF_HUB_OFFLINE="1"))
    assert offline["revision"] == sha and offline["classes"] and len(hub.requests) == asked
    done = hub.scan("user/other", HF_HUB_OFFLINE="1")
    assert done.returncode == 4 and "not in the local cache" in result_of(done)["reasons"][0]


def test_what_the_hub_refuses(hub, files):
    hub.add_repo("user/adapter", files)
    hub.add_repo("user/gated", files, gated=True)
    hub.add_repo("user/private", files, private=True)
    hub.add_repo("user/lora", {"adapter_config.json": b'{"peft_type": "LORA"}'})
    anonymous = {"HF_TOKEN": ""}
    for target, env, code, message in [
        ("user/missing", {}, 3, "there is no model user/missing"),
        ("user/adapter@v9", {}, 3, "no revision 'v9'"),
        ("user/gated", anonymous, 4, "gated"),
        ("user/private", anonymous, 3, "needs HF_TOKEN"),
        ("user/lora", {}, 3, "'LORA'"),
    ]:
        done = hub.scan(target, **env)
        assert (done.returncode, message in result_of(done)["reasons"][0]) == (code, True), (target, done.stdout)
    assert hub.scan("user/gated", HF_TOKEN=OWNER_TOKEN).returncode in (0, 1)


def test_a_hub_that_fails_or_is_gone_is_inconclusive(hub, files):
    hub.add_repo("user/adapter", files)
    hub.fail_next(20, 500)
    done = hub.scan("user/adapter")
    assert done.returncode == 4 and "the Hub is not to be reached" in result_of(done)["reasons"][0]
    done = hub.scan("user/adapter", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 4 and result_of(done)["verdict"] == "inconclusive"


def test_base_model_from_the_hub_at_a_resolved_commit(hub, tiny, base, tmp_path):
    files, clip = files_on(tiny, tmp_path / "adapter"), {p.name: p.read_bytes() for p in base.iterdir()}
    sha = hub.add_repo("org/clip", clip | {"pytorch_model.bin": b"never fetched"})
    config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "org/clip", "revision": sha}
    hub.add_repo("user/adapter", files | {"adapter_config.json": json.dumps(config).encode()})
    result = result_of(hub.scan("user/adapter"))
    assert result["base_model"] == {"id": "org/clip", "revision": sha}
    assert not any("the adapter names" in warning for warning in result["warnings"])
    assert not [p for _, p in hub.requests if p.endswith("pytorch_model.bin")]

    moved = hub.commit("org/clip", {"README.md": b"moved on"})
    result = result_of(hub.scan("user/adapter", "--base", "org/clip"))
    assert result["base_model"]["revision"] == moved and "the adapter names revision" in result["warnings"][0]

    done = hub.scan("user/adapter", "--base", "org/missing")
    assert done.returncode == 4 and "there is no model org/missing" in result_of(done)["reasons"][0]


def test_an_adapter_on_the_hub_names_no_folder_of_the_scanner(hub, files, tmp_path):
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "base")
    config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "./base"}
    hub.add_repo("user/adapter", files | {"adapter_config.json": json.dumps(config).encode()})
    done = hub.scan("user/adapter")
    assert done.returncode == 4 and "name the CLIP that it was tuned on with --base" in result_of(done)["reasons"][0]
    assert result_of(hub.scan("user/adapter", "--base", "./base"))["cost"]


def test_pool_streamed_from_a_data_set_on_the_hub(hub, files, tmp_path):
    hub.add_repo("user/adapter", files)
    import io

    import numpy as np

    rows = []
    for i in range(60):
        buffer = io.BytesIO()
        PILImage.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).to_parquet(tmp_path / "p.parquet")
    hub.add_repo(
        "user/photos", {"data/train-00000-of-00001.parquet": (tmp_path / "p.parquet").read_bytes()}, repo_type="dataset"
    )
    scan = partial(hub.scan, "user/adapter", "--detector", "clip-inspector", "--pool")  # a quick one
    pool = result_of(scan("user/photos"))["pool"]
    assert (pool["id"], pool["num_images"], pool["skipped"]) == ("user/photos", 32, 0)
    (tmp_path / "user" / "photos").mkdir(parents=True)  # must not stand in for it
    assert scan("user/photos").returncode == 2
    for name in ("hf://user/photos", "user/photos@main"):
        assert result_of(scan(name))["pool"]["fingerprint"] == pool["fingerprint"]
    table = Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).select(list(range(60)) * 150)
    table.to_parquet(tmp_path / "large.parquet", batch_size=100)
    large = (tmp_path / "large.parquet").read_bytes()
    hub.add_repo("user/large", {"data/train-00000-of-00001.parquet": large}, repo_type="dataset")
    before = hub.sent
    assert result_of(scan("user/large"))["pool"]["num_images"] == 32
    sent = hub.sent - before
    assert sent < len(large) / 2, f"{sent:,} of {len(large):,} bytes"  # what is drawn, and some around it
    done = scan("user/nothing")
    assert done.returncode == 4 and "cannot be read" in result_of(done)["reasons"][0]
