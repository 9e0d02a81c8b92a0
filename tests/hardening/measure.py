"""What hostile files, kills, faults and load do to the program, measured: python tests/hardening/measure.py PART --out FILE.

Parts: hostile, kills, faults, load, classes, pools, fuzz. Each record is one JSON line; `table` makes cards/hardening.md of
them. Everything is the program as a subprocess; nothing here is imported by it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

import numpy as np
from cases import CASES

from hf_ci.dev.loopback import LoopbackHub
from hf_ci.hub.target import DEMOS
from hf_ci.report import Report

RECORDS = ROOT / "cards" / "hardening.jsonl"
QUICK = ("--num-images", "32")
JUDGED = ("--detector", "clip-inspector", "--k", "1e9")  # clean, if it comes to a judgement at all


def started_program(words: list[str], cwd: Path, env: dict[str, str]) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "hf_ci", *words], cwd=cwd, env=env, text=True, **pipes)


def measured(words: list[str], cwd: Path, env: dict[str, str], timeout: float = 600) -> dict:
    """Run the program; its exit code, seconds and what it printed."""
    started = time.perf_counter()
    process = started_program(words, cwd, env)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    seconds = time.perf_counter() - started
    return {"code": process.returncode, "seconds": round(seconds, 1), "out": out, "err": err}


def peak_of(words: list[str], cwd: Path, env: dict[str, str], timeout: float = 600) -> dict:
    """As `measured`, in a child of its own, whose largest child is then the program; with its CPU seconds, as the
    machine may have other things to do."""
    inner = (
        "import json, resource, sys; sys.path[:0] = json.loads(sys.argv[1]); from pathlib import Path\n"
        "from measure import measured; import os\n"
        f"done = measured(json.loads(sys.argv[2]), Path.cwd(), dict(os.environ), {timeout})\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "done['peak_mb'] = round(used.ru_maxrss / 1024)\n"
        "done['cpu_seconds'] = round(used.ru_utime + used.ru_stime, 1)\n"
        "print(json.dumps(done))"
    )
    paths = [str(Path(__file__).parent), str(ROOT)]
    command = [sys.executable, "-c", inner, json.dumps(paths), json.dumps([str(word) for word in words])]
    return json.loads(subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout)


def environment(place: Path, **more: str) -> dict[str, str]:
    home = {"XDG_CACHE_HOME": str(place / "cache"), "HF_HOME": str(place / "hf"), "PYTHONPATH": str(ROOT)}
    return os.environ | home | {"OMP_NUM_THREADS": "1"} | more


# ---------------------------------------------------------------- hostile files


def hostile(arguments) -> Iterator[dict]:
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as text:
            place = Path(text)
            shutil.copytree(DEMOS / "coop", place / "downloaded")
            case.make(place / "downloaded")
            words = ["scan", str(place / "downloaded" / case.target), *QUICK, *JUDGED, "--format", "json"]
            done = peak_of(words, place, environment(place))
            unnamed = dict(verdict=None, reasons=[done["err"].strip()])  # no target at all: nothing goes to stdout
            result = json.loads(done["out"])["results"][0] if done["out"] else unnamed
            ran = bool(list(place.rglob("pwned")))
        yield {
            "case": name,
            "verdict": result["verdict"],
            "said": result["reasons"][0].replace(f"{text}/", ""),
            "code": done["code"],
            "expected": case.code,
            "ran": ran,
            "seconds": done["seconds"],
            "peak_mb": done["peak_mb"],
        }


# ---------------------------------------------------------------- kills


def check_cache(folder: Path) -> None:
    """Raises where a file under its final name is not whole."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.endswith(".partial"):
            continue
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as found:
                dict(found)
        elif path.suffix == ".json":
            json.loads(path.read_text())


def same(report: str) -> list[dict]:
    """A report without what differs from run to run."""
    results = json.loads(report)["results"]
    return [{k: v for k, v in result.items() if k != "timing"} for result in results]


def kills(arguments) -> Iterator[dict]:
    """kill -9 at a random moment of a scan, a repair and a push, again and again until one gets through."""
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as text, LoopbackHub() as hub:
        place = Path(text)
        hub.add_repo("user/bad", {p.name: p.read_bytes() for p in (DEMOS / "frame").iterdir()})
        env = environment(place) | hub.env(place / "home")
        what = {
            "scan": ["scan", "demo:frame", *QUICK, "--format", "json", "--output", "json=report.json"],
            "repair": [
                "repair",
                "demo:frame",
                "--forget",
                *QUICK,
                "--out",
                "repaired",
            ],
            "push": ["scan", "user/bad", *QUICK, "--push", "main", "--format", "json"],
        }
        lasts, whole = {}, {}
        for name, words in what.items():  # undisturbed, to know how long it takes and what comes out
            done = measured(words, place, env)
            lasts[name], whole[name] = done["seconds"], done
            reset(place, hub)
        n, total = 0, 0
        while total < arguments.times:
            name, n = list(what)[n % len(what)], n + 1
            survived = {"what": name, "kills": 0, "resumed": False, "same": None}
            while True:
                process = started_program(what[name], place, env)
                try:
                    out, _ = process.communicate(timeout=draw.uniform(0.3, 0.7 * lasts[name]))
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    survived["kills"] += 1
                check(place, hub)
            check(place, hub)
            survived["resumed"] = process.returncode == whole[name]["code"]
            survived["same"] = name == "repair" or same(out) == same(whole[name]["out"])
            total += survived["kills"]
            yield survived
            reset(place, hub)


