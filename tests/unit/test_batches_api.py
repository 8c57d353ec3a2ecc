"""Batches over HTTP: what is accepted and refused, what is shown of each state, and the check of a file's lines."""

from __future__ import annotations

import asyncio
import io
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from rows import FILE
from tunewright.api.batches.schemas import seconds_of
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.batcher.asking import Asking
from tunewright.batcher.folder import Batched, BatchSpec, Ending, end_file, errors_file, output_file
from tunewright.batcher.requests import MOST_FAULTS, Request, check_requests, requests_of
from tunewright.batcher.results import Results
from tunewright.config import Settings, embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.kinds import BATCH
from tunewright.kinds.kind import WITHOUT_BASE, JobRefused, Service
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job
from tunewright.store.states import JobPhase
from tunewright.store.store import Store

BATCHES = "/v1/batches"
URL = "/v1/chat/completions"
INPUT = "file-requests"


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def settings(data: Workspace) -> Settings:
    return Settings(data_dir=data.path, base=[f"tiny={embedded_base_path()}"], max_queued_jobs=3)


@pytest.fixture
def api(built: dict[str, Any], store: Store, data: Workspace, settings: Settings) -> TestClient:
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    store.files.add(**{**FILE, "id": INPUT, "purpose": "batch"})
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def service(store: Store, data: Workspace, settings: Settings) -> Service:
    return Service(settings, store, data, on_gpu=False)


def create(api: TestClient, **fields: Any) -> Any:
    body = {"input_file_id": INPUT, "endpoint": URL, "completion_window": "24h", **fields}
    return api.post(BATCHES, json=body)


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def line(id: Any = "a", **fields: Any) -> dict[str, Any]:
    return {
        "custom_id": id,
        "method": "POST",
        "url": URL,
        "body": {"model": "tiny", "messages": []},
        **fields,
    }


def written(*lines: Any) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def faults(*lines: Any) -> list[tuple[int | None, str, str | None]]:
    found = check_requests(io.BytesIO(written(*lines)), URL)
    return [(fault.line, fault.code, fault.param) for fault in found.faults]


def test_a_batch_is_a_job_of_its_own(api: TestClient) -> None:
    answer = create(api, metadata={"team": "a"})
    assert answer.status_code == 200, answer.text
    batch = answer.json()
    assert batch["id"].startswith("batch-")
    assert (batch["object"], batch["status"], batch["errors"]) == ("batch", "validating", None)
    assert batch["expires_at"] - batch["created_at"] in (86400, 86401)
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert api.get(f"{BATCHES}/{batch['id']}").json() == batch
    assert api.get(BATCHES).json()["data"] == [batch]
    assert api.get(BATCHES, params={"metadata[team]": "b"}).json()["data"] == []
    assert create(api, metadata={"team": "a"}).json()["id"] == batch["id"], "a retry of the same request"
    assert error(api.delete(f"/v1/files/{INPUT}"))["code"] == "file_in_use"
    events = api.get(f"{BATCHES}/{batch['id']}/events").json()["data"]
    assert events[0]["object"] == "batch.event"
    for other in ("/v1/fine_tuning/jobs", "/v1/cleanings"):
        assert error(api.get(f"{other}/{batch['id']}"), 404)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"input_file_id": FILE["id"]}, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1 day"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"metadata": {"a" * 65: ""}}, "metadata"),
        ({"model": "tiny"}, "model"),
    ],
)
def test_what_cannot_be_created_is_refused(api: TestClient, fields: dict[str, Any], param: str) -> None:
    assert error(create(api, **fields))["param"] == param


def test_windows_are_hours_or_days() -> None:
    assert [seconds_of(window) for window in ("1h", "24h", "30d")] == [3600, 86400, 2592000]
    for window in ("", "24", "0h", "-1h", "24H", "1w", "721h", "24h "):
        with pytest.raises(ValueError, match="hours or days"):
            seconds_of(window)


