"""The HTTP API on a real store, without its workers: what it accepts, what it refuses, and with which errors."""

from __future__ import annotations

import hmac
import io
import json
import os
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import openai.types.fine_tuning
import pytest
from openai._streaming import SSEDecoder
from starlette.testclient import TestClient

from fake_engine import gateway_for
from rows import FILE, Publish, create_job, engine_info
from tunewright.api.fine_tuning import creation
from tunewright.api.http import access
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs import feeds
from tunewright.api.models import artifacts
from tunewright.config import RetentionOptions, Settings
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.fine_tuning.kind import request_of
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.retention import Retention
from tunewright.store.records import Job
from tunewright.store.states import Desired, EngineState, JobState, Residency
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import beat

BASE = "tunewright-tiny"
ROW = b'{"prompt": "a", "completion": "b"}\n'


class Worker:
    """A stand-in for the engine worker: it records the operations and answers as the test sets."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[tuple[str, str]] = []
        self.error: str | None = None

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((operation["op"], operation["model"]))
        if self.error:
            return {"error": self.error}
        self._store.models.want(operation["model"], Desired(operation["op"] + "ed"))
        return {"state": operation["op"] + "ed"}


Make = Callable[..., TestClient]


@pytest.fixture
def worker(store: Store) -> Worker:
    return Worker(store)


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """(server, spec) by options: a server's parts do not change from test to test, its store does."""
    return {}


@pytest.fixture
def make(built: dict[str, Any], store: Store, data: Workspace, worker: Worker) -> Make:
    def client(**options: Any) -> TestClient:
        settings = Settings(data_dir=data.path, max_upload="200KB", **options)
        store.engines.declare([base.name for base in settings.models.bases])
        if str(options) not in built:
            built[str(options)] = build(settings, store)
        server, spec = built[str(options)]
        spec.gateway = gateway_for(store)
        server.app.state.context = ServiceContext(settings, store, data, worker.control)
        return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    return client


@pytest.fixture
def api(make: Make) -> TestClient:
    return make()


