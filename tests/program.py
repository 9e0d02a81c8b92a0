"""The program as a user runs it, each time in a process of its own, forked from one that has loaded what takes most of a
short command's time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

# What may differ from the environment that the libraries were loaded in: it is read when it is needed, not on loading.
LATE = ("HF_CI_", "HF_TOKEN", "XDG_CACHE_HOME", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTEST_CURRENT_TEST")
NURSERY = """
import json, os, sys
import datasets, peft, torch, transformers, hf_ci.repair.engine, hf_ci.scan
from hf_ci.__main__ import program

for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        try:
            os.setpgid(0, 0)
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["env"])
            for name, descriptor in (("/dev/null", 0), (asked["out"], 1), (asked["err"], 2)):
                os.dup2(os.open(name, os.O_RDWR), descriptor)
            sys.argv = ["hf-ci", *asked["words"]]
            program()
        finally:
            os._exit(70)  # of no command of ours
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Program:
    """Call it with words, as after `hf-ci`; what comes back is as of `subprocess.run`."""

    def __init__(self, env: Mapping[str, str]):
        self.env = dict(env)
        self.nursery: subprocess.Popen | None = None

    def suits(self, env: Mapping[str, str]) -> bool:
        """Whether the libraries would have been loaded in the same way in this environment."""
        fixed = lambda of: {name: value for name, value in of.items() if not name.startswith(LATE)}
        return fixed(env) == fixed(self.env)

    def __call__(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        if self.nursery is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.nursery = subprocess.Popen([sys.executable, "-c", NURSERY], env=self.env, **pipes)
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            asked = {"words": [*words], "env": dict(env), "cwd": str(cwd), "out": out.name, "err": err.name}
            self.nursery.stdin.write(json.dumps(asked) + "\n")
            self.nursery.stdin.flush()
            child = int(self.nursery.stdout.readline())
            late = Timer(timeout, os.killpg, (child, 9))
            late.start()
            code = int(self.nursery.stdout.readline())
            late.cancel()
            said = [Path(file.name).read_text(errors="surrogateescape") for file in (out, err)]
        if code == -9:
            raise subprocess.TimeoutExpired([*words], timeout, *said)
        return subprocess.CompletedProcess([*words], code, *said)

    def end(self) -> None:
        if self.nursery is not None:
            self.nursery.communicate()
            self.nursery = None


class Programs:
    """A program for each environment that is asked for more than once; the last MOST of them stay."""

    MOST = 3

    def __init__(self):
        self.seen: list[Program] = []

    def __call__(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        if known := next((program for program in self.seen if program.suits(env)), None):
            self.seen.remove(known)
            self.seen.append(known)
            for old in [program for program in self.seen if program.nursery][: -self.MOST]:
                old.end()
            return known(words, env, cwd, timeout)
        self.seen.append(Program(env))
        command = [sys.executable, "-m", "hf_ci", *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)

    def end(self) -> None:
        for program in self.seen:
            program.end()