def test_every_fault_has_its_line() -> None:
    assert faults(line("a"), line("b")) == []
    assert faults(b"", b"  ", line()) == [], "blank lines are no requests"
    assert faults() == [(None, "empty_file", None)]
    assert faults(b"\xef\xbb\xbf" + written(line())) == []
    assert faults(
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {"custom_id": "a"},
        line(7),
        line("x" * 513),
        line("\ud800"),
        line("a", method="GET"),
        line("a", url="/v1/completions"),
        line("a", body=[]),
        line("a", body={"messages": []}),
        line("a", body={"model": "tiny", "stream": True}),
        line("a", body={"model": "tiny", "background": True}),
        line("a"),
        line("a"),
        written(line("deep", body={"model": "tiny", "x": "DEEP"})).replace(
            b'"DEEP"', b"[" * 970 + b"]" * 970
        ),
    ) == [
        *((number, "invalid_json_line", None) for number in (1, 2, 3, 4)),
        (5, "missing_required_parameter", "method"),
        *((number, "invalid_custom_id", "custom_id") for number in (6, 7, 8)),
        (9, "invalid_method", "method"),
        (10, "invalid_url", "url"),
        (11, "invalid_body", "body"),
        (12, "missing_required_parameter", "body.model"),
        (13, "unsupported_parameter", "body.stream"),
        (14, "unsupported_parameter", "body.background"),
        (16, "duplicate_custom_id", "custom_id"),
        (17, "invalid_json_line", None),
    ]
    assert len(faults(*[b"{"] * 1000)) == MOST_FAULTS
    (fault,) = check_requests(io.BytesIO(json.dumps(line()).encode("utf-16")), URL).faults
    assert fault.code == "invalid_json_line", "where a line ends is only known in UTF-8"


def test_what_stops_the_process_is_not_hidden_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's text and type say nothing: the batch would have failed with a line of it as its error."""

    async def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Asking, "_answer", fail)
    spec: Any = SimpleNamespace(socket="/nowhere", at_once=2)
    asking = Asking(spec, [Request("a", "tiny", 0, 1), Request("b", "tiny", 0, 1)], io.BytesIO(), Any, int)
    with pytest.raises(MemoryError):
        asyncio.run(asking.run())


def test_a_file_may_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.batcher.requests.MOST_REQUESTS", 2)
    monkeypatch.setattr("tunewright.batcher.requests.LONGEST_LINE", 200)
    assert faults(line("a"), line("b"), line("c")) == [(3, "too_many_requests", None)]
    assert faults(line("a" * 300), line("b")) == [(1, "line_too_long", None)]


def test_requests_are_found_again_by_their_offsets() -> None:
    content = b"\xef\xbb\xbf" + written(
        b"", line("ä", body={"model": "m", "n": 1}), line("b", body={"model": "k"})
    )
    file = io.BytesIO(content.rstrip(b"\n"))
    found = list(requests_of(file))
    assert [(one.custom_id, one.model) for one in found] == [("ä", "m"), ("b", "k")]
    assert [one.body(file) for one in found] == [{"model": "m", "n": 1}, {"model": "k"}]


def made(api: TestClient, store: Store) -> Job:
    job = store.jobs.get(create(api).json()["id"])
    assert job is not None
    return job


def shown(api: TestClient, job: Job) -> dict[str, Any]:
    return dict(api.get(f"{BATCHES}/{job.id}").json())


def test_faults_fail_the_batch_and_are_told_by_line(
    api: TestClient, store: Store, data: Workspace, service: Service
) -> None:
    job = made(api, store)
    data.file(INPUT).write_bytes(written(line("a"), line("a"), b"{"))
    with pytest.raises(JobRefused, match=r"line 2: .*\(1 more faults\)") as refused:
        BATCH.validate(service, job, WITHOUT_BASE)
    assert refused.value.report is not None
    data.file(INPUT).write_bytes(written(line("a", body={"model": "nothing"})))
    with pytest.raises(JobRefused, match="line 1: No such model: 'nothing'"):
        BATCH.validate(service, job, WITHOUT_BASE)


def running(store: Store, job: Job) -> Job:
    store.jobs.mark_valid(job.id, {"requests": 3, "model": "tiny"}, "valid")
    claimed = store.jobs.claim(BATCH.places, [""], [BATCH.name])
    assert claimed is not None
    assert claimed.id == job.id
    return claimed


def test_each_state_is_one_of_openais(
    api: TestClient, store: Store, data: Workspace, service: Service
) -> None:
    job = made(api, store)
    store.jobs.mark_valid(job.id, {"requests": 3, "model": "tiny"}, "valid")
    batch = shown(api, job)
    assert (batch["status"], batch["model"], batch["request_counts"]["total"]) == ("in_progress", "tiny", 3)
    job = running(store, job)
    assert job.devices == ("batch:0",)
    progress = {"step": 2, "total_steps": 3, "failed": 1}
    store.jobs.take_in(job, new_offset=1, events=[], progress=progress, last_step=2)
    assert shown(api, job)["request_counts"] == {"total": 3, "completed": 1, "failed": 1}
    store.jobs.set_phase(job.id, JobPhase.PUBLISH)
    assert shown(api, job)["status"] == "finalizing"


