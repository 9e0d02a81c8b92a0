"""The loopback Hub, judged by the real client: in this process where it takes an endpoint, else in a subprocess."""

import io
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_ci.dev.loopback import STRANGER_TOKEN, LoopbackHub

pytestmark = pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # these cards have none
FILES = {
    "README.md": b"# an adapter\n",
    "weights.safetensors": bytes(range(256)) * 8,
    "sub/dir/a.txt": b"a",
    "sub/b \u00e9.txt": b"b",
}


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def api_as(hub: LoopbackHub, token: str | bool = "hf_owner") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


@pytest.fixture
def api(hub):
    return api_as(hub)


def run_client(hub: LoopbackHub, home: Path, script: str, token: str = "hf_owner") -> dict:
    """Run a script against the hub in a process of its own; returns the JSON that it prints last."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # on the usual way out a thread of pyarrow's now and then aborts a process that has streamed a data set
    script = textwrap.dedent(script) + "\nimport os, sys; sys.stdout.flush(); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean | hub.env(home, token), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(status: int, call, *args, error: type = HfHubHTTPError, **kwargs) -> None:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert caught.value.response.status_code == status


def test_every_way_of_reading_a_repo_gives_the_bytes_that_were_put_in(hub, api, tmp_path):
    sha = hub.add_repo("user/adapter", FILES)
    assert api.model_info("user/adapter").sha == sha and len(sha) == 40
    assert sorted(api.list_repo_files("user/adapter")) == sorted(FILES)
    for path, data in FILES.items():
        assert Path(api.hf_hub_download("user/adapter", path, cache_dir=tmp_path / "one")).read_bytes() == data
    folder = Path(api.snapshot_download("user/adapter", cache_dir=tmp_path / "all"))
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert folder.name == sha


def test_info_tree_and_paths_tell_size_blob_and_lfs_alike(hub, api):
    hub.add_repo("user/adapter", FILES)
    siblings = {s.rfilename: s for s in api.model_info("user/adapter", files_metadata=True).siblings}
    tree = {entry.path: entry for entry in api.list_repo_tree("user/adapter", recursive=True)}
    (weights, folder) = api.get_paths_info("user/adapter", ["weights.safetensors", "sub", "missing"])[::-1]
    assert tree.keys() == FILES.keys() | {"sub", "sub/dir"}
    assert (weights.path, folder.path) == ("weights.safetensors", "sub")
    assert siblings["weights.safetensors"].lfs.sha256 == tree["weights.safetensors"].lfs.sha256 == weights.lfs.sha256
    assert siblings["README.md"].blob_id == tree["README.md"].blob_id and tree["README.md"].lfs is None
    assert {path: siblings[path].size for path in FILES} == {path: len(data) for path, data in FILES.items()}
    assert [entry.path for entry in api.list_repo_tree("user/adapter", "sub")] == ["sub/b \u00e9.txt", "sub/dir"]
    assert api.model_info("user/adapter").siblings[0].size is None


def test_blob_ids_are_those_of_git(hub, api):
    hub.add_repo("user/adapter", {"hello.txt": b"hello\n"})
    (entry,) = api.list_repo_tree("user/adapter")
    assert entry.blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin


def test_security_status_is_what_the_test_set(hub, api):
    hub.add_repo("user/adapter", FILES)
    assert api.model_info("user/adapter").security_repo_status is None
    assert api.model_info("user/adapter", securityStatus=True).security_repo_status["scansDone"] is True
    issue = {"path": "weights.safetensors", "level": "unsafe"}
    hub.repo("user/adapter").security["filesWithIssues"] = [issue]
    assert api.model_info("user/adapter", securityStatus=True).security_repo_status["filesWithIssues"] == [issue]
    safe = {
        entry.path: entry.security.safe
        for entry in api.list_repo_tree("user/adapter", expand=True, recursive=True)
        if hasattr(entry, "security")
    }
    assert [path for path in safe if not safe[path]] == ["weights.safetensors"]


def test_branch_tag_sha_and_pull_request_each_download_their_own_commit(hub, api, tmp_path):
    first = hub.add_repo("user/adapter", {"f.txt": b"1"})
    api.create_tag("user/adapter", tag="v1")
    api.create_branch("user/adapter", branch="dev/x", revision=first)
    second = hub.commit("user/adapter", {"f.txt": b"2"})
    hub.commit("user/adapter", {"f.txt": b"3"}, revision="dev/x")
    pull = api.create_commit("user/adapter", [CommitOperationAdd("f.txt", b"4")], commit_message="x", create_pr=True)
    wanted = {"v1": b"1", first: b"1", second: b"2", "main": b"2", "dev/x": b"3", pull.pr_revision: b"4"}
    for revision, data in wanted.items():
        folder = api.snapshot_download("user/adapter", revision=revision, cache_dir=tmp_path)
        assert Path(folder, "f.txt").read_bytes() == data, revision
    refs = api.list_repo_refs("user/adapter", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches}["main"] == second
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"] and refs.tags[0].target_commit == first
    assert api.list_repo_refs("user/adapter").pull_requests is None
    refused(409, api.create_tag, "user/adapter", tag="v1")
    refused(409, api.create_branch, "user/adapter", branch="dev/x")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("user/adapter", [CommitOperationAdd("f", b"")], commit_message="x", revision="v1")


def test_a_cached_sha_is_read_without_asking_the_hub(hub, api, tmp_path):
    sha = hub.add_repo("user/adapter", FILES)
    api.hf_hub_download("user/adapter", "README.md", revision=sha, cache_dir=tmp_path)
    asked = len(hub.requests)
    api.hf_hub_download("user/adapter", "README.md", revision=sha, cache_dir=tmp_path)
    assert len(hub.requests) == asked


def test_a_commit_adds_replaces_and_deletes_and_keeps_its_parent(hub, api):
    first = hub.add_repo("user/adapter", FILES)
    made = api.create_commit(
        "user/adapter",
        commit_message="title",
        commit_description="text",
        parent_commit=first,
        operations=[
            CommitOperationAdd("README.md", b"# new\n"),
            CommitOperationDelete("sub/"),
            CommitOperationAdd("empty.bin", b""),
        ],
    )
    commit = hub.repo("user/adapter").find("main")
    assert commit.tree == {
        "README.md": b"# new\n",
        "weights.safetensors": FILES["weights.safetensors"],
        "empty.bin": b"",
    }
    assert (commit.sha, commit.parents) == (made.oid, (first,))
    log = api.list_repo_commits("user/adapter")
    assert [(entry.commit_id, entry.title, entry.message) for entry in log] == [
        (made.oid, "title", "text"),
        (first, "Add files", ""),
    ]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("missing.txt", "user/adapter")


def test_a_stale_parent_is_answered_412_and_changes_nothing(hub, api):
    first = hub.add_repo("user/adapter", FILES)
    second = hub.commit("user/adapter", {"README.md": b"moved"})
    refused(
        412, api.create_commit, "user/adapter", [CommitOperationAdd("x", b"x")], commit_message="x", parent_commit=first
    )
    assert hub.repo("user/adapter").find("main").sha == second


def test_an_unchanged_file_makes_no_commit(hub, api):
    sha = hub.add_repo("user/adapter", FILES)
    same = [CommitOperationAdd("README.md", FILES["README.md"])]
    assert api.create_commit("user/adapter", same, commit_message="again").oid == sha
    assert not any("/commit/" in path for _, path in hub.requests)


def test_a_pull_request_starts_from_its_parent_commit_and_merges_over_a_moved_main(hub, api):
    first = hub.add_repo("user/adapter", FILES)
    moved = hub.commit("user/adapter", {"other.txt": b"o"})
    made = api.create_commit(
        "user/adapter",
        [CommitOperationAdd("README.md", b"# scanned\n")],
        create_pr=True,
        commit_message="Scan report",
        commit_description="all clean",
        parent_commit=first,
    )
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert hub.repo("user/adapter").find("refs/pr/1").parents == (first,)
    assert api.model_info("user/adapter").sha == moved
    again = api.create_commit(
        "user/adapter",
        [CommitOperationAdd("new.txt", b"n")],
        commit_message="more",
        revision="refs/pr/1",
        parent_commit=made.oid,
    )
    comment = api.comment_discussion("user/adapter", 1, "hello")
    api.merge_pull_request("user/adapter", 1, comment="thanks")

    details = api.get_discussion_details("user/adapter", 1)
    assert comment.content == "hello" and comment.author == "user"
    assert (details.title, details.status, details.git_reference) == ("Scan report", "merged", "refs/pr/1")
    assert [event.content for event in details.events if event.type == "comment"] == ["all clean", "hello", "thanks"]
    assert [event.oid for event in details.events if event.type == "commit"] == [made.oid, again.oid]
    assert details.merge_commit_oid == api.model_info("user/adapter").sha
    merged = hub.repo("user/adapter").find("main")
    assert merged.tree == FILES | {"README.md": b"# scanned\n", "other.txt": b"o", "new.txt": b"n"}
    assert merged.parents == (moved, again.oid)
    refused(409, api.merge_pull_request, "user/adapter", 1)


def test_a_pull_request_against_a_changed_file_does_not_merge(hub, api):
    hub.add_repo("user/adapter", FILES)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="README.md", repo_id="user/adapter", create_pr=True)
    head = hub.commit("user/adapter", {"README.md": b"yours"})
    refused(409, api.merge_pull_request, "user/adapter", 1)
    assert hub.repo("user/adapter").find("main").sha == head


def test_discussions_are_listed_by_type_status_and_author(hub, api):
    hub.add_repo("user/adapter", FILES)
    stranger = api_as(hub, STRANGER_TOKEN)
    stranger.create_discussion("user/adapter", "a question", description="why?")
    api.create_pull_request("user/adapter", "a draft")
    stranger.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/adapter", create_pr=True)
    api.change_discussion_status("user/adapter", 1, "closed", comment="because")

    def nums(**wanted) -> list[int]:
        return [found.num for found in api.get_repo_discussions("user/adapter", **wanted)]

    assert nums() == [3, 2, 1]
    assert nums(discussion_type="pull_request") == [3, 2] and nums(discussion_type="discussion") == [1]
    assert nums(discussion_status="closed") == [1] and nums(author="stranger") == [3, 1]
    assert api.get_discussion_details("user/adapter", 2).status == "draft"
    refused(404, api.get_discussion_details, "user/adapter", 4)


def test_a_stranger_may_push_to_their_own_pull_request_only(hub):
    hub.add_repo("user/adapter", FILES)
    stranger, add = api_as(hub, STRANGER_TOKEN), {"path_or_fileobj": b"x", "path_in_repo": "x"}
    refused(403, stranger.upload_file, repo_id="user/adapter", **add)
    stranger.upload_file(repo_id="user/adapter", create_pr=True, **add)
    stranger.upload_file(repo_id="user/adapter", revision="refs/pr/1", path_or_fileobj=b"y", path_in_repo="x")
    assert hub.repo("user/adapter").find("refs/pr/1").tree["x"] == b"y"
    refused(403, stranger.merge_pull_request, "user/adapter", 1)
    refused(403, stranger.create_tag, "user/adapter", tag="v1")
    refused(
        401,
        api_as(hub, False).upload_file,
        repo_id="user/adapter",
        create_pr=True,
        error=RepositoryNotFoundError,
        **add,
    )


def test_errors_arrive_as_the_exceptions_of_the_client(hub, api, tmp_path):
    hub.add_repo("user/adapter", FILES)
    hub.add_repo("user/gated", FILES, gated=True)
    hub.add_repo("user/private", FILES, private=True)
    anonymous, stranger = api_as(hub, False), api_as(hub, STRANGER_TOKEN)
    read = {"filename": "README.md", "cache_dir": tmp_path}
    refused(404, api.model_info, "user/missing", error=RepositoryNotFoundError)
    refused(401, anonymous.model_info, "user/missing", error=RepositoryNotFoundError)
    refused(404, api.dataset_info, "user/adapter", error=RepositoryNotFoundError)
    refused(404, api.hf_hub_download, "user/missing", error=RepositoryNotFoundError, **read)
    refused(404, api.model_info, "user/adapter", revision="nope", error=RevisionNotFoundError)
    refused(404, api.hf_hub_download, "user/adapter", revision="0" * 40, error=RevisionNotFoundError, **read)
    refused(404, api.hf_hub_download, "user/adapter", "nope.txt", cache_dir=tmp_path, error=EntryNotFoundError)
    refused(404, lambda: list(api.list_repo_tree("user/adapter", "nope")), error=EntryNotFoundError)
    refused(401, anonymous.hf_hub_download, "user/gated", error=GatedRepoError, **read)
    refused(403, stranger.hf_hub_download, "user/gated", error=GatedRepoError, **read)
    assert anonymous.model_info("user/gated").gated == "manual"
    refused(404, stranger.model_info, "user/private", error=RepositoryNotFoundError)
    refused(401, anonymous.hf_hub_download, "user/private", error=RepositoryNotFoundError, **read)
    refused(401, api_as(hub, "hf_unknown").model_info, "user/adapter")
    for repo_id in ("user/gated", "user/private"):
        assert Path(api.hf_hub_download(repo_id, **read)).read_bytes() == FILES["README.md"]


def test_repos_are_created_once_and_belong_to_a_type(hub, api):
    assert api.whoami()["name"] == "user" and api_as(hub, STRANGER_TOKEN).whoami()["name"] == "stranger"
    assert api.create_repo("adapter").repo_id == "user/adapter"
    assert api.create_repo("user/adapter", repo_type="dataset", private=True).repo_type == "dataset"
    refused(409, api.create_repo, "user/adapter")
    assert api.create_repo("user/adapter", exist_ok=True).repo_id == "user/adapter"
    assert api.dataset_info("user/adapter").private and not api.model_info("user/adapter").private
    assert api.list_repo_files("user/adapter") == [".gitattributes"]


def test_failures_asked_for_come_as_often_as_asked_and_only_where_asked(hub, api):
    hub.add_repo("user/adapter", FILES)
    hub.fail_next(2, status=502)
    refused(502, api.model_info, "user/adapter")
    refused(502, api.model_info, "user/adapter")
    hub.fail_next(1, status=412, matching="POST /api/models/user/adapter/commit")
    assert api.model_info("user/adapter")
    refused(412, api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="user/adapter")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/adapter")
    assert hub.requests[:2] == [("GET", "/api/models/user/adapter")] * 2


def test_what_is_not_served_says_so(hub, api):
    refused(501, api.space_info, "user/space")
    refused(501, lambda: list(api.list_datasets()))


def test_an_owners_models_are_listed_with_their_files_page_by_page(hub, api):
    for i in range(60):
        hub.add_repo(f"listed/m{i}", {"config.json": b"{}"})
    hub.add_repo("listed/secret", {}, private=True)
    found = list(api.list_models(author="listed", expand=["siblings"]))
    assert len(found) == 61 and {s.rfilename for m in found for s in m.siblings} == {"config.json"}
    assert len(list(HfApi(hub.url, token=STRANGER_TOKEN).list_models(author="listed"))) == 60


def test_a_stopped_hub_refuses_connections_and_keeps_its_repos():
    with LoopbackHub() as hub:
        hub.add_repo("user/adapter", FILES)
        api = api_as(hub)
        api.model_info("user/adapter")
    with pytest.raises(httpx2.ConnectError):
        api.model_info("user/adapter")
    assert hub.repo("user/adapter").find("main").tree == FILES


def test_shas_repeat_from_run_to_run():
    def history() -> list[str]:
        with LoopbackHub() as hub:
            return [hub.add_repo("user/adapter", FILES), hub.commit("user/adapter", {"README.md": None})]

    assert history() == history() and len(set(history())) == 2


def test_folders_upload_through_both_regular_and_lfs(hub, tmp_path):
    folder = tmp_path / "folder"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    out = run_client(
        hub,
        tmp_path / "home",
        f"""
        import json
        from huggingface_hub import HfApi, ModelCard, hf_hub_download, upload_file, upload_folder
        ModelCard("---\\nlicense: mit\\n---\\n").validate()  # the client asks this without a token
        HfApi().create_repo("user/new")
        HfApi().create_repo("user/data", repo_type="dataset", private=True)
        first = upload_folder(repo_id="user/new", folder_path={str(folder)!r}, commit_message="all of it")
        again = upload_folder(repo_id="user/new", folder_path={str(folder)!r})
        made = upload_file(path_or_fileobj=b"rows", path_in_repo="d/t.parquet", repo_id="user/data",
                           repo_type="dataset", create_pr=True)
        back = hf_hub_download("user/data", "d/t.parquet", repo_type="dataset", revision=made.pr_revision)
        print(json.dumps([first.oid, again.oid, made.pr_url, open(back).read()]))
    """,
    )
    new = hub.repo("user/new").find("main")
    assert out == [new.sha, new.sha, f"{hub.url}/datasets/user/data/discussions/1", "rows"]
    assert {path: new.tree[path] for path in FILES} == FILES
    assert ("POST", "/api/validate-yaml") in hub.requests
    uploads = [path for method, path in hub.requests if method == "PUT"]
    assert len(uploads) == 2 and uploads[0].startswith("/user/new/lfs/")


@pytest.mark.parametrize("private", [False, True])
def test_load_dataset_reads_parquet_whole_and_streamed(hub, tmp_path, private):
    for_split = {"train": range(5), "test": range(5, 7)}
    files = {"README.md": b"---\nlicense: mit\n---\n# rows\n"}
    for split, rows in for_split.items():
        sink = io.BytesIO()
        pq.write_table(pa.table({"row": list(rows)}), sink)
        files[f"data/{split}-00000-of-00001.parquet"] = sink.getvalue()
    hub.add_repo("user/rows", files, repo_type="dataset", private=private)
    out = run_client(
        hub,
        tmp_path,
        """
        import json
        from datasets import load_dataset
        whole = load_dataset("user/rows")
        streamed = load_dataset("user/rows", split="test", streaming=True)
        print(json.dumps([{name: split["row"][:] for name, split in whole.items()}, [x["row"] for x in streamed]]))
    """,
    )
    assert out == [{"train": [0, 1, 2, 3, 4], "test": [5, 6]}, [5, 6]]


def test_listings_come_in_pages_and_the_client_turns_them(hub, api):
    hub.add_repo("user/many", {f"f{i:03}.txt": b"x" for i in range(120)})
    assert len(list(api.list_repo_tree("user/many"))) == 120
    assert sum("cursor=" in path for _, path in hub.requests) == 2
    for i in range(60):
        api.create_discussion("user/many", f"talk {i}")
    assert len(list(api.get_repo_discussions("user/many"))) == 60


@pytest.mark.parametrize("how", ["drop", "truncated"])
def test_a_damaged_download_is_noticed_or_resumed_and_the_next_one_is_whole(hub, api, tmp_path, how):
    hub.add_repo("user/adapter", FILES)
    hub.spoil_next(how)
    try:
        path = api.hf_hub_download("user/adapter", "weights.safetensors", cache_dir=tmp_path / "one")
    except OSError:
        assert how == "truncated"
    else:
        assert how == "drop" and Path(path).read_bytes() == FILES["weights.safetensors"]
    path = api.hf_hub_download("user/adapter", "weights.safetensors", cache_dir=tmp_path / "two")
    assert Path(path).read_bytes() == FILES["weights.safetensors"]


def test_a_slow_answer_is_slow_and_a_wrong_etag_is_wrong(hub, api, tmp_path):
    hub.add_repo("user/adapter", FILES)
    hub.spoil_next("slow")
    started = time.perf_counter()
    path = api.hf_hub_download("user/adapter", "README.md", cache_dir=tmp_path)
    assert time.perf_counter() - started >= 1 and Path(path).read_bytes() == FILES["README.md"]
    url = f"{hub.url}/user/adapter/resolve/main/README.md"
    hub.spoil_next("etag")
    wrong, right = (httpx2.head(url, headers={"Authorization": "Bearer hf_owner"}).headers["ETag"] for _ in range(2))
    assert wrong == '"0000"' != right


def test_retry_after_goes_with_a_refusal(hub, api):
    hub.add_repo("user/adapter", FILES)
    hub.fail_next(1, 429, "/api/models", **{"Retry-After": "7"})
    with pytest.raises(HfHubHTTPError) as caught:
        api.model_info("user/adapter")
    assert caught.value.response.headers["Retry-After"] == "7"


def test_metadata_that_is_no_yaml_is_refused(hub, api):
    hub.add_repo("user/adapter", FILES)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="user/adapter")


def test_a_webhook_is_delivered_to_whoever_watches(hub, api):
    hub.add_repo("user/adapter", FILES)
    hook = api.create_webhook(url="http://127.0.0.1:9/", watched=[{"type": "user", "name": "user"}], secret="s")
    other = api.create_webhook(url="http://127.0.0.1:9/", watched=[{"type": "org", "name": "others"}])
    assert [w.id for w in api.list_webhooks()] == [hook.id, other.id]
    before = hub.repo("user/adapter").find("main").sha
    sha = api.upload_file(path_or_fileobj=b"x", path_in_repo="new.txt", repo_id="user/adapter").oid
    ((id, payload),) = hub.deliveries
    assert id == hook.id and payload["repo"]["name"] == "user/adapter"
    assert payload["updatedRefs"] == [{"ref": "refs/heads/main", "oldSha": before, "newSha": sha}]


def test_a_job_s_identity_buys_a_token_for_its_repo_alone(hub, tmp_path):
    hub.add_repo("user/adapter", FILES)
    hub.add_repo("user/other", FILES)
    script = """
        import json
        from huggingface_hub import HfApi
        results = []
        for repo in ("user/adapter", "user/other"):
            try:
                HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="new.txt", repo_id=repo)
                results.append("written")
            except Exception as error:
                results.append(error.response.status_code)
        print(json.dumps(results))
    """
    job = {
        "HF_OIDC_RESOURCE": "user/adapter",
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{hub.url}/identity",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=env | hub.env(tmp_path, token="") | job,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["written", 403]
