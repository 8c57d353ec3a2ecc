"""Uploads, and the request and the result of every route."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from fake_server import FakeServer, Reply, ok, refuse
from samples import JOB_PATH, file, job, page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright

JOBS = "/v1/fine_tuning/jobs"


def test_a_retried_upload_sends_the_same_bytes(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    path = tmp_path / "träin.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    server.on("POST", "/v1/files", refuse(503), ok(file(1)))
    assert client.files.upload(path).id == "file-1"
    first, second = server.requests
    assert first.body == second.body
    assert first.headers["content-type"] == second.headers["content-type"]
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert b'{"a": 1}\n' in first.body
    assert b'name="purpose"\r\n\r\nfine-tune' in first.body

    client.files.upload(b"123", purpose="eval", filename="x.jsonl")
    assert b'filename="x.jsonl"' in server.requests[-1].body
    assert b"\r\n\r\n123\r\n" in server.requests[-1].body
    assert b"\r\n\r\neval\r\n" in server.requests[-1].body
    assert b"expires_after" not in server.requests[-1].body

    client.files.upload(b"123", expires_after=3600)
    assert b'name="expires_after[anchor]"\r\n\r\ncreated_at' in server.requests[-1].body
    assert b'name="expires_after[seconds]"\r\n\r\n3600' in server.requests[-1].body

    with path.open("rb") as opened:
        opened.read(4)
        server.on("POST", "/v1/files", refuse(503), ok(file(2)))
        client.files.upload(opened)
    assert server.requests[-1].body.count(b'{"a": 1}\n') == 1
    assert server.requests[-2].body.split(b"\r\n", 1)[1] == server.requests[-1].body.split(b"\r\n", 1)[1]

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    server.on("POST", "/v1/files", refuse(503), ok(file(3)))
    client.files.upload(Pipe(b"piped"))
    assert b"piped" in server.requests[-1].body

    async def run() -> None:
        async with AsyncTunewright(server.url) as other:
            await other.files.upload(str(path))

    asyncio.run(run())
    assert b'{"a": 1}\n' in server.requests[-1].body


def test_jobs_are_listed_by_their_metadata_on_every_page(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", JOBS, ok(page([job("running")], has_more=True)), ok(page([])))
    assert len(list(client.jobs.list(limit=1, metadata={"team": "a b", "run": "7"}))) == 1
    wanted = {"metadata[team]": "a b", "metadata[run]": "7", "limit": "1"}
    first, second = (request.query for request in server.requests)
    assert (first, second) == (wanted, {**wanted, "after": "ftjob-1"})


def test_a_missing_or_text_file_is_not_uploaded(client: Tunewright, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.files.upload(tmp_path / "none.jsonl")
    with pytest.raises(TypeError, match="rb"):
        client.files.upload(io.StringIO("text"))  # type: ignore[arg-type]


def test_local_files_of_a_job_are_uploaded_first(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)), ok(file(2)))
    server.on("POST", JOBS, ok(job("queued")))
    client.jobs.create(
        "base",
        tmp_path / "train.jsonl",
        validation_file=tmp_path / "valid.jsonl",
        tuning=tw.Tuning(type="lora", rank=8, new_setting=1),  # type: ignore[call-arg]
        idempotency_key="k",
    )
    assert server.requests[-1].json == {
        "model": "base",
        "training_file": "file-1",
        "validation_file": "file-2",
        "tuning": {"type": "lora", "rank": 8, "new_setting": 1},
    }
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == ["k-training-file", "k-validation-file", "k"]


def test_the_files_of_a_mix_are_uploaded_once_each(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    train, rare = tmp_path / "train.jsonl", tmp_path / "rare.jsonl"
    for path in (train, rare):
        path.write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)), ok(file(2)))
    server.on("POST", JOBS, ok(job("queued")))
    client.jobs.create(
        "base", train, mix={rare: 2.0, "file-9": 1, train: 0.5}, data={"alpaca": "chat"}, idempotency_key="k"
    )
    assert server.requests[-1].json == {
        "model": "base",
        "training_file": "file-1",
        "data": {
            "alpaca": "chat",
            "mix": [
                {"file": "file-2", "weight": 2.0},
                {"file": "file-9", "weight": 1},
                {"file": "file-1", "weight": 0.5},
            ],
        },
    }
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == ["k-training-file", "k-training-1", "k"]


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b'{"r": 4}')
    (folder / "adapter_model.safetensors").write_bytes(b"\x00weights")
    (folder / "README.md").write_text("a card")
    return folder


def test_the_two_files_of_an_adapter_folder_are_uploaded(
    server: FakeServer, client: Tunewright, adapter_folder: Path, tmp_path: Path
) -> None:
    lineage = {"origin": "x", "seed": 7, "metrics": {"train_loss": 0.5}, "later": 1}
    server.on("POST", "/v1/adapters/upload", refuse(503), ok({"id": "adapter-1", "lineage": lineage}))
    shown = client.adapters.register(adapter_folder, base="tiny", suffix="mine", idempotency_key="k")
    assert shown.lineage is not None
    assert (shown.lineage.seed, shown.lineage.metrics) == (7, {"train_loss": 0.5})
    first, second = server.requests
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "k"
    assert first.body.count(b'name="file"') == 2
    for expected in (
        b'filename="adapter_config.json"',
        b'{"r": 4}\r\n',
        b'filename="adapter_model.safetensors"',
        b"\x00weights\r\n",
        b'name="base"\r\n\r\ntiny\r\n',
        b'name="suffix"\r\n\r\nmine\r\n',
        b'name="load"\r\n\r\ntrue\r\n',
    ):
        assert expected in first.body
    assert b"README" not in first.body

    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"packed")

    async def run() -> None:
        async with AsyncTunewright(server.url) as other:
            await other.adapters.register(str(archive), load=False)

    asyncio.run(run())
    body = server.requests[-1].body
    assert body.count(b'name="file"') == 1
    assert b'filename="a.tar.gz"' in body
    assert b'name="load"\r\n\r\nfalse' in body
    assert b'name="base"' not in body


def test_a_folder_of_mlx_and_a_checkpoint_in_an_archive_are_uploaded(
    server: FakeServer, client: Tunewright, adapter_folder: Path, tmp_path: Path
) -> None:
    server.on("POST", "/v1/adapters/upload", ok({"id": "adapter-1"}))
    (adapter_folder / "adapter_model.safetensors").rename(adapter_folder / "adapters.safetensors")
    client.adapters.register(adapter_folder)
    assert b'filename="adapters.safetensors"' in server.requests[-1].body
    assert b'name="folder"' not in server.requests[-1].body
    (tmp_path / "run.zip").write_bytes(b"packed")
    client.adapters.register(tmp_path / "run.zip", folder="checkpoint-200")
    assert b'name="folder"\r\n\r\ncheckpoint-200\r\n' in server.requests[-1].body
    with pytest.raises(ValueError, match="folder goes with source"):
        client.adapters.register(path="/srv/run", folder="checkpoint-200")


def test_an_adapter_is_registered_by_server_path_or_hub_id(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", "/v1/adapters", ok({"id": "adapter-1", "source": "folder"}))
    assert client.adapters.register(path="/srv/a", suffix="s").source == "folder"
    assert server.requests[-1].json == {"path": "/srv/a", "suffix": "s", "load": True}
    client.adapters.register(hub_id="org/a", revision="v1", base="b", load=False)
    assert server.requests[-1].json == {"hub_id": "org/a", "revision": "v1", "base": "b", "load": False}


def test_an_adapter_without_exactly_one_source_is_refused(
    server: FakeServer, client: Tunewright, adapter_folder: Path, tmp_path: Path
) -> None:
    for given in ({}, {"source": adapter_folder, "path": "/a"}, {"path": "/a", "hub_id": "a/b"}):
        with pytest.raises(ValueError, match="one of"):
            client.adapters.register(**given)
    (adapter_folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        client.adapters.register(adapter_folder)
    with pytest.raises(FileNotFoundError):
        client.adapters.register(tmp_path / "none.tar")
    assert server.requests == []


def test_every_method_uses_its_route(server: FakeServer, client: Tunewright) -> None:
    model = {"id": "ft:base/7b:demo:1", "object": "model", "created": 1, "owned_by": "me", "root": "base/7b"}
    adapter = {"id": "adapter-1", "object": "adapter", "model": model["id"], "rank": 8, "state": "loaded"}
    gone = {"id": "x", "object": "file", "deleted": True}
    name = "ft%3Abase%2F7b%3Ademo%3A1"
    checkpoint = {"id": "ftckpt-1", "step_number": 5, "metrics": {"valid_loss": 0.5}}
    for method, path, reply in (
        ("GET", "/v1/files/file-1", ok(file(1))),
        ("GET", "/v1/files/file-1/content", Reply(200, b"\x00\x01")),
        ("DELETE", "/v1/files/file-1", ok(gone)),
        ("POST", f"{JOB_PATH}/cancel", ok(job("cancelled"))),
        ("POST", f"{JOB_PATH}/pause", ok(job("pausing"))),
        ("POST", f"{JOB_PATH}/resume", ok(job("queued"))),
        ("GET", f"{JOB_PATH}/checkpoints", ok(page([checkpoint]))),
        ("GET", f"{JOB_PATH}/logs", Reply(200, "liné 1\n".encode(), {"content-type": "text/plain"})),
        ("GET", JOBS, ok(page([job()]))),
        ("GET", "/v1/adapters", ok({"object": "list", "data": [adapter]})),
        ("GET", f"/v1/adapters/{name}", ok(adapter)),
        ("POST", f"/v1/adapters/{name}/load", ok(adapter)),
        ("POST", "/v1/adapters/adapter-1/unload", ok(adapter)),
        ("POST", "/v1/adapters/adapter-1/pin", ok({**adapter, "pinned": True})),
        ("POST", "/v1/adapters/adapter-1/unpin", ok(adapter)),
        ("POST", "/v1/adapters/adapter-1/check", ok({**adapter, "parity": {"check_pending": True}})),
        ("DELETE", f"/v1/adapters/{name}", ok(gone)),
        ("GET", "/v1/models", ok({"object": "list", "data": [model]})),
        ("GET", f"/v1/models/{name}", ok(model)),
        ("DELETE", f"/v1/models/{name}", ok(gone)),
        ("GET", "/health", ok({"status": "ok"})),
    ):
        server.on(method, path, reply)
    assert client.files.retrieve("file-1").bytes == 3
    assert client.files.content("file-1") == b"\x00\x01"
    assert client.files.delete("file-1").deleted
    [listed] = client.jobs.list(limit=5)
    assert listed.cancel().is_final
    assert listed.pause().status == tw.JobStatus.PAUSING
    assert listed.resume().status == "queued"
    assert [found.metrics.valid_loss for found in listed.checkpoints()] == [0.5]
    assert listed.logs(tail=3) == "liné 1\n"
    assert server.requests[-1].query == {"tail": "3"}
    assert [found.rank for found in client.adapters.list()] == [8]
    assert client.adapters.retrieve("ft:base/7b:demo:1").state == "loaded"
    client.adapters.load("ft:base/7b:demo:1")
    assert server.requests[-1].query == {}
    client.adapters.load("ft:base/7b:demo:1", force=True)
    assert server.requests[-1].query == {"force": "true"}
    checking = client.adapters.check("adapter-1").parity
    assert checking is not None
    assert checking.check_pending
    client.adapters.unload("adapter-1")
    assert client.adapters.pin("adapter-1").pinned
    assert not client.adapters.unpin("adapter-1").pinned
    assert client.adapters.delete("ft:base/7b:demo:1").deleted
    list(client.adapters.list(limit=9, base="b", state="failed", loaded=False, job="j"))
    asked = {"limit": "9", "base": "b", "state": "failed", "loaded": "false", "job": "j"}
    assert server.requests[-1].query == asked
    assert [found.id for found in client.models.list()] == [model["id"]]
    assert client.models.retrieve("ft:base/7b:demo:1").model_extra == {"root": "base/7b"}
    client.models.delete("ft:base/7b:demo:1")
    assert client.health() == {"status": "ok"}
    assert all(request.headers["authorization"] == "Bearer key-1" for request in server.requests)
    assert all(
        "idempotency-key" in request.headers for request in server.requests if request.method == "POST"
    )
    assert server.requests[0].headers["user-agent"] == f"tunewright-client/{tw.__version__}"


def test_an_empty_id_sends_no_request(server: FakeServer, client: Tunewright) -> None:
    with pytest.raises(ValueError, match="empty"):
        client.files.delete("")
    assert server.requests == []


def test_a_report_and_a_card_are_texts(server: FakeServer, client: Tunewright) -> None:
    path = "/v1/models/ft%3Abase%3Aa%2Fb%3A1"
    server.on("GET", path + "/report", Reply(200, "<!doctype html>é".encode(), {"content-type": "text/html"}))
    server.on("GET", path + "/card", Reply(200, b"---\n", {"content-type": "text/markdown; charset=utf-8"}))
    assert client.models.report("ft:base:a/b:1") == "<!doctype html>é"
    assert server.requests[-1].headers["accept"] == "text/html"
    assert client.models.card("ft:base:a/b:1") == "---\n"
