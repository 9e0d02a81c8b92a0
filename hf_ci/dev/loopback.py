"""A Hugging Face Hub on 127.0.0.1, kept in memory: the real clients talk to it as to the real one.

    with LoopbackHub() as hub:
        sha = hub.add_repo("user/adapter", {"README.md": b"# an adapter"})
        subprocess.run([sys.executable, "client.py"], env={**os.environ, **hub.env(tmp_path)}, check=True)
        assert hub.repo("user/adapter").find("refs/pr/1").tree["README.md"] == b"# a better adapter"

`Repo` keeps the history, `_Handler` answers a request, `Machines` run Jobs. The owner's token may write everywhere; the
stranger's reads what is public, discusses and opens pull requests. Shas repeat from run to run. Listings come in pages,
the front matter of a card has to be a mapping in YAML, webhooks are delivered, and CI jobs get a token for their
identity. What is not served at all answers 501. Faults come on demand: `fail_next` refuses, `spoil_next` damages a download.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

from hf_ci.certain import certain
from hf_ci.dev.machines import JobsAnswers, Machine, Machines

OWNER_TOKEN, STRANGER_TOKEN = "hf_owner", "hf_stranger"
USERS = {OWNER_TOKEN: "user", STRANGER_TOKEN: "stranger", "": None}
IDENTITY = "identity-of-a-job"  # what the CI provider's end gives, for the Hub to exchange
PAGE = 50  # entries of a tree, commits or discussions in one answer
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".zip")
DATE = "2026-01-01T00:00:00.000Z"  # of everything that has one
Tree = dict[str, bytes]  # path -> content


class Refusal(Exception):
    """A request turned down. The client picks its exception from `code`, which goes into X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": ascii(message)[1:-1], **headers}


def is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) and size > 0  # the client never sends an empty file through LFS


def file_entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the tree lists it. Its etag is the sha256 of an LFS file, the git blob id of any other."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    blob = data
    if is_lfs(path, len(data)):
        sha256 = hashlib.sha256(data).hexdigest()
        blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": len(blob)}
    oid = hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
    return entry | {"oid": oid, "etag": entry["lfs"]["oid"] if "lfs" in entry else oid}


class Commit(NamedTuple):
    sha: str
    parents: tuple[str, ...]
    tree: Tree
    log: dict[str, Any]  # what list_repo_commits reads