def error(response: Any, status: int) -> dict[str, Any]:
    """The error of a response that must have that status and OpenAI's form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "x-request-id" in response.headers
    return dict(body["error"])


def upload(api: TestClient, content: bytes = ROW, name: str = "train.jsonl") -> str:
    answer = api.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def job_body(api: TestClient, **more: Any) -> dict[str, Any]:
    return {"model": BASE, "training_file": upload(api), **more}


def create(api: TestClient, **more: Any) -> dict[str, Any]:
    answer = api.post("/v1/fine_tuning/jobs", json=job_body(api, **more))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.fixture
def publish(publish_model: Publish, data: Workspace) -> Callable[..., str]:
    """Creates a tuned model and its artifact; returns its name."""

    def run(name: str = f"ft:{BASE}:s:12345678", **values: Any) -> str:
        row = {
            "name": name, "base": BASE, "rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"], **values,
        }  # fmt: skip
        assert publish_model(row)
        folder = data.artifacts.local(row.get("sha256", "a" * 64))
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(CONFIG)
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
        return name

    return run


CONFIG = '{"r": 4, "lora_dropout": 0.0, "use_rslora": false}'
WEIGHTS = bytes(range(256)) * 9
Made = Callable[..., str]


# paths


@pytest.mark.parametrize("path", ["/v1//files", "//v1/files", "/v1///files", "//v1//files"])
def test_repeated_slashes_of_a_path_are_taken_for_one(api: TestClient, path: str) -> None:
    assert api.get(f"http://127.0.0.1:8000{path}").json() == api.get("/v1/files").json()
    large = api.post(f"http://127.0.0.1:8000{path}", files={"file": ("a", b"x" * 2_000_000)})
    assert error(large, 413)["code"] == "too_large", "the limit of the path is that of the single slash"
    unknown = error(api.get("http://127.0.0.1:8000/v1//nothing"), 404)
    assert unknown["message"] == "There is no GET /v1/nothing here."


def test_slashes_in_a_name_are_the_name_s(api: TestClient) -> None:
    assert "'a//b'" in error(api.get("/v1/models/a%2F%2Fb"), 404)["message"]


# files


def test_a_file_comes_back_byte_for_byte(api: TestClient, data: Workspace) -> None:
    content = b"\xef\xbb\xbf" + ROW + b"\r\n\xff"
    id = upload(api, content, "träin.jsonl")
    shown = api.get(f"/v1/files/{id}").json()
    assert (shown["bytes"], shown["filename"], shown["purpose"]) == (len(content), "träin.jsonl", "fine-tune")
    assert (shown["object"], shown["status"]) == ("file", "error")
    assert shown["status_details"].startswith("line 3: not UTF-8 text")
    answer = api.get(f"/v1/files/{id}/content")
    assert answer.content == content
    assert list(data.tmp.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\x\\y.jsonl", "/abs/olute.jsonl", "a\r\nSet-Cookie: x"]
)
def test_a_filename_is_only_a_name(api: TestClient, data: Workspace, name: str) -> None:
    id = upload(api, ROW, name)
    shown = api.get(f"/v1/files/{id}").json()["filename"]
    assert "/" not in shown
    assert "\\" not in shown
    assert [path.name for path in data.files.iterdir()] == [id]
    assert "set-cookie" not in api.get(f"/v1/files/{id}/content").headers


def upload_form(api: TestClient, **form: Any) -> Any:
    return api.post("/v1/files", files={"file": ("a.jsonl", ROW)}, data={"purpose": "fine-tune", **form})


def expiry(anchor: str = "created_at", seconds: object = 3600) -> dict[str, Any]:
    return {"expires_after[anchor]": anchor, "expires_after[seconds]": seconds}


def test_a_file_expires_when_its_upload_said(api: TestClient, store: Store, data: Workspace) -> None:
    file = upload_form(api, **expiry()).json()
    lasting = upload_form(api).json()
    assert (file["expires_at"], lasting["expires_at"]) == (file["created_at"] + 3600, None)
    assert api.get(f"/v1/files/{file['id']}").json() == file
    for now, there in ((file["expires_at"] - 1, True), (file["expires_at"], False)):
        Retention(RetentionOptions(), store, data, lambda now=now: now).round()  # type: ignore[misc]
        assert (api.get(f"/v1/files/{file['id']}").status_code == 200) is there
    assert api.get(f"/v1/files/{lasting['id']}").status_code == 200
    assert [path.name for path in data.files.iterdir()] == [lasting["id"]]


def test_an_expired_file_stays_until_no_job_needs_it(api: TestClient, store: Store, data: Workspace) -> None:
    id = upload_form(api, **expiry()).json()["id"]
    job = api.post("/v1/fine_tuning/jobs", json={"model": BASE, "training_file": id}).json()["id"]
    retention = Retention(RetentionOptions(), store, data, lambda: time.time() + 3601)
    retention.round()
    assert api.get(f"/v1/files/{id}").status_code == 200
    api.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    retention.round()
    error(api.get(f"/v1/files/{id}"), 404)


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ({"nonsense": "1"}, "nonsense", "unknown_parameter"),
        ({"expires_after": "3600"}, "expires_after", "unknown_parameter"),
        ({"purpose": ["fine-tune", "fine-tune"]}, "purpose", "invalid_value"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]", "missing_parameter"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]", "missing_parameter"),
        (expiry(anchor="last_active_at"), "expires_after[anchor]", "invalid_value"),
        (expiry(seconds=3599), "expires_after[seconds]", "invalid_value"),
        (expiry(seconds=2_592_001), "expires_after[seconds]", "invalid_value"),
        (expiry(seconds="soon"), "expires_after[seconds]", "invalid_value"),
        ({"purpose": "user_data"}, "purpose", "unsupported"),
        ({"purpose": "lunch"}, "purpose", "invalid_value"),
    ],
)
def test_a_field_of_an_upload_is_never_ignored(
    api: TestClient, data: Workspace, form: dict[str, Any], param: str, code: str
) -> None:
    refused = error(upload_form(api, **form), 400)
    assert (refused["param"], refused["code"]) == (param, code)
    assert list(data.files.iterdir()) == []


def test_files_are_paged(api: TestClient) -> None:
    ids = [upload(api) for _ in range(5)]
    page = api.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in page["data"]] == ids[:2:-1]
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (ids[4], ids[3])
    rest = api.get("/v1/files", params={"limit": 9, "after": ids[3]}).json()
    assert [file["id"] for file in rest["data"]] == [*ids[2::-1], FILE["id"]]
    assert rest["has_more"] is False
    oldest = api.get("/v1/files", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == FILE["id"]
    assert error(api.get("/v1/files", params={"after": "file-none"}), 400)["param"] == "after"
    assert error(api.get("/v1/files", params={"limit": 0}), 400)["param"] == "limit"
    assert error(api.get("/v1/files", params={"order": "up"}), 400)["param"] == "order"
    assert api.get("/v1/files", params={"purpose": "assistants"}).json()["data"] == []


def test_a_deleted_file_is_gone(api: TestClient, data: Workspace) -> None:
    id = upload(api)
    assert api.delete(f"/v1/files/{id}").json() == {"id": id, "object": "file", "deleted": True}
    assert list(data.files.iterdir()) == []
    for answer in (
        api.get(f"/v1/files/{id}"),
        api.get(f"/v1/files/{id}/content"),
        api.delete(f"/v1/files/{id}"),
    ):
        assert error(answer, 404)["code"] == "file_not_found"


def test_a_file_that_a_job_needs_stays(api: TestClient) -> None:
    job = create(api)
    assert error(api.delete(f"/v1/files/{job['training_file']}"), 400)["code"] == "file_in_use"
    api.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert api.delete(f"/v1/files/{job['training_file']}").status_code == 200


def test_a_job_shows_the_file_that_is_gone_and_reading_it_is_a_404(
    api: TestClient, store: Store, data: Workspace
) -> None:
    job = create(api)
    api.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    Retention(RetentionOptions(keep_files_days=1), store, data, lambda: time.time() + 99_999).round()
    refused = error(api.get(f"/v1/files/{job['training_file']}/content"), 404)
    assert refused["code"] == "file_not_found"
    assert "deleted" in refused["message"]
    shown = api.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert shown["training_file"] == job["training_file"]


def test_a_file_whose_bytes_go_this_moment_is_a_404(api: TestClient, data: Workspace) -> None:
    id = upload(api)
    data.file(id).unlink()
    assert error(api.get(f"/v1/files/{id}/content"), 404)["code"] == "file_not_found"


def test_a_file_that_goes_while_its_job_is_checked_is_refused(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = job_body(api)
    real = creation._model

    def slow(*arguments: Any) -> Any:
        store.files.delete(body["training_file"])
        return real(*arguments)

    monkeypatch.setattr(creation, "_model", slow)
    refused = error(api.post("/v1/fine_tuning/jobs", json=body), 400)
    assert refused["param"] == "training_file"
    assert body["training_file"] in refused["message"]


@pytest.mark.parametrize(
    ("files", "form", "param"),
    [
        ({"file": ("a", ROW)}, {"purpose": "assistants"}, "purpose"),
        ({"file": ("a", ROW)}, {}, "purpose"),
        ({"file": ("a", b"")}, {"purpose": "fine-tune"}, "file"),
        ({"other": ("a", ROW)}, {"purpose": "fine-tune"}, "file"),
    ],
)
def test_uploads_that_are_refused(
    api: TestClient, data: Workspace, files: Any, form: Any, param: str
) -> None:
    assert error(api.post("/v1/files", files=files, data=form), 400)["param"] == param
    assert list(data.tmp.iterdir()) == list(data.files.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    api: TestClient, data: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    answer = api.post("/v1/files", files={"file": ("a", ROW)}, data={"purpose": "fine-tune"})
    refused = error(answer, 507)
    assert (refused["code"], refused["type"]) == ("storage_full", "server_error")
    assert "Nothing of it is kept" in refused["message"]
    assert list(data.tmp.iterdir()) == list(data.files.iterdir()) == []
    assert [file["id"] for file in api.get("/v1/files").json()["data"]] == [FILE["id"]]


# bodies that are too large


def form_of(content: Iterator[bytes]) -> Iterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    yield from content
    yield b"\r\n--x--\r\n"


async def chunked_post(
    app: Any, path: str, chunks: Iterator[bytes], content_type: str
) -> tuple[int, bytes, int]:
    """An upload of unknown length, straight at the application: (status, body, bytes it read)."""
    sent = read = 0
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        nonlocal read
        chunk = next(chunks, None)
        if chunk is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        read += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        nonlocal sent, status, body
        if message["type"] == "http.response.start":
            status = message["status"]
            sent += 1
        body += message.get("body", b"")

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "client": ("c", 1), "server": ("s", 1),
        "headers": [(b"content-type", content_type.encode()), (b"host", b"localhost")], "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    assert sent == 1, "one answer"
    return status, body, read


@pytest.mark.anyio
async def test_a_body_that_grows_too_large_is_refused_while_it_streams(
    api: TestClient, data: Workspace
) -> None:
    # 64 MiB, which are endless against a limit of 1.2
    endless = form_of(iter([b"x" * 65536] * 1000))
    tracemalloc.start()
    status, body, read = await chunked_post(api.app, "/v1/files", endless, "multipart/form-data; boundary=x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large")
    assert read < 200_000 + 2**20 + 200_000, "no more is read than the limit"
    assert peak < 16 * 2**20
    assert list(data.files.iterdir()) == []


@pytest.mark.anyio
async def test_a_large_upload_is_not_held_in_memory(make: Make, data: Workspace) -> None:
    api = make()
    app = build(Settings(data_dir=data.path, max_upload="64MiB"), api.app.state.context.store)[0].app  # type: ignore[attr-defined]
    block = b"x" * 65536
    tracemalloc.start()
    status, body, _ = await chunked_post(
        app, "/v1/files", form_of(iter([block] * 480)), "multipart/form-data; boundary=x"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 200, body
    assert json.loads(body)["bytes"] == 480 * 65536
    assert peak < 12 * 2**20, f"30 MiB were uploaded with {peak / 2**20:.0f} MiB in memory"


def test_a_declared_length_is_refused_before_it_is_read(api: TestClient) -> None:
    answer = api.post("/v1/fine_tuning/jobs", content=b"x", headers={"content-length": str(2**40)})
    assert error(answer, 413)["code"] == "too_large"


def test_other_routes_have_their_own_limit(api: TestClient) -> None:
    assert (
        error(api.post("/v1/fine_tuning/jobs", content=b'"' + b"x" * (33 * 2**20)), 413)["code"]
        == "too_large"
    )


# creating jobs


def test_a_job_is_shown_in_openais_form(api: TestClient) -> None:
    job = create(api, suffix="s", seed=7, metadata={"a": "b"}, tuning={"rank": 16})
    assert (job["object"], job["status"], job["model"]) == ("fine_tuning.job", "validating_files", BASE)
    assert (job["seed"], job["suffix"], job["metadata"]) == (7, "s", {"a": "b"})
    assert job["method"]["type"] == "supervised"
    assert job["hyperparameters"] == {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert job["tuning"]["rank"] == 16
    assert (job["result_files"], job["error"], job["fine_tuned_model"], job["finished_at"]) == (
        [],
        None,
        None,
        None,
    )
    assert api.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job


def test_a_seed_is_chosen_and_shown(api: TestClient) -> None:
    seeds = {create(api)["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(isinstance(seed, int) for seed in seeds)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"modle": "x"}, "modle", "unknown_parameter"),
        ({"tuning": {"rnk": 8}}, "tuning.rnk", "unknown_parameter"),
        ({"method": {"type": "dpo"}}, "training_file", "invalid_training_file"),
        ({"model": None}, "model", "invalid_value"),
        ({"training_file": 5}, "training_file", "invalid_value"),
        ({"training_file": "file-none"}, "training_file", "invalid_value"),
        ({"validation_file": "file-none"}, "validation_file", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": "x"}, "seed", "invalid_value"),
        ({"suffix": "a b"}, "suffix", "invalid_value"),
        ({"suffix": "a\n"}, "suffix", "invalid_value"),
        ({"suffix": ""}, "suffix", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size", "invalid_value"),
        ({"tuning": {"rank": 0}}, "tuning.rank", "invalid_value"),
        ({"tuning": {"rank": 128}}, "tuning.rank", "invalid_value"),
        ({"tuning": {"rank": True}}, "tuning.rank", "invalid_value"),
        ({"tuning": {"force": 1}}, "tuning.force", "invalid_value"),
        ({"tuning": {"lr_scheduler_kwargs": {"power": {}}}}, "tuning.lr_scheduler_kwargs.power", "invalid_value"),
        ({"tuning": {"type": "dora"}}, "tuning.type", "invalid_value"),
        ({"tuning": {"learning_rate": 2}}, "tuning.learning_rate", "invalid_value"),
        ({"tuning": {"dropout": 1}}, "tuning.dropout", "invalid_value"),
        ({"tuning": {"target_modules": []}}, "tuning.target_modules", "invalid_value"),
        ({"tuning": {"target_modules": [""]}}, "tuning.target_modules", "invalid_value"),
        ({"tuning": {"type": "full", "rank": 8}}, "tuning.rank", "invalid_value"),
        ({"tuning": []}, "tuning", "invalid_value"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0.wandb", "missing_parameter"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader", "missing_parameter"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "invalid_value"),
        ({"method": {"dpo": {}}}, "method.dpo", "invalid_value"),
        ({"method": {"supervised": {"hyperparameters": {"beta": 0.1}}}}, "method.supervised.hyperparameters.beta",
         "unknown_parameter"),
        ({"method": {"reinforcement": {}}}, "method.reinforcement", "invalid_value"),
        ({"tuning": {"loss_type": "ipo"}}, "tuning.loss_type", "invalid_value"),
        ({"tuning": {"label_smoothing": 0.1}}, "tuning.label_smoothing", "invalid_value"),
        ({"method": {"type": "other"}}, "method.type", "invalid_value"),
        ({"method": {"other": {}}}, "method.other", "unknown_parameter"),
        ({"method": []}, "method", "invalid_value"),
        ({"chat_template": "{% for %}"}, "chat_template", "invalid_value"),
        ({"chat_template": "hello"}, "chat_template", "invalid_value"),
        ({"method": {"supervised": {"hyperparameters": {"n_epochs": 1}}}, "hyperparameters": {"n_epochs": 2}},
         "hyperparameters", "invalid_value"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_parameter(
    api: TestClient, change: dict[str, Any], param: str, code: str
) -> None:
    answer = api.post("/v1/fine_tuning/jobs", json={**job_body(api), **change})
    refused = error(answer, 400)
    assert (refused["param"], refused["code"], refused["type"]) == (param, code, "invalid_request_error")
    assert api.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_a_parameter_that_a_url_does_not_have_is_never_ignored(api: TestClient) -> None:
    """A list with a misspelt filter would be a list of everything."""
    for url, param in (
        ("/v1/files?purposes=batch", "purposes"),
        ("/v1/files?purpose=fine-tune", None),
        ("/v1/files?purpose[]=batch", "purpose[]"),
        ("/v1/files?limit[]=5", "limit[]"),
        ("/v1/syntheses?metadata[a]=b&limit=5", None),
        ("/v1/fine_tuning/jobs?metadata[a]=b&limit=5", None),
        ("/v1/files?metadata[a]=b", "metadata[a]"),
        ("/v1/fine_tuning/jobs?metadata=b", "metadata"),
        ("/v1/organization/usage/completions?project_ids[]=a", None),
        ("/v1/organization/usage/completions?user_ids[]=a", "user_ids[]"),
        (f"/v1/adapters?{'x' * 5000}=1", "x" * 64 + "..."),
        ("/health?probe=1", None),
    ):
        answer = api.get(url)
        if param is None:
            assert answer.status_code == 200, answer.text
        else:
            refused = error(answer, 400)
            assert (refused["param"], refused["code"]) == (param, "unknown_parameter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuning": {"rnk": 8}}, "Unknown parameter: tuning.rnk."),
        (
            {"tuning": {"learning_rate": 2}},
            "Invalid tuning.learning_rate: input should be 'auto'; or input should be less than or equal to 1; got 2.",
        ),
        (
            {"tuning": {"rank": 0}},
            "Invalid tuning.rank: input should be 'auto'; or input should be greater than or equal to 1; got 0.",
        ),
        (
            {"tuning": {"rank": 65}},
            "The engine serves adapters up to rank 64, so one of rank 65 could not be used. Lower it, or start the "
            "service with a larger --max-lora-rank.",
        ),
        (
            {"tuning": {"truncation": "cut"}},
            "Invalid tuning.truncation: input should be 'truncate', 'refuse' or 'split'.",
        ),
        (
            {"model": "gpt-9"},
            "No such model: 'gpt-9'. Bases here: tunewright-tiny; finished models are listed by GET /v1/models.",
        ),
        ({"training_file": "file-9"}, "No such file: 'file-9'. Upload it first, with purpose fine-tune."),
        (
            {"metadata": {"a": "b\0"}},
            "Invalid metadata: the character U+0000 cannot be stored; leave it out.",
        ),
        ({"suffix": "\ud800"}, "Invalid suffix: half of a surrogate pair (\\ud800 to \\udfff) is no text."),
    ],
)
def test_a_refusal_says_what_and_where_and_what_to_do(
    api: TestClient, change: dict[str, Any], message: str
) -> None:
    body = json.dumps({**job_body(api), **change})
    answer = api.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.json()["error"]["message"] == message


def test_a_job_that_has_ended_is_told_with_how(api: TestClient) -> None:
    id = create(api)["id"]
    api.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    assert error(api.post(f"/v1/fine_tuning/jobs/{id}/cancel"), 400)["message"] == (
        f"Job {id} has already ended (cancelled). Only unfinished jobs can be cancelled."
    )


def test_a_body_that_is_not_sent_as_json_is_told_so(api: TestClient) -> None:
    refused = error(
        api.post("/v1/fine_tuning/jobs", content=b"{}", headers={"content-type": "text/csv"}), 400
    )
    assert refused["message"] == (
        "The body is not read as JSON, since its Content-Type is text/csv: send it with the header Content-Type: "
        "application/json."
    )


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b"", b"\xff", b"null"])
def test_a_body_that_is_no_object(api: TestClient, content: bytes) -> None:
    error(
        api.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"}), 400
    )


def test_missing_parameters_are_named(api: TestClient) -> None:
    refused = error(api.post("/v1/fine_tuning/jobs", json={"model": BASE}), 400)
    assert (refused["param"], refused["code"]) == ("training_file", "missing_parameter")


def test_a_rank_above_the_engines_says_what_to_do(make: Make) -> None:
    api = make(max_lora_rank=16)
    refused = error(api.post("/v1/fine_tuning/jobs", json=job_body(api, tuning={"rank": 17})), 400)
    assert "up to rank 16" in refused["message"]
    assert "--max-lora-rank" in refused["message"]
    assert create(api, tuning={"rank": 16})["tuning"]["rank"] == 16


def test_an_unknown_model_is_told_with_those_there_are(api: TestClient) -> None:
    refused = error(api.post("/v1/fine_tuning/jobs", json=job_body(api, model="gpt-9")), 404)
    assert (refused["param"], refused["code"]) == ("model", "model_not_found")
    assert BASE in refused["message"]


def test_openais_older_place_for_hyperparameters_is_read(api: TestClient) -> None:
    old = create(api, hyperparameters={"n_epochs": 2})
    new = create(api, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    assert old["method"] == new["method"]
    assert old["hyperparameters"] == new["hyperparameters"]


# idempotency


def test_a_retry_without_a_key_gives_the_first_job(api: TestClient) -> None:
    body = job_body(api)
    first = api.post("/v1/fine_tuning/jobs", json=body).json()
    assert api.post("/v1/fine_tuning/jobs", json=body).json()["id"] == first["id"]
    assert api.post("/v1/fine_tuning/jobs", json={**body, "seed": 1}).json()["id"] != first["id"]
    api.post(f"/v1/fine_tuning/jobs/{first['id']}/cancel")
    assert api.post("/v1/fine_tuning/jobs", json=body).json()["id"] != first["id"]


def test_a_repeated_key_gives_the_first_job(api: TestClient) -> None:
    body, key = job_body(api), {"Idempotency-Key": "k1"}
    first = api.post("/v1/fine_tuning/jobs", json=body, headers=key).json()
    assert api.post("/v1/fine_tuning/jobs", json=body, headers=key).json() == first
    other = api.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "k2"}).json()
    assert other["id"] != first["id"]
    assert len(api.get("/v1/fine_tuning/jobs").json()["data"]) == 2


def test_a_repeated_key_with_another_body_is_refused(api: TestClient) -> None:
    body, key = job_body(api), {"Idempotency-Key": "k1"}
    api.post("/v1/fine_tuning/jobs", json=body, headers=key)
    refused = error(api.post("/v1/fine_tuning/jobs", json={**body, "seed": 9}, headers=key), 400)
    assert refused["code"] == "idempotency_key_reused"


def test_a_repeated_key_counts_also_when_the_world_has_changed(api: TestClient, store: Store) -> None:
    """A repeat gets its job even where the same request would be refused by now."""
    body, key = job_body(api), {"Idempotency-Key": "k1"}
    first = api.post("/v1/fine_tuning/jobs", json=body, headers=key).json()
    store.jobs.cancel(first["id"])
    store.files.delete(body["training_file"])
    assert api.post("/v1/fine_tuning/jobs", json=body, headers=key).json()["id"] == first["id"]


# continuing from a model


def test_a_job_goes_on_from_an_adapter(api: TestClient, publish: Made, store: Store) -> None:
    name = publish(chat_template="{{ messages }}")
    job = create(api, model=name)
    stored = store.jobs.get(job["id"])
    assert stored is not None
    assert (stored.base, stored.weights("parent")) == (BASE, ["a" * 64])
    assert request_of(stored).chat_template == "{{ messages }}"
    shape = {key: job["tuning"][key] for key in ("type", "rank", "alpha", "target_modules")}
    assert shape == {"type": "lora", "rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    "tuning", [{"rank": 4}, {"alpha": 8}, {"target_modules": ["v_proj", "q_proj"]}, {"type": "qlora"}]
)
def test_naming_the_same_shape_is_fine(api: TestClient, publish: Made, tuning: Any) -> None:
    create(api, model=publish(), tuning=tuning)


@pytest.mark.parametrize(
    ("tuning", "param"),
    [
        ({"rank": 8}, "tuning.rank"),
        ({"alpha": 9}, "tuning.alpha"),
        ({"target_modules": ["q_proj"]}, "tuning.target_modules"),
        ({"type": "full"}, "tuning.type"),
    ],
)
def test_another_shape_is_refused(api: TestClient, publish: Made, tuning: Any, param: str) -> None:
    body = job_body(api, model=publish(), tuning=tuning)
    assert error(api.post("/v1/fine_tuning/jobs", json=body), 400)["param"] == param


def test_a_refusal_writes_values_as_json_does(api: TestClient, publish: Made) -> None:
    body = job_body(api, model=publish(), tuning={"target_modules": ["q_proj"]})
    assert (
        'target_modules ["q_proj", "v_proj"];'
        in error(api.post("/v1/fine_tuning/jobs", json=body), 400)["message"]
    )
    body = job_body(api, model=f"ft:{BASE}:s:12345678", tuning={"use_rslora": True})
    assert "has use_rslora false;" in error(api.post("/v1/fine_tuning/jobs", json=body), 400)["message"]


def test_a_full_model_is_trained_on_as_full(api: TestClient, publish: Made) -> None:
    name = publish(kind="full", rank=None, alpha=None, target_modules=None, desired="unloaded")
    assert create(api, model=name)["tuning"]["type"] == "full"
    body = job_body(api, model=name, tuning={"type": "lora"})
    assert error(api.post("/v1/fine_tuning/jobs", json=body), 400)["param"] == "tuning.type"


def test_a_model_of_a_base_that_is_gone_is_refused(api: TestClient, publish: Made) -> None:
    name = publish(base="elsewhere")
    refused = error(api.post("/v1/fine_tuning/jobs", json=job_body(api, model=name)), 400)
    assert "elsewhere" in refused["message"]


# jobs


def test_a_method_that_is_null_is_not_asked_for(api: TestClient) -> None:
    job = create(api, method={"type": "supervised", "dpo": None, "reinforcement": None})
    assert job["method"]["type"] == "supervised"


def test_a_body_that_is_no_object_is_no_parameter(api: TestClient) -> None:
    assert error(api.post("/v1/fine_tuning/jobs", json=[]), 400)["param"] is None


def test_jobs_are_listed_newest_first_and_by_metadata(api: TestClient) -> None:
    ids = [create(api, metadata={"n": str(n)})["id"] for n in range(3)]
    page = api.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    rest = api.get("/v1/fine_tuning/jobs", params={"after": ids[1]}).json()
    assert [job["id"] for job in rest["data"]] == ids[:1]
    found = api.get("/v1/fine_tuning/jobs", params={"metadata[n]": "1"}).json()
    assert [job["id"] for job in found["data"]] == [ids[1]]


def test_cancelling_twice_is_a_400_that_no_client_retries(api: TestClient) -> None:
    id = create(api)["id"]
    cancelled = api.post(f"/v1/fine_tuning/jobs/{id}/cancel").json()
    assert cancelled["status"] == "cancelled"
    assert cancelled["finished_at"] is not None
    assert error(api.post(f"/v1/fine_tuning/jobs/{id}/cancel"), 400)["code"] == "job_not_cancellable"


@pytest.mark.parametrize("state", JobState)
def test_the_status_of_a_job_is_a_word_of_openai_s_and_its_state_is_exact(
    api: TestClient, store: Store, state: JobState
) -> None:
    id = create_job(store, state=state).id
    words = get_args(openai.types.fine_tuning.FineTuningJob.model_fields["status"].annotation)
    shown = api.get(f"/v1/fine_tuning/jobs/{id}").json()
    assert shown["state"] == state
    assert shown["status"] == {JobState.PAUSING: "running", JobState.PAUSED: "queued"}.get(state, state)
    assert shown["status"] in words


@pytest.mark.parametrize("tail", ["", "/events", "/events?stream=true", "/checkpoints", "/logs"])
def test_an_unknown_job(api: TestClient, tail: str) -> None:
    refused = error(api.get(f"/v1/fine_tuning/jobs/ftjob-none{tail}"), 404)
    assert refused["code"] == "fine_tuning_job_not_found"
    error(api.post("/v1/fine_tuning/jobs/ftjob-none/cancel"), 404)


def stored(store: Store, id: str) -> Job:
    job = store.jobs.get(id)
    assert job is not None
    return job


def test_events_are_paged(api: TestClient, store: Store) -> None:
    id = create(api)["id"]
    for number in range(3):
        store.jobs.add_event(stored(store, id), {"level": "info", "type": "message", "message": str(number)})
    page = api.get(f"/v1/fine_tuning/jobs/{id}/events", params={"limit": 2}).json()
    assert [event["message"] for event in page["data"]] == ["2", "1"]
    assert page["has_more"] is True
    assert page["data"][0]["object"] == "fine_tuning.job.event"
    rest = api.get(f"/v1/fine_tuning/jobs/{id}/events", params={"after": page["last_id"]}).json()
    assert [event["message"] for event in rest["data"]] == ["0", f"Created fine-tuning job: {id}"]
    assert error(api.get(f"/v1/fine_tuning/jobs/{id}/events", params={"after": "x"}), 400)["param"] == "after"


def streamed(api: TestClient, path: str, **options: Any) -> tuple[list[tuple[str, dict[str, Any]]], bool]:
    """(events of a stream with their ids, whether it ended with [DONE])"""
    answer = api.get(path, **options)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks[-1] == ""
    events = []
    for block in blocks[:-2]:
        id, data = block.split("\n")
        events.append((id.removeprefix("id: "), json.loads(data.removeprefix("data: "))))
    return events, blocks[-2] == "data: [DONE]"


def test_a_stream_tells_all_events_in_order_and_ends_with_the_job(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_POLL", 0.01)
    id = create(api)["id"]
    for number in range(205):  # more than one reading
        store.jobs.add_event(stored(store, id), {"level": "info", "type": "message", "message": str(number)})
    store.jobs.cancel(id)
    path = f"/v1/fine_tuning/jobs/{id}/events"
    events, done = streamed(api, path + "?stream=true")
    assert done
    assert [event["message"] for _, event in events][1:-1] == [str(number) for number in range(205)]
    assert events[-1][1]["message"] == "The job has been cancelled."
    assert all(event_id == event["id"] for event_id, event in events)
    again, done = streamed(api, path + "?stream=true", headers={"Last-Event-ID": events[199][0]})
    assert (again, done) == (events[200:], True)
    assert streamed(api, path + f"?stream=true&after={events[-1][0]}") == ([], True)


def test_the_stock_client_reads_the_events_of_a_job_that_is_quiet_for_long(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.api.jobs.events._COMMENT_EVERY", 0.02)
    id = create(api)["id"]
    later = threading.Timer(0.5, store.jobs.cancel, [id])
    later.start()
    answer = api.get(f"/v1/fine_tuning/jobs/{id}/events?stream=true").content
    later.join()
    assert answer.count(b": still here\n") > 3
    events = [event.data for event in SSEDecoder().iter_bytes(iter([answer]))]
    assert [json.loads(data)["message"].partition(":")[0] for data in events[:-1]] == [
        "Created fine-tuning job",
        "The job has been cancelled.",
    ]
    assert events[-1] == "[DONE]"


def test_a_stream_after_an_unknown_event_is_refused_at_once(api: TestClient) -> None:
    id = create(api)["id"]
    api.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    answer = api.get(f"/v1/fine_tuning/jobs/{id}/events", params={"stream": True, "after": "x"})
    assert error(answer, 400)["param"] == "after"


def test_checkpoints_are_listed(api: TestClient, store: Store, publish_model: Publish) -> None:
    job = create_job(store, state=JobState.RUNNING)
    rows = [{"name": f"ft:{step}", "checkpoint_step": step} for step in (1, 2)]
    assert publish_model({}, *rows, job=job)
    page = api.get(f"/v1/fine_tuning/jobs/{job.id}/checkpoints").json()
    assert [c["step_number"] for c in page["data"]] == [2, 1]
    assert page["data"][0]["fine_tuned_model_checkpoint"] == "ft:2"
    assert page["data"][0]["metrics"] == {"step": 2.0, "train_loss": 1.0}


def test_a_job_without_its_folder_shows_all_but_its_log(api: TestClient, data: Workspace) -> None:
    id = create(api)["id"]
    api.post(f"/v1/fine_tuning/jobs/{id}/cancel")
    folder = JobFolder(data.job(id))
    folder.path.mkdir()
    folder.log_file.write_text("one\n")
    assert data.remove_job(id)
    assert api.get(f"/v1/fine_tuning/jobs/{id}/logs").text == ""
    path = f"/v1/fine_tuning/jobs/{id}/events"
    assert len(api.get(path).json()["data"]) == 2
    events, done = streamed(api, path + "?stream=true")
    assert (len(events), done) == (2, True)


def test_the_log_is_text(api: TestClient, data: Workspace) -> None:
    id = create(api)["id"]
    assert api.get(f"/v1/fine_tuning/jobs/{id}/logs").text == ""
    folder = JobFolder(data.job(id))
    folder.path.mkdir()
    folder.log_file.write_bytes(b"one\ntwo\nthree \xff\n")
    answer = api.get(f"/v1/fine_tuning/jobs/{id}/logs")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "one\ntwo\nthree \ufffd\n"
    assert api.get(f"/v1/fine_tuning/jobs/{id}/logs", params={"tail": 1}).text == "three \ufffd\n"


def test_a_finished_job_shows_what_became_of_it(api: TestClient, publish: Made) -> None:
    name = publish()
    job = next(j for j in api.get("/v1/fine_tuning/jobs").json()["data"] if j["fine_tuned_model"])
    assert (job["status"], job["fine_tuned_model"], job["trained_tokens"]) == ("succeeded", name, 7)


# models and adapters


def test_models_are_bases_and_what_was_made_of_them(api: TestClient, publish: Made) -> None:
    name = publish()
    hidden = publish(f"{name}:ckpt-step-2", checkpoint_step=2, desired="unloaded", sha256="c" * 64)
    listed = api.get("/v1/models").json()
    assert [(m["id"], m["kind"], m["object"]) for m in listed["data"]] == [
        (BASE, "base", "model"),
        (name, "adapter", "model"),
    ]
    for id in (BASE, name, hidden):
        assert api.get(f"/v1/models/{id}").json()["id"] == id
    assert error(api.get("/v1/models/none"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("engine", "residency", "desired", "state"),
    [
        (EngineState.STARTING, None, "loaded", "starting"),
        (EngineState.READY, None, "loaded", "loading"),
        (EngineState.READY, Residency.LOADING, "loaded", "loading"),
        (EngineState.READY, Residency.LOADED, "loaded", "ready"),
        (EngineState.READY, Residency.FAILED, "loaded", "failed"),
        (EngineState.READY, None, "unloaded", "unloaded"),
    ],
)
def test_a_models_state_says_why_it_would_not_answer(
    api: TestClient, publish: Made, store: Store, engine: Any, residency: Any, desired: str, state: str
) -> None:
    name = publish(desired=desired)
    started = store.engines.starting(BASE, "/tmp/s", engine_info(max_model_len=77))
    store.engines.set_state(BASE, engine)
    if residency:
        store.engines.set_residency(started, "a" * 64, residency, error="why")
    shown = api.get(f"/v1/models/{name}").json()
    assert (shown["state"], shown["max_model_len"]) == (state, 77)


def test_a_base_shows_how_many_adapters_its_engine_mixes(api: TestClient, store: Store) -> None:
    assert api.get(f"/v1/models/{BASE}").json()["max_loras"] is None
    store.engines.starting(BASE, "/tmp/s", engine_info(max_loras=31))
    assert api.get(f"/v1/models/{BASE}").json()["max_loras"] == 31


def test_adapters_are_loaded_and_unloaded_by_name_or_id(
    api: TestClient, publish: Made, worker: Worker
) -> None:
    name = publish(desired="unloaded")
    shown = api.get(f"/v1/adapters/{name}").json()
    assert (shown["model"], shown["state"], shown["rank"], shown["alpha"]) == (name, "unloaded", 4, 8.0)
    assert api.get(f"/v1/adapters/{shown['id']}").json() == shown
    assert api.post(f"/v1/adapters/{name}/load").json()["desired"] == "loaded"
    assert api.post(f"/v1/adapters/{shown['id']}/unload").json()["desired"] == "unloaded"
    assert worker.asked == [("load", name), ("unload", name)]
    assert [a["id"] for a in api.get("/v1/adapters").json()["data"]] == [shown["id"]]
    error(api.get("/v1/adapters/none"), 404)
    error(api.post("/v1/adapters/none/load"), 404)


def test_names_with_slashes_are_found(api: TestClient, publish: Made, worker: Worker) -> None:
    name = publish("ft:org/model:s:1")
    assert api.get(f"/v1/models/{name}").json()["id"] == name
    assert api.post(f"/v1/adapters/{name}/load").status_code == 200
    assert api.get(f"/v1/models/{name}/download").status_code == 200
    assert worker.asked == [("load", name)]


def test_a_load_that_fails_says_why(api: TestClient, publish: Made, worker: Worker) -> None:
    name = publish()
    worker.error = "no slot is free"
    answer = api.post(f"/v1/adapters/{name}/load")
    refused = error(answer, 503)
    assert refused["code"] == "load_failed"
    assert "no slot is free" in refused["message"]
    assert "retry-after" in answer.headers


def test_a_full_model_is_no_adapter(api: TestClient, publish: Made) -> None:
    name = publish(kind="full", rank=None, alpha=None, target_modules=None, desired="unloaded")
    error(api.get(f"/v1/adapters/{name}"), 404)
    error(api.post(f"/v1/adapters/{name}/load"), 404)
    assert api.get("/v1/adapters").json()["data"] == []
    assert api.get(f"/v1/models/{name}").json()["state"] == "stored"


def test_a_download_is_a_tar_of_the_folder(api: TestClient, publish: Made) -> None:
    answer = api.get(f"/v1/models/{publish()}/download")
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        files = {member.name.split("/")[1]: tar.extractfile(member) for member in tar.getmembers()}
        assert all(":" not in member.name for member in tar.getmembers())
        read = {name: file.read() for name, file in files.items() if file}
    assert read == {"adapter_config.json": CONFIG.encode(), "adapter_model.safetensors": WEIGHTS}
    assert error(api.get(f"/v1/models/{BASE}/download"), 400)["param"] == "model"
    error(api.get("/v1/models/none/download"), 404)


def test_a_download_comes_whole_where_its_model_is_deleted_meanwhile(
    publish: Made, data: Workspace, store: Store
) -> None:
    publish()
    folder = data.artifacts.local("a" * 64)
    tar = artifacts._tar(artifacts._open(folder), "m")
    first = next(tar)
    assert data.artifacts.remove("a" * 64, lambda: False)
    with tarfile.open(fileobj=io.BytesIO(first + b"".join(tar))) as read:
        assert [member.name for member in read.getmembers()] == [
            "m/adapter_config.json",
            "m/adapter_model.safetensors",
        ]


def test_a_model_whose_files_go_this_moment_is_not_there(
    api: TestClient, publish: Made, data: Workspace
) -> None:
    name = publish()
    data.artifacts.remove("a" * 64, lambda: False)
    assert error(api.get(f"/v1/models/{name}/download"), 404)["code"] == "model_not_found"
    refused = error(api.post("/v1/fine_tuning/jobs", json=job_body(api, model=name)), 404)
    assert (refused["code"], refused["param"]) == ("model_not_found", "model")


def test_deleting_a_model_unloads_it_and_removes_its_files(
    api: TestClient, publish: Made, data: Workspace, worker: Worker
) -> None:
    name = publish()
    twin = publish(f"{name}-twin")
    assert api.delete(f"/v1/models/{name}").json() == {"id": name, "object": "model", "deleted": True}
    assert worker.asked == [("unload", name)]
    assert data.artifacts.local("a" * 64).exists(), "its twin has the same weights"
    error(api.get(f"/v1/models/{name}"), 404)
    api.delete(f"/v1/models/{twin}")
    assert not data.artifacts.local("a" * 64).exists()
    assert error(api.delete(f"/v1/models/{BASE}"), 400)["param"] == "model"
    error(api.delete("/v1/models/none"), 404)


def test_a_model_that_a_job_starts_from_stays(api: TestClient, publish: Made) -> None:
    name = publish()
    create(api, model=name)
    assert error(api.delete(f"/v1/models/{name}"), 400)["code"] == "model_in_use"


# generation: what is refused before vLLM is asked


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/embeddings"]
)
def test_a_generation_must_be_json_and_name_a_model(api: TestClient, path: str) -> None:
    for content, code in ((b"{", "invalid_json"), (b"[]", "invalid_json"), (b'{"a": NaN}', "invalid_json")):
        assert error(api.post(path, content=content), 400)["code"] == code
    assert error(api.post(path, json={"model": 5}), 400)["param"] == "model"
    assert error(api.post(path, json={"model": "none"}), 404)["code"] == "model_not_found"
    assert error(api.post(path, json={"model": BASE, "chat_template": "x"}), 400)["param"] == "chat_template"
    answer = api.post(path, json={"model": BASE})
    error(answer, 503)
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/collective_rpc",
        "/sleep",
        "/tokenize",
        "/server_info",
    ],
)
def test_vllms_other_routes_are_not_reachable(api: TestClient, path: str) -> None:
    error(api.post(path, json={"model": BASE}), 404)


# auth, errors, request ids


@pytest.fixture
def locked(make: Make) -> TestClient:
    return make(api_key="the-key-of-16-characters")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic the-key-of-16-characters",
        "the-key-of-16-characters",
        "Bearer the-key-of-16-characters-",
    ],
)
def test_without_the_key_nothing_is_answered(locked: TestClient, authorization: str | None) -> None:
    headers = {"authorization": authorization} if authorization is not None else {}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/nowhere")):
        answer = locked.request(method, path, headers=headers)
        assert error(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer the-key-of-16-characters",
        "bearer the-key-of-16-characters",
        "Bearer  the-key-of-16-characters ",
    ],
)
def test_with_the_key_everything_is(locked: TestClient, authorization: str) -> None:
    assert locked.get("/v1/models", headers={"authorization": authorization}).status_code == 200


def test_keys_are_compared_in_constant_time(locked: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    class Recorder:
        @staticmethod
        def compare_digest(given: bytes, key: bytes) -> bool:
            compared.append((given, key))
            return hmac.compare_digest(given, key)

    monkeypatch.setattr(access, "hmac", Recorder)
    locked.get("/v1/models", headers={"authorization": "Bearer guess"})
    assert compared == [(b"guess", b"the-key-of-16-characters")]


def test_health_is_open_and_readiness_keeps_its_reasons(locked: TestClient, store: Store) -> None:
    store.engines.set_state(BASE, EngineState.BACKOFF, reason="/secret/path is gone")
    assert locked.get("/health").json()["status"] == "ok"
    assert locked.get("/openapi.json").status_code == 200
    answer = locked.get("/ready")
    assert answer.status_code == 503
    assert "secret" not in answer.text
    refused = locked.get("/ready", headers={"authorization": "Bearer the-key-of-16-characters"}).json()
    assert refused["components"][f"engine:{BASE}"]["reason"] == "/secret/path is gone"


def test_ready_is_ready_when_every_component_is(api: TestClient, store: Store, data: Workspace) -> None:
    assert api.get("/ready").json()["components"]["scheduler"]["state"] == "starting"
    for process in ("scheduler", "worker"):
        beat(data.heartbeat(process))
    store.engines.set_state(BASE, EngineState.READY)
    answer = api.get("/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    assert all(part["ready"] for part in answer.json()["components"].values())
    os.utime(data.run / "scheduler.heartbeat", (1, 1))
    answer = api.get("/ready")
    late = answer.json()["components"]["scheduler"]
    assert (answer.status_code, late["ready"], late["state"]) == (503, False, "late")
    assert late["reason"].startswith("no sign of life for ")
    assert late["reason"].endswith(" s; after 120 s it is killed and started again")
    beat(data.heartbeat("scheduler"))
    os.utime(data.run / "worker.heartbeat", (1, 1))
    answer = api.get("/ready")
    assert answer.json()["components"]["worker"]["state"] == "late"
    assert answer.status_code == 200, "generations go on without it"
    store.engines.set_state(BASE, EngineState.READY, reason="it tokenized nothing for 12 s")
    answer = api.get("/ready")
    engine = answer.json()["components"][f"engine:{BASE}"]
    assert (answer.status_code, engine["ready"], engine["state"]) == (503, False, "ready")
    assert engine["reason"] == "it tokenized nothing for 12 s"


def test_an_unknown_path_and_a_wrong_method(api: TestClient) -> None:
    assert error(api.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert error(api.get("/"), 404)["code"] == "unknown_url"
    assert error(api.get("/litserve/info"), 404)["code"] == "unknown_url"
    answer = api.put("/v1/files")
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert "allow" in answer.headers


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), ("", False), ("a b", False), ("x" * 129, False), ("<script>", False)],
)
def test_a_request_id_is_echoed_or_made(api: TestClient, given: str, kept: bool) -> None:
    answer = api.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert (answer == given) is kept
    assert kept or answer.startswith("req_")


def test_a_fault_of_our_own_is_a_500_in_the_same_form(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("tunewright.store.jobs.JobStore.list", broken)
    answer = api.get("/v1/fine_tuning/jobs")
    assert error(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "a secret detail" in caplog.text


def test_a_result_file_can_be_read(api: TestClient, publish: Made, data: Workspace) -> None:
    publish()
    job = next(j for j in api.get("/v1/fine_tuning/jobs").json()["data"] if j["fine_tuned_model"])
    (id,) = job["result_files"]
    data.file(id).write_bytes(b"step\n")
    assert api.get(f"/v1/files/{id}").json()["purpose"] == "fine-tune-results"
    assert api.get(f"/v1/files/{id}/content").content == b"step\n"


def test_uploads_lie_where_the_store_says(api: TestClient, data: Workspace) -> None:
    id = upload(api)
    assert Path(data.file(id)).read_bytes() == ROW