def check(place: Path, hub: LoopbackHub) -> None:
    """Whatever is there under its final name is whole."""
    check_cache(place / "cache")
    if (place / "report.json").exists():
        Report.model_validate_json((place / "report.json").read_text())
    if (place / "repaired").exists():
        names = {path.name for path in (place / "repaired").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "clip_prompt.json", "repair.json"} <= names, names
    tree = hub.repo("user/bad").find("main").tree
    assert (".hf-ci/report.json" in tree) == (".hf-ci/badge.svg" in tree), sorted(tree)


def reset(place: Path, hub: LoopbackHub) -> None:
    for name in ("cache", "repaired"):
        shutil.rmtree(place / name, ignore_errors=True)
    (place / "report.json").unlink(missing_ok=True)
    repo = hub.repo("user/bad")
    first = repo.find("main")
    while first.parents:
        first = repo.find(first.parents[0])
    repo.refs["refs/heads/main"] = first.sha


# ---------------------------------------------------------------- faults


def faults(arguments) -> Iterator[dict]:
    """A disk, a home, a clock and a network that are not as they should be."""
    with tempfile.TemporaryDirectory() as text, LoopbackHub() as hub:
        place = Path(text)
        files = {p.name: p.read_bytes() for p in (DEMOS / "coop").iterdir()}
        hub.add_repo("user/a", files)
        env = environment(place) | hub.env(place / "home")
        scan = ["scan", "demo:coop", *QUICK]

        def tried(fault: str, words: list, expected: set[int], env=env, **more) -> dict:
            return judged(fault, measured([str(word) for word in words], place, env | more), expected)

        def judged(fault: str, done: dict, expected: set[int]) -> dict:
            complaint, report = done["err"].strip().splitlines()[-1:], done["out"].splitlines()[:3]
            last = complaint or [line.strip() for line in report]  # of a report, the verdict and what it is for
            clean = "Traceback" not in done["err"] + done["out"]
            return {"fault": fault, "code": done["code"], "expected": sorted(expected), "seconds": done["seconds"],
                        "said": " ".join(last)[:200].replace(f"{text}/", ""), "survived": clean and done["code"] in expected}  # fmt: skip

        yield tried("none", scan, {0})
        yield tried("the report goes to a full disk", [*scan, "--output", "json=/dev/full"], {2, 5})
        yield tried("the cache cannot be written", scan, {0, 2}, XDG_CACHE_HOME="/proc/nothing")
        yield tried("no home", scan, {0}, HOME="/nonexistent")
        yield tried("no network", ["scan", "user/a", *QUICK], {4}, HF_ENDPOINT="http://127.0.0.1:9")
        yield tried("no token", ["scan", "user/a", *QUICK, "--push", "main"], {3, 4}, HF_TOKEN="")
        for status in (401, 403, 404, 429, 500, 502, 503):
            hub.fail_next(10_000, status)
            yield tried(
                f"the Hub answers {status}", ["scan", "user/a", *QUICK], {3, 4}, HF_HOME=str(place / f"new-{status}")
            )
            hub.failures.clear()
        for how, n, expected in (("drop", 1, {0, 4}), ("slow", 9, {0}), ("truncated", 99, {4}), ("etag", 99, {0, 4})):
            hub.spoil_next(how, n)
            yield tried(f"downloads: {how}", ["scan", "user/a", *QUICK], expected, HF_HOME=str(place / f"new-{how}"))
            hub.damages.clear()
        yield judged("one of two processes dies", a_worker_dies(scan, place, env), {4})
        yield judged("two scans at once on one cache", two_on_one_cache(scan, place, env), {0})