class Repo:
    """One repository: commits, refs, and discussions in the very form in which they are served."""

    def __init__(self, repo_id: str, repo_type: str, gated: bool = False, private: bool = False):
        self.id, self.type, self.gated, self.private = repo_id, repo_type, gated, private
        self.web_path = f"datasets/{repo_id}" if repo_type == "dataset" else repo_id
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # "refs/heads/main", "refs/tags/v1", "refs/pr/1" -> sha
        self.discussions: dict[str, dict[str, Any]] = {}  # "1" -> discussion or pull request
        self.security: dict[str, Any] = {
            "scansDone": True,
            "filesWithIssues": [],
        }  # an issue: {"path": ..., "level": "unsafe"}

    def ref(self, revision: str) -> str:
        """The full name of a branch or of a pull request: what a commit may move."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs:
                return ref
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def find(self, revision: str) -> Commit:
        """The commit that a tag, a full sha, a branch or refs/pr/N stands for."""
        sha = self.refs.get(f"refs/tags/{revision}", revision)
        return self.commits[sha if sha in self.commits else self.refs[self.ref(revision)]]

    def commit(
        self, ref: str, tree: Tree, title: str, text: str = "", author: str = "user", parents: tuple[str, ...] = ()
    ) -> str:
        """Record `tree` as a commit and point `ref` at it; returns its sha."""
        log = {"title": title, "message": text, "date": DATE, "authors": [{"user": author}]}
        etags = {path: file_entry(path, data)["etag"] for path, data in sorted(tree.items())}
        sha = hashlib.sha1(json.dumps([self.web_path, parents, etags, log]).encode()).hexdigest()
        self.commits[sha], self.refs[ref] = Commit(sha, parents, tree, log | {"id": sha}), sha
        if ref.startswith("refs/pr/"):
            self.add_event(self.discussions[ref[8:]], "commit", author, {"subject": title, "oid": sha})
        return sha

    def listing(self, commit: Commit, expand: bool) -> list[dict[str, Any]]:
        """Every file and folder of a commit; `expand` adds what the scanners say of each file."""
        levels = {issue["path"]: issue["level"] for issue in self.security["filesWithIssues"]}
        folders = {path[: slash.start()] for path in commit.tree for slash in re.finditer("/", path)}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": commit.sha} for path in folders]
        for path, data in commit.tree.items():
            scan = {"status": levels.get(path, "safe"), "avScan": {}, "pickleImportScan": {}}
            entries.append(file_entry(path, data) | ({"securityFileStatus": scan} if expand else {}))
        return sorted(entries, key=lambda entry: entry["path"])

    def open_discussion(
        self, title: str, text: str, author: str, base: Commit | None, status: str = "open"
    ) -> dict[str, Any]:
        """Start a discussion or, given the commit to start from, a pull request into main."""
        num = len(self.discussions) + 1
        opened = {
            "num": num,
            "title": title,
            "status": status,
            "author": {"name": author},
            "createdAt": DATE,
            "repo": {"name": self.id, "type": self.type},
            "events": [],
            "isPullRequest": base is not None,
        }
        if base is not None:
            opened |= {"changes": {"base": "refs/heads/main", "baseCommitId": base.sha}, "filesWithConflicts": []}
            self.refs[f"refs/pr/{num}"] = base.sha
        self.discussions[str(num)] = opened
        self.add_comment(opened, author, text)
        return opened

    def add_event(self, talk: dict[str, Any], kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
        event = {"id": f"{len(talk['events']):x}", "type": kind, "createdAt": DATE, "author": {"name": author}}
        talk["events"].append(event | {"data": data})
        added: dict[str, Any] = talk["events"][-1]
        return added

    def add_comment(self, talk: dict[str, Any], author: str, text: str) -> dict[str, Any]:
        latest = {"raw": text, "html": text, "updatedAt": DATE, "author": {"name": author}}
        return self.add_event(talk, "comment", author, {"edited": False, "hidden": False, "latest": latest})

    def merge(self, pull: dict[str, Any], author: str) -> None:
        """Bring what the pull request changed into main; refuse when main has changed one of the same files."""
        main, head = self.find("main"), self.find(f"refs/pr/{pull['num']}")
        base = self.find(pull["changes"]["baseCommitId"]).tree.items()
        touched, moved = ({path for path, _ in base ^ side.tree.items()} for side in (head, main))
        if pull["status"] != "open" or touched & moved:
            raise Refusal(409, f"Cannot merge: the pull request is {pull['status']}, or main changed the same files")
        tree = {path: data for path, data in main.tree.items() if path not in touched}
        tree |= {path: data for path, data in head.tree.items() if path in touched}
        merged = self.commit("refs/heads/main", tree, pull["title"], author=author, parents=(main.sha, head.sha))
        pull["status"], pull["changes"]["mergeCommitId"] = "merged", merged
        self.add_event(pull, "status-change", author, {"status": "merged"})


class LoopbackHub(ThreadingHTTPServer):
    """The server. `requests` logs (method, path with its query) in the order of arrival; `sent` counts the bytes of all answers."""

    request_queue_size = 64  # snapshot_download opens many connections at once

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str]] = []
        self.sent = 0
        self.repos: dict[tuple[str, str], Repo] = {}  # (type, id)
        self.lfs_objects: dict[str, bytes] = {}  # sha256 -> content
        self.failures: list[list[Any]] = []  # [how many are left, status, matching, headers]
        self.damages: list[list[Any]] = []  # [how many are left, what, matching]
        self.webhooks: dict[str, dict[str, Any]] = {}  # id -> as it is served
        self.deliveries: list[tuple[str, dict[str, Any]]] = []  # (webhook's id, payload), in order
        self.jobs: dict[str, dict[str, Any]] = {}  # id -> what it was started with
        self.machines: Machines | None = None  # on which they run; None: they do not
        self.running: dict[str, Machine] = {}  # id -> its machine, also when it has ended
        self.runs_jobs = False  # whether a job that a webhook starts is run, as a process on this machine
        self.job_runs: list[subprocess.CompletedProcess[str]] = []  # those that have ended
        self.job_tokens: dict[str, str] = {}  # short-lived token -> repo that it may write
        self.lock = threading.RLock()

    def start(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self, *exc: object) -> None:
        """Refuse every connection from now on. Repositories and the log stay readable."""
        self.shutdown()
        self.server_close()
        for machine in self.running.values():
            machine.kill()

    __enter__, __exit__ = start, stop

    def env(self, home: Path, token: str = OWNER_TOKEN) -> dict[str, str]:
        """Variables for a client in a subprocess; an empty `token` makes it anonymous."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }  # or else `datasets` reports each load to a server of its own

    def add_repo(
        self, repo_id: str, files: Tree, repo_type: str = "model", gated: bool = False, private: bool = False
    ) -> str:
        """Make a repository whose main branch holds these files in one commit; returns its sha."""
        repo = self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, gated, private)
        for path, data in files.items():
            if is_lfs(path, len(data)):
                self.lfs_objects[hashlib.sha256(data).hexdigest()] = data
        return repo.commit("refs/heads/main", dict(files), "Add files")

    def commit(
        self,
        repo_id: str,
        files: Tree,
        revision: str = "main",
        message: str = "Update files",
        repo_type: str = "model",
    ) -> str:
        """Add or replace `files` (None deletes) on a branch or refs/pr/N; returns the sha of the commit."""
        with self.lock:
            repo, head = self.repo(repo_id, repo_type), self.repo(repo_id, repo_type).find(revision)
            tree = {path: data for path, data in (head.tree | files).items() if data is not None}
            return repo.commit(repo.ref(revision), tree, message, parents=(head.sha,))

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def fail_next(self, n: int = 1, status: int = 503, matching: str = "", **headers: str) -> None:
        """Answer `status` to the next `n` requests whose "METHOD path" contains `matching`.

        `headers` go with it, such as `**{"Retry-After": "1"}`.
        """
        self.failures.append([n, status, matching, headers])

    def spoil_next(self, how: str, n: int = 1, matching: str = "/resolve/") -> None:
        """Damage the next `n` downloads: "drop" the line half way, be "slow" (1 s), send half the file as if it were
        "truncated", or a wrong "etag"; or "lose" the answer after the work was done."""
        self.damages.append([n, how, matching])

    def wait(self) -> None:
        """Serve until interrupted."""
        while True:
            time.sleep(3600)

    def announce(self, repo: Repo, ref: str, action: str = "update") -> None:
        """Deliver a push to every webhook that watches the repo's owner or the repo itself."""
        owner = repo.id.split("/")[0]
        event = {"action": action, "scope": "repo.content"}
        where = {
            "type": repo.type,
            "name": repo.id,
            "id": repo.id,
            "headSha": repo.refs[ref],
            "private": repo.private,
            "url": {"web": f"{self.url}/{repo.web_path}", "api": f"{self.url}/api/models/{repo.id}"},
        }
        before = repo.find(repo.refs[ref]).parents[:1] or (None,)
        moved = [{"ref": ref, "oldSha": before[0], "newSha": repo.refs[ref]}]
        for id, hook in self.webhooks.items():
            watched = {(item["type"], item["name"]) for item in hook["watched"]}
            if hook["disabled"] or not watched & {("user", owner), ("org", owner), (repo.type, repo.id)}:
                continue
            payload = {"event": event, "repo": where, "updatedRefs": moved, "webhook": {"id": id, "version": 3}}
            self.deliveries.append((id, payload))
            if hook.get("url"):
                headers = {"Content-Type": "application/json", "X-Webhook-Secret": hook.get("secret") or ""}
                request = urllib.request.Request(hook["url"], json.dumps(payload).encode(), headers)
                threading.Thread(target=_post, args=(request,), daemon=True).start()
            elif self.runs_jobs:
                given = {
                    "WEBHOOK_PAYLOAD": json.dumps(payload),
                    "WEBHOOK_REPO_ID": repo.id,
                    "WEBHOOK_REPO_TYPE": repo.type,
                    "WEBHOOK_SECRET": hook.get("secret") or "",
                }
                spec = self.jobs[hook["job"]["sourceId"]]
                environment = spec["environment"] | hook.get("secrets", {}) | given
                threading.Thread(target=self._run_job, args=(spec["command"], environment), daemon=True).start()

    def _run_job(self, command: list[str], environment: dict[str, str]) -> None:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        with self.lock:
            self.job_runs.append(done)