@pytest.mark.parametrize("ending", list(Ending))
def test_results_are_files_whatever_the_ending(
    api: TestClient, store: Store, data: Workspace, service: Service, ending: Ending
) -> None:
    expiry = {"anchor": "created_at", "seconds": 7200}
    job = store.jobs.get(create(api, output_expires_after=expiry).json()["id"])
    assert job is not None
    job = running(store, job)
    folder = JobFolder(data.job(job.id))
    folder.path.mkdir()
    spec = BATCH.spec(service, job, WITHOUT_BASE)
    assert isinstance(spec, BatchSpec)
    assert (spec.endpoint, spec.file) == (URL, str(data.file(INPUT)))
    results = Results(folder, job.id)
    results.answer("a", {"choices": []})
    if ending is not Ending.COMPLETED:
        results.fail("b", "batch_expired", "too late")
    output, errors = results.products()
    results.close()
    counts = {"completed": results.completed, "failed": results.failed}
    folder.write_result(
        Batched(
            status="succeeded", ending=ending, output=output, errors=errors, ended_at=time.time(), **counts
        )
    )
    for _ in range(2):  # it is repeated after a crash
        BATCH.publish(service, job, WITHOUT_BASE, folder)
    batch = shown(api, job)
    assert batch["status"] == ending.value
    assert batch[f"{ending.value}_at"] is not None
    assert [batch[f"{other.value}_at"] for other in Ending if other is not ending] == [None, None]
    for id, path in (("output_file_id", output_file(folder)), ("error_file_id", errors_file(folder))):
        if batch[id] is None:
            assert path.read_bytes() == b""
            continue
        file = api.get(f"/v1/files/{batch[id]}").json()
        assert file["purpose"] == "batch_output"
        assert file["expires_at"] - file["created_at"] in (7199, 7200)
        assert api.get(f"/v1/files/{batch[id]}/content").content == path.read_bytes()
    refused = error(api.post(f"{BATCHES}/{job.id}/cancel"))
    assert refused["code"] == "job_not_cancellable"


def test_a_batch_that_runs_is_asked_to_end(
    api: TestClient, store: Store, data: Workspace, service: Service
) -> None:
    job = running(store, made(api, store))
    folder = JobFolder(data.job(job.id))
    folder.path.mkdir()
    BATCH.tend(service, job, folder)
    assert not end_file(folder).exists()
    for _ in range(2):
        batch = api.post(f"{BATCHES}/{job.id}/cancel").json()
        assert (batch["status"], batch["cancelled_at"]) == ("cancelling", None)
        assert batch["cancelling_at"] is not None
    BATCH.tend(service, job, folder)
    assert end_file(folder).exists()
    store.jobs.requeue(job.id, "The service stops")
    assert shown(api, job)["status"] == "cancelling", "it has begun: its results are kept"


def test_one_that_has_not_begun_is_cancelled_at_once(api: TestClient, store: Store) -> None:
    job = made(api, store)
    for _ in range(2):
        batch = api.post(f"{BATCHES}/{job.id}/cancel").json()
        assert (batch["status"], batch["output_file_id"]) == ("cancelled", None)
        assert batch["cancelling_at"] == batch["cancelled_at"] is not None


def test_batches_and_others_do_not_wait_for_each_other(api: TestClient, store: Store) -> None:
    made_ones = [store.jobs.get(create(api, metadata={"n": str(n)}).json()["id"]) for n in range(3)]
    for job in made_ones:
        assert job is not None
        store.jobs.mark_valid(job.id, {"requests": 1}, "valid")
    others = ["cleaning", "evaluation"]
    assert store.jobs.claim("cpu", [""], others) is None
    assert store.jobs.claim(BATCH.places[:2], [""], [BATCH.name]) is not None
    second = store.jobs.claim(BATCH.places[:2], [""], [BATCH.name])
    assert second is not None
    assert second.devices == ("batch:1",)
    assert store.jobs.claim(BATCH.places[:2], [""], [BATCH.name]) is None, "both places are taken"


def test_a_failed_batch_says_why(api: TestClient, store: Store) -> None:
    from tunewright.jobs.kinds import JobError

    job = made(api, store)
    told = [{"code": "invalid_url", "message": "no", "line": 4, "param": "url"}]
    store.jobs.fail(job.id, JobError(code="invalid_url", message="line 4: no"), report={"faults": told})
    batch = shown(api, job)
    assert (batch["status"], batch["errors"]["data"]) == ("failed", told)
    assert batch["failed_at"] is not None
    other = store.jobs.get(create(api, completion_window="2h").json()["id"])
    assert other is not None
    store.jobs.fail(other.id, JobError(code="batcher_crashed", message="it ended"))
    [found] = shown(api, other)["errors"]["data"]
    assert found == {"code": "batcher_crashed", "message": "it ended", "line": None, "param": None}