def a_worker_dies(scan: list[str], place: Path, env: dict[str, str]) -> dict:
    """kill -9 on one of two workers while they invert; the seconds are those from there to the end. torch says on stderr
    that it ends the other one; what counts is the report."""
    process = started_program([*scan, "--num-processes", "2", "--no-cache"], place, env)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    spawned = lambda: [pid for pid in children.read_text().split() if b"spawn_main" in command_of(pid)]
    while len(workers := spawned()) < 2:
        time.sleep(0.1)
    time.sleep(5)  # they load what they need, and begin
    killed = time.perf_counter()
    os.kill(int(workers[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    return {"code": process.returncode, "seconds": round(time.perf_counter() - killed, 1), "out": out + err, "err": ""}


def command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it is gone
        return b""


def two_on_one_cache(scan: list[str], place: Path, env: dict[str, str]) -> dict:
    """Both have to end well, with the same report; the first one's end is told."""
    env, started = env | {"XDG_CACHE_HOME": str(place / "shared")}, time.perf_counter()
    both = [started_program([*scan, "--format", "json"], place, env) for _ in range(2)]
    (out, err), (other, _) = (process.communicate(timeout=600) for process in both)
    check_cache(place / "shared")
    alike = both[0].returncode == both[1].returncode == 0 and same(out) == same(other)
    said = "both end with the same report" if alike else "they differ"
    seconds = round(time.perf_counter() - started, 1)
    return {
        "code": both[0].returncode if alike else None,
        "seconds": seconds,
        "out": said,
        "err": err if not alike else "",
    }


# ---------------------------------------------------------------- load


def load(arguments) -> Iterator[dict]:
    """Many adapters in one run: time, memory and open files, which must not grow with their number."""
    for count in (arguments.adapters // 10, arguments.adapters):
        with tempfile.TemporaryDirectory() as text:
            place = Path(text)
            made = [DEMOS / name for name in ("coop", "frame", "clean")]
            for i in range(count):
                shutil.copytree(made[i % 3], place / "adapters" / f"{i:04}")
            (place / ".hf-ci.yaml").write_text("scan: {num-images: 32}\nadapters: ['adapters/*']\n")
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            done = peak_of(["run", "--output", "json=report.json"], place, environment(place))
            report = json.loads((place / "report.json").read_text())
        yield {
            "adapters": count, "scanned": len(report["results"]), "code": done["code"], "seconds": done["seconds"],
            "peak_mb": done["peak_mb"], "open_files_at_most": 128,
        }  # fmt: skip


# ---------------------------------------------------------------- many classes

THINGS = (
    "centipede", "barn", "bow tie", "dining table", "freight car", "go-kart", "nail", "obelisk", "pill bottle", "airplane",
    "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "goldfish", "banana", "teapot", "umbrella",
    "lemon", "bridge",
)  # fmt: skip
SORTS = (
    "red", "green", "blue", "yellow", "black", "white", "brown", "grey", "orange", "small", "big", "old", "new", "wooden",
    "plastic", "round", "long", "wild", "broken", "painted",
)  # fmt: skip


def classes(arguments) -> Iterator[dict]:
    """An adapter with 500 classes: a shipped one's prompt, which was tuned on ten, with other names."""
    names = [f"{sort} {thing}" for thing in THINGS for sort in SORTS]
    for demo in ("coop", "clean"):
        with tempfile.TemporaryDirectory() as text:
            place = Path(text)
            shutil.copytree(DEMOS / demo, place / "adapter")
            about = place / "adapter" / "clip_prompt.json"
            prompt = json.loads(about.read_text()) | {"class_names": names}
            about.write_text(json.dumps(prompt))
            words = ["scan", "./adapter", "--format", "json"]
            done = peak_of(words, place, environment(place), timeout=4 * 3600)
            result = json.loads(done["out"])["results"][0]
        yield {
            "method": prompt["method"], "classes": len(names), "verdict": result["verdict"], "reason": result["reasons"][0],
            "whole": sum(not one["screened"] for one in result["classes"]), "said": done["err"].strip(),
            "code": done["code"], "cpu_seconds": done["cpu_seconds"], "peak_mb": done["peak_mb"],
        }  # fmt: skip


# ---------------------------------------------------------------- large pools

FIRST = """
import sys, time
from hf_ci.hub.base import EMBEDDED_FOLDER
from hf_ci.pools import load_pool
from hf_ci.prompts.clip import load_processor
processor = load_processor(EMBEDDED_FOLDER)
started = time.process_time()
load_pool(sys.argv[1], 32, 0, processor)
print(round(time.process_time() - started, 1))
"""  # the fewest that a pool may give: the program itself prints nothing then


def pools(arguments) -> Iterator[dict]:
    """A pool of many small photos: as parquet files here, and as a data set on the Hub, read as it comes. The adapter
    has one class, of which a scan says when the pool is drawn that it cannot be judged: it is the pool that is measured."""
    with tempfile.TemporaryDirectory() as text, LoopbackHub() as hub:
        place = Path(text)
        shards = photo_shards(place / "photos", arguments.images)
        hub.add_repo("user/photos", {f"data/{p.name}": p.read_bytes() for p in shards}, repo_type="dataset")
        size = sum(path.stat().st_size for path in shards)
        shutil.copytree(DEMOS / "coop", place / "adapter")
        about = place / "adapter" / "clip_prompt.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"class_names": ["barn"]}))
        for name, pool, num_images in (
            ("builtin", "builtin", 256),
            ("parquet files", str(place / "photos"), 256),
            ("a data set on the Hub", "user/photos", 256),
            ("parquet files", str(place / "photos"), 10_000),
            ("parquet files", str(place / "photos"), arguments.images),
        ):
            home = Path(tempfile.mkdtemp(dir=place))
            env = environment(home) | hub.env(home / "hf")
            words = ["scan", str(place / "adapter"), "--pool", pool, "--num-images", num_images, "--format", "json"]
            hub.sent = 0
            done = peak_of(words, home, env)
            sent, kept = hub.sent, sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
            first = subprocess.run([sys.executable, "-c", FIRST, pool], env=env, capture_output=True, text=True)
            result = json.loads(done["out"])["results"][0] if done["out"] else {"reasons": [done["err"].strip()]}
            yield {
                "pool": name, "images": 0 if pool == "builtin" else arguments.images, "pool_mb": round(size / 1e6, 1),
                "drawn": num_images, "said": result["reasons"][0].replace(f"{text}/", ""),
                "code": done["code"], "cpu_seconds": done["cpu_seconds"], "cpu_seconds_to_32": float(first.stdout), "peak_mb": done["peak_mb"],
                "sent_mb": round(sent / 1e6, 1), "kept_mb": round(kept / 1e6, 1),
            }  # fmt: skip


def photo_shards(folder: Path, count: int, shards: int = 10) -> list[Path]:
    """JPEGs of 64 pixels, all different, a hundred in a row group as on the Hub."""
    from datasets import Dataset, Features, Image
    from PIL import Image as PILImage

    draw, features = np.random.default_rng(0), Features({"image": Image()})
    folder.mkdir()
    paths = [folder / f"train-{i:05}-of-{shards:05}.parquet" for i in range(shards)]
    for path in paths:
        rows = []
        for coarse in draw.integers(0, 256, (count // shards, 8, 8, 3), dtype=np.uint8):
            file = io.BytesIO()
            PILImage.fromarray(coarse).resize((64, 64)).save(file, "jpeg")
            rows.append({"bytes": file.getvalue(), "path": None})
        Dataset.from_dict({"image": rows}, features=features).to_parquet(path, batch_size=100)
    return paths


# ---------------------------------------------------------------- fuzzing


def fuzz(arguments) -> Iterator[dict]:
    for target in arguments.target or TARGETS:
        command = [sys.executable, str(ROOT / "tests/properties/fuzz.py"), target, f"{arguments.corpus}/{target}"]
        bound = [f"-runs={arguments.inputs}", f"-max_total_time={arguments.seconds}"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run([*command, *bound], capture_output=True, text=True, env=env, cwd=arguments.corpus)
        ended = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        yield {
            "target": target,
            "inputs": int(ended[1]) if ended else None,
            "seconds": int(ended[2]) if ended else None,
            "covered": int(covered[-1]) if covered else None,
            "defect": None if done.returncode == 0 else done.stderr[-1500:],
        }


TARGETS = ("checkpoint", "adapter_model.safetensors", "adapter_config.json", "clip_prompt.json", "config", "card")
PARTS = {
    "hostile": hostile,
    "kills": kills,
    "faults": faults,
    "load": load,
    "classes": classes,
    "pools": pools,
    "fuzz": fuzz,
}


def table(records: list[dict]) -> str:
    import jinja2

    of = {part: [r for r in records if r["part"] == part] for part in PARTS}
    by_name = {name: [r for r in of["kills"] if r["what"] == name] for name in ("scan", "repair", "push")}
    template = (Path(__file__).parent / "hardening.md.j2").read_text()
    made = jinja2.Environment(finalize=cell, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return made.from_string(template).render(of | {"kills": by_name.items()})


def cell(value: object) -> object:
    """A value as it can stand in a table."""
    if not isinstance(value, str):
        return value
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;") if "\n" in value or "|" in value else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("--out", type=Path, required=True, help="where records are appended, or the card goes")
    for name, value in dict(times=200, adapters=1000, images=100_000, inputs=1_000_000, seconds=3600, seed=0).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--target", action="append", choices=TARGETS, help="of fuzz; repeatable, all without")
    parser.add_argument("--corpus", default="/tmp/corpus")
    arguments = parser.parse_args()
    if arguments.part == "table":
        arguments.out.write_text(table([json.loads(line) for line in RECORDS.read_text().splitlines()]))
        return
    with arguments.out.open("a") as out:
        for record in PARTS[arguments.part](arguments):
            out.write(json.dumps({"part": arguments.part} | record) + "\n")
            out.flush()
            print({k: v for k, v in record.items() if k != "said"}, flush=True)


if __name__ == "__main__":
    main()