def _post(request: urllib.request.Request) -> None:
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except OSError:
        pass  # a receiver that is gone misses the event, as with the real Hub


class _Handler(JobsAnswers, BaseHTTPRequestHandler):
    """One request. `post_commit(repo, rev)` answers POST /api/models/{id}/commit/{rev}, and so on, with a JSON value
    or (status, JSON value or bytes, headers). HTTP/1.0, the default, closes each connection: none outlives `stop()`."""

    server: LoopbackHub

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            try:
                reply = self._answer()
            except Refusal as refusal:
                reply = refusal.status, {"error": str(refusal)}, refusal.headers
            except KeyError as missing:  # a discussion by its number, or an LFS file by its sha256
                reply = 404, {"error": f"There is no {missing}"}, {}
            except Exception as error:  # a fault of this server; not 500, which the client would try again and again
                reply = 501, {"error": f"loopback hub: {error!r}"}, {}
            damage = self._damage()
        status, content, headers = reply if isinstance(reply, tuple) else (200, reply, {})
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        length = len(content)
        match damage:
            case "slow":
                time.sleep(1)
            case "truncated":
                content, length = content[: length // 2], length // 2
            case "drop":
                content = content[: length // 2]
            case "etag":
                headers = headers | {"ETag": '"0000"'}
            case "lose":
                return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": length, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            with self.server.lock:
                self.server.sent += len(content)

    def _damage(self) -> str:
        """What is to be done to this answer, if anything. A HEAD has no body that could be damaged."""
        for damage in self.server.damages:
            wanted = damage[0] > 0 and damage[2] in f"{self.command} {self.path}"
            if wanted and (self.command != "HEAD" or damage[1] == "etag"):
                damage[0] -= 1
                return str(damage[1])
        return ""

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *args: object) -> None:
        """Print nothing: `LoopbackHub.requests` is the log."""

    def _answer(self) -> Any:
        for failure in self.server.failures:
            if failure[0] > 0 and failure[2] in f"{self.command} {self.path}":
                failure[0] -= 1
                raise Refusal(failure[1], "This failure was asked for", **failure[3])
        url, token = urlsplit(self.path), self.headers.get("Authorization", "").removeprefix("Bearer ")
        if url.path == "/identity":  # the CI provider's end, not the Hub's
            return {"value": IDENTITY}
        if url.path == "/oauth/token":
            return self._exchange(json.loads(self.body))
        self.only_repo = self.server.job_tokens.get(token)
        if token not in USERS and self.only_repo is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.user, verb = "user" if self.only_repo else USERS[token], self.command.lower().replace("head", "get")
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.flags = {name for name, value in self.query.items() if value in ("1", "true")}
        self.json = json.loads(self.body) if self.headers.get_content_subtype() in ("json", "vnd.git-lfs+json") else {}
        path = url.path.replace(".git/info/lfs/objects", "/lfs").removeprefix("/api/models").removeprefix("/api")
        path = path or "/models"
        only_reads = verb != "post" or re.search("/(paths-info|validate-yaml)", path)
        if self.user is None and (path == "/whoami-v2" or not only_reads):
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")  # as the client reads it over https
        if path.startswith("/jobs/"):
            return self.answer_jobs(verb, path)
        if answer := getattr(self, verb + re.sub(r"\W", "_", path), None):
            return answer()
        parts = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)(?:/([a-z-]+))?(?:/(.+))?", path)
        answer = parts and getattr(self, f"{verb}_{parts[3] or 'revision'}".replace("-", "_"), None)
        if parts is None or answer is None:
            raise Refusal(501, f"The loopback hub does not serve {self.command} {url.path}")
        repo = self.server.repos.get(("dataset" if parts[1] else "model", parts[2]))
        # A private repository looks like a missing one. Uploads go to addresses that need no token.
        if repo is None or repo.private and self.user != "user" and verb != "put":
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return answer(repo, *[unquote(part) for part in (parts[4] or "").split("/", 1) if part])

    def _exchange(self, form: dict[str, Any]) -> dict[str, Any]:
        """A CI job's proof of identity for a token that may write one repo (Trusted Publishers)."""
        known = {("" if kind == "model" else f"{kind}s/") + id for kind, id in self.server.repos}
        if form.get("subject_token") != IDENTITY or form.get("resource") not in known:
            raise Refusal(400, "invalid_grant: no trusted publisher matches this identity and resource")
        token = f"hf_jwt_{len(self.server.job_tokens)}"
        self.server.job_tokens[token] = form["resource"]
        return {"access_token": token, "token_type": "bearer", "expires_in": 3600}

    def _page(self, entries: list[Any]) -> tuple[int, list[Any], dict[str, Any]]:
        """One page of a listing, and in the Link header where the next one is."""
        start = int(self.query.get("cursor", 0))
        rest, headers = entries[start : start + PAGE], {}
        if start + PAGE < len(entries):
            path, query = urlsplit(self.path).path, urlencode(self.query | {"cursor": start + PAGE})
            headers["Link"] = f'<{self.server.url}{path}?{query}>; rel="next"'
        return 200, rest, headers

    def _require_owner(self, repo: Repo) -> None:
        if self.user != "user" or self.only_repo not in (None, repo.id):
            raise Refusal(403, "You do not have write access to this repository")

    def get_whoami_v2(self) -> dict[str, Any]:
        return {"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def get_models(self) -> Any:
        """The models of `author`, newest first, with their files where `expand` asks for siblings."""
        found = [
            repo
            for (kind, id), repo in self.server.repos.items()
            if kind == "model"
            and id.split("/")[0] == self.query.get("author", id.split("/")[0])
            and (not repo.private or self.user == "user")
        ]
        entries = [{"id": repo.id, "private": repo.private} for repo in reversed(found)]
        if self.query.get("expand") == "siblings":
            for entry, repo in zip(entries, reversed(found)):
                entry["siblings"] = [{"rfilename": path} for path in sorted(repo.find("main").tree)]
        return self._page(entries)

    def post_repos_create(self) -> Any:
        repo_id, repo_type = f"{self.json['organization'] or self.user}/{self.json['name']}", self.json.get("type")
        repo = Repo(repo_id, repo_type or "model", private=self.json.get("visibility") == "private")
        if self.server.repos.setdefault((repo.type, repo_id), repo) is not repo:
            return 409, {"url": f"{self.server.url}/{repo.web_path}", "error": "You already created this repo"}, {}
        repo.commit("refs/heads/main", {".gitattributes": b"*.safetensors filter=lfs -text\n"}, "initial commit")
        return {"url": f"{self.server.url}/{repo.web_path}"}

    def post_validate_yaml(self) -> Any:
        found = re.match(r"\s*---\r?\n(.*?)\r?\n---", self.json["content"].lstrip("\ufeff"), re.S)
        try:
            data = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}]}, {}
        if found and not isinstance(data, dict | None):
            return 400, {"errors": [{"message": "the metadata is no mapping"}]}, {}
        return {"warnings": [] if data else [{"message": "empty or missing yaml metadata in repo card"}]}

    def post_settings_webhooks(self) -> dict[str, Any]:
        id = f"webhook{len(self.server.webhooks) + 1}"
        hook = {"id": id, "url": None, "job": None, "domains": ["repo"], "secret": None, "disabled": False} | self.json
        if job := hook.pop("jobSourceId", None):
            known = ("dockerImage", "command", "flavor", "environment")
            hook["job"] = {key: self.server.jobs[job][key] for key in known} | {"sourceId": job}
        self.server.webhooks[id] = hook
        return {"webhook": {key: value for key, value in hook.items() if key != "secrets"}}

    def get_settings_webhooks(self) -> list[dict[str, Any]]:
        return list(self.server.webhooks.values())

    def get_revision(self, repo: Repo, rev: str = "main") -> dict[str, Any]:
        commit, siblings = repo.find(rev), []
        for entry in (file_entry(path, data) for path, data in sorted(commit.tree.items())):
            blob = {"size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}
            siblings.append({"rfilename": entry["path"]} | (blob if "blobs" in self.flags else {}))
        info = {
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.sha,
            "lastModified": DATE,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "siblings": siblings,
        }
        return info | ({"securityRepoStatus": repo.security} if "securityStatus" in self.flags else {})

    def get_tree(self, repo: Repo, rev: str, under: str = "") -> Any:
        inside = re.compile(re.escape(f"{under}/" if under else "") + (".+" if "recursive" in self.flags else "[^/]+"))
        listing = repo.listing(repo.find(rev), "expand" in self.flags)
        found = [entry for entry in listing if inside.fullmatch(entry["path"])]
        if under and not found:
            raise Refusal(404, f"{under} does not exist on {rev}", "EntryNotFound")
        return self._page(found)

    def post_paths_info(self, repo: Repo, rev: str) -> list[dict[str, Any]]:
        form = self.json or parse_qs(self.body.decode())  # the Hub takes both
        entries = repo.listing(repo.find(rev), form.get("expand") in (True, ["true"]))
        return [entry for entry in entries if entry["path"] in form["paths"]]

    def get_resolve(self, repo: Repo, rev: str, path: str) -> tuple[int, bytes, dict[str, Any]]:
        if repo.gated and self.user != "user":  # as on the Hub, a gate closes the files and leaves info and tree open
            raise Refusal(403 if self.user else 401, f"Access to {repo.id} is restricted", "GatedRepo")
        commit = repo.find(rev)
        if path not in commit.tree:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
        data = commit.tree[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file_entry(path, data)["etag"]}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return 200, data, headers
        start, stop = int(part[1]), min(int(part[2] or len(data)) + 1, len(data))
        return 206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def post_preupload(self, repo: Repo, rev: str) -> dict[str, Any]:
        tree = repo.find(rev).tree
        for file in self.json["files"]:
            path, mode = file["path"], "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            # With the id of what is there already, the client leaves unchanged files out of its commit.
            oid = file_entry(path, tree[path])["etag"] if path in tree else None
            file |= {"uploadMode": mode, "shouldIgnore": False, "oid": oid}
        return cast(dict[str, Any], self.json)

    def post_lfs(self, repo: Repo, batch: str) -> dict[str, Any]:
        for wanted in self.json["objects"]:
            if wanted["oid"] not in self.server.lfs_objects:
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/{repo.web_path}/lfs/{wanted['oid']}"}}
        return {**self.json, "transfer": "basic"}

    def put_lfs(self, repo: Repo, oid: str) -> dict[str, Any]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, f"The bytes received are not those of {oid}")
        self.server.lfs_objects[oid] = self.body
        return {}

    def post_commit(self, repo: Repo, rev: str) -> dict[str, Any]:
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        title, text, parent = (header["value"].get(key) for key in ("summary", "description", "parentCommit"))
        url, reply, opens_pull = f"{self.server.url}/{repo.web_path}", {}, "create_pr" in self.flags
        head = repo.find(parent if parent and opens_pull else rev)  # so a pull request is never out of date
        own = {f"refs/pr/{num}" for num, talk in repo.discussions.items() if talk["author"]["name"] == self.user}
        if not opens_pull and rev not in own:
            self._require_owner(repo)
        if parent not in (None, head.sha):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = self._applied(head.tree, operations)
        if opens_pull:
            num = repo.open_discussion(title, text, certain(self.user), head)["num"]
            rev, reply = f"refs/pr/{num}", {"pullRequestUrl": f"{url}/discussions/{num}"}
        sha = repo.commit(repo.ref(rev), tree, title, text, certain(self.user), (head.sha,))
        self.server.announce(repo, repo.ref(rev))
        return reply | {"commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}

    def _applied(self, tree: Tree, operations: list[dict[str, Any]]) -> Tree:
        for key, value, path in ((line["key"], line["value"], line["value"]["path"]) for line in operations):
            if key == "file":
                tree = tree | {path: base64.b64decode(value["content"])}
            elif key == "lfsFile":
                tree = tree | {path: self.server.lfs_objects[value["oid"]]}
            else:
                gone = {path} if key == "deletedFile" else {p for p in tree if p.startswith(path.rstrip("/") + "/")}
                if not gone & tree.keys():
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                tree = {path: data for path, data in tree.items() if path not in gone}
        return tree

    def post_branch(self, repo: Repo, name: str) -> dict[str, Any]:
        self._require_owner(repo)  # the path of a new branch ends in its name, that of a new tag in what it is put on
        ref, start = f"refs/heads/{name}", self.json.get("startingPoint", "main")
        if "tag" in self.json:
            ref, start = f"refs/tags/{self.json['tag']}", name
        if ref in repo.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.find(start).sha
        return {}

    post_tag = post_branch

    def get_refs(self, repo: Repo) -> dict[str, Any]:
        kinds = {
            "branches": "refs/heads/",
            "tags": "refs/tags/",
            "pullRequests": "refs/pr/",
            "converts": "refs/convert/",
        }
        return {
            kind: [
                {"name": ref.removeprefix(start), "ref": ref, "targetCommit": sha}
                for ref, sha in repo.refs.items()
                if ref.startswith(start)
            ]
            for kind, start in kinds.items()
        }

    def get_commits(self, repo: Repo, rev: str) -> Any:
        reached, newest_first = {repo.find(rev).sha}, list(reversed(repo.commits.values()))
        for commit in newest_first:
            reached |= set(commit.parents) if commit.sha in reached else set()
        return self._page([commit.log for commit in newest_first if commit.sha in reached])

    def get_discussions(self, repo: Repo, num: str = "") -> dict[str, Any]:
        if num:
            return repo.discussions[num]
        found = [
            talk
            for talk in reversed(repo.discussions.values())
            if self.query.get("type", "all") in ("all", "pull_request" if talk["isPullRequest"] else "discussion")
            and self.query.get("status", "all") in ("all", talk["status"].replace("merged", "closed"))
            and self.query.get("author") in (None, talk["author"]["name"])
        ]
        start = int(self.query.get("p", 0)) * PAGE
        return {"discussions": found[start : start + PAGE], "count": len(found), "start": start}

    def post_discussions(self, repo: Repo, num: str = "", action: str = "") -> dict[str, Any]:
        if not num:
            how = (repo.find("main"), "draft") if self.json["pullRequest"] else (None, "open")
            return repo.open_discussion(self.json["title"], self.json["description"], certain(self.user), *how)
        talk, user = repo.discussions[num], certain(self.user)
        if action == "merge":
            self._require_owner(repo)
            repo.merge(talk, user)
            self.server.announce(repo, "refs/heads/main")
        comment = repo.add_comment(talk, user, self.json["comment"]) if "comment" in self.json else None
        if action == "status":
            talk["status"] = self.json["status"]
            return {"newStatus": repo.add_event(talk, "status-change", user, {"status": talk["status"]})}
        return {"newMessage": comment}
