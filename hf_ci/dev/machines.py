"""The loopback Hub's Jobs: each command really runs, as a process of this machine.

    hub.machines = Machines(tmp_path, {"XDG_CACHE_HOME": "/cache"})

Only a test sets this: whoever reaches the Hub's port could otherwise run what he likes. The image is ignored, so what pip
installs should be there already. A Job sees the variables that it was given and those of `Machines`, none of this
process's but the paths to its programs. Without machines, what is started stays as it was submitted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hf_ci.certain import certain

DATE = "2026-01-01T00:00:00.000Z"
FLAVORS = {"cpu-basic": 167, "a10g-small": 16667}  # -> millionths of a dollar a minute


class Machines:
    """doomed: a text; a Job whose command holds it is killed at once, as by a machine that breaks."""

    def __init__(self, folder: Path, env: dict[str, str], doomed: str = ""):
        self.folder, self.env, self.doomed = folder, env, doomed


class Machine:
    """A Job: its lines as they come, and how it stands."""

    def __init__(self, spec: dict[str, Any], machines: Machines, env: dict[str, str]):
        self.lines: list[tuple[str, str]] = []  # (time, text)
        self.cancelled = self.late = False
        paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(machines.folder)}
        paths |= {
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }  # what it installs is here, or is not to be had
        paths |= {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
        self.process = subprocess.Popen(
            spec["command"],
            env=paths | env | machines.env | spec["environment"] | spec.get("secrets", {}),
            cwd=machines.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if machines.doomed and machines.doomed in " ".join(spec["command"]):
            self.kill()
        self.timer = threading.Timer(spec.get("timeoutSeconds", 1800), self.time_out)
        self.timer.daemon = True
        self.timer.start()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        out = certain(self.process.stdout)
        for line in out:
            self.lines.append((f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", line.rstrip("\n")))
        self.process.wait()
        out.close()
        self.timer.cancel()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def time_out(self) -> None:
        self.late = True
        self.kill()

    def cancel(self) -> None:
        self.cancelled = True
        self.kill()

    def status(self) -> dict[str, str | None]:
        code = None if self.reader.is_alive() else self.process.returncode
        if self.cancelled:
            return {"stage": "CANCELED", "message": None}
        if code is None:
            return {"stage": "RUNNING", "message": None}
        why = "Job timed out" if self.late else f"Job failed with exit code: {code}"
        return {"stage": "ERROR", "message": why} if code else {"stage": "COMPLETED", "message": None}


class JobsAnswers:
    """What a handler of the loopback Hub answers below /api/jobs. Secrets are never told again."""

    server: Any
    json: Any
    path: str
    user: str | None

    def answer_jobs(self, verb: str, path: str) -> Any:
        _, _, owner, *rest = path.split("/")
        if verb == "get" and owner == "hardware":
            return [self._flavor(name, price) for name, price in FLAVORS.items()]
        if owner != self.user:
            return 403, {"error": f"You do not have the rights to run Jobs in {owner}"}, {}
        if verb == "post" and not rest:
            return self._start(owner)
        if not rest:
            wanted = [value.split("=", 1) for name, value in parse_qsl(urlsplit(self.path).query) if name == "label"]
            jobs = [self._job(owner, id) for id in self.server.jobs]
            return [job for job in jobs if all((job.get("labels") or {}).get(key) == value for key, value in wanted)]
        id, machine = rest[0], self.server.running.get(rest[0])
        match verb, rest[1:]:
            case "get", []:
                return self._job(owner, id)
            case "post", ["cancel"]:
                if machine:
                    machine.cancel()
                return self._job(owner, id)
            case "get", ["logs"]:
                told = [{"timestamp": time, "data": text} for time, text in (machine.lines if machine else [])]
                events = "".join(f"data: {json.dumps(event)}\n\n" for event in told)
                return 200, events.encode(), {"Content-Type": "text/event-stream"}
        return 404, {"error": f"There is no {path}"}, {}

    def _start(self, owner: str) -> Any:
        if self.json["flavor"] not in FLAVORS:
            return 400, {"error": f"Invalid flavor {self.json['flavor']}"}, {}
        id = f"job{len(self.server.jobs) + 1}"
        self.server.jobs[id] = self.json
        if self.server.machines:
            env = self.server.env(self.server.machines.folder / id, token="")
            env.pop("HF_TOKEN")
            self.server.running[id] = Machine(self.json, self.server.machines, env)
        return self._job(owner, id)

    def _job(self, owner: str, id: str) -> dict[str, Any]:
        told = {key: value for key, value in self.server.jobs[id].items() if key != "secrets"}
        machine = self.server.running.get(id)
        status = machine.status() if machine else {"stage": "RUNNING", "message": None}
        owned = {"id": owner, "name": owner, "type": "user"}
        return {"id": id, "createdAt": DATE, "owner": owned, "status": status} | told

    def _flavor(self, name: str, price: int) -> dict[str, Any]:
        more = {"cpu": "2 vCPU", "ram": "16 GB", "accelerator": None, "unitLabel": "minute"}
        return {"name": name, "prettyName": name, "unitCostMicroUSD": price, "unitCostUSD": price / 1e6} | more
