"""Rates and quotas of projects and keys: what is refused, what the answers say, and what it does to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import insert, update
from starlette.testclient import TestClient

from fake_engine import Client, engine_at, gateway_for, stream
from races import at_once
from rows import PRODUCT, create_job
from tunewright.api.gateway.proxy import Relay
from tunewright.api.gateway.rates import Rates
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.organization import quotas
from tunewright.config import Settings
from tunewright.errors import TooManyRequests
from tunewright.ids import new_id
from tunewright.jobs.kinds import JobError
from tunewright.kinds.batch.models import INPUT_FILE, BatchRequest
from tunewright.registry.workspace import Workspace
from tunewright.store.limits import NO_LIMITS, Limits
from tunewright.store.records import Engine, JobInput, NewJob
from tunewright.store.states import FileStatus, JobState
from tunewright.store.store import Store
from tunewright.store.tables import job_devices, uploads
from tunewright.store.usage import HOUR, hour_of

CHAT, PROJECTS = "/v1/chat/completions", "/v1/organization/projects"
OPERATOR = "the-operators-key-0123"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def told(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers}


def test_requests_are_refused_beyond_their_rate_and_taken_again_as_it_is_refilled() -> None:
    clock = Clock()
    rates, limited = Rates(clock), (("project p", Limits(requests_per_minute=2)),)
    with rates.admit(limited) as first, rates.admit(limited) as second:
        assert told(first.headers) == {
            "limit-requests": "2", "remaining-requests": "1", "reset-requests": "30s"
        }  # fmt: skip
        assert told(second.headers)["reset-requests"] == "1m0s"
    for call in (rates.check, lambda limited: rates.admit(limited).__enter__()):
        with pytest.raises(TooManyRequests, match="2 requests a minute") as refused:
            call(limited)
    error = refused.value
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 30.0)
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 30
    with rates.admit(limited):
        pass
    with pytest.raises(TooManyRequests):
        rates.check(limited)


def test_tokens_that_were_used_hold_up_requests_until_they_are_refilled() -> None:
    clock = Clock()
    rates, limited = Rates(clock), (("project p", Limits(tokens_per_minute=600)),)
    with rates.admit(limited) as admitted:
        admitted.used(900)
    with pytest.raises(TooManyRequests, match="600 tokens a minute") as refused:
        rates.check(limited)
    assert refused.value.retry_after == pytest.approx(30.1)
    clock.now += 31
    with rates.admit(limited) as admitted:
        assert told(admitted.headers) == {
            "limit-tokens": "600",
            "remaining-tokens": "10",
            "reset-tokens": "59s",
        }


def test_the_tighter_of_project_and_key_holds_and_is_told() -> None:
    rates = Rates(Clock())
    project = ("project p", Limits(requests_per_minute=100))
    mine, other = (project, ("key a", Limits(requests_per_minute=1))), (project, ("key b", NO_LIMITS))
    with rates.admit(mine) as admitted:
        assert told(admitted.headers)["limit-requests"] == "1"
    with pytest.raises(TooManyRequests, match="key a"):
        rates.check(mine)
    with rates.admit(other) as admitted:
        assert told(admitted.headers)["remaining-requests"] == "98"


def test_a_limit_that_is_changed_holds_at_once_and_forgets_nothing() -> None:
    rates = Rates(Clock())
    with rates.admit((("project p", Limits(requests_per_minute=10)),)):
        pass
    wider, narrower = (("project p", Limits(requests_per_minute=number)) for number in (20, 2))
    with rates.admit((wider,)) as admitted:
        assert told(admitted.headers)["remaining-requests"] == "18"
    with pytest.raises(TooManyRequests):
        rates.check((narrower,))


async def answer(request: Any, body: dict[str, Any]) -> Any:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    return await stream(
        request, b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', usage, b"data: [DONE]\n\n"
    )


@pytest.mark.anyio
async def test_a_stream_takes_its_place_and_its_tokens(store: Store, socket: Path, engine: Engine) -> None:
    gateway, go_on, began = gateway_for(store), asyncio.Event(), asyncio.Event()
    limited = (("project p", Limits(concurrent_requests=1, tokens_per_minute=10)),)

    async def wait(request: Any, body: dict[str, Any]) -> Any:
        began.set()
        await go_on.wait()
        return await answer(request, body)

    async def ask(client: Client) -> None:
        relay = Relay(
            gateway, CHAT, {"model": "tiny", "messages": [], "stream": True}, project="p", limited=limited
        )
        await relay({"type": "http"}, client.receive, client.send)

    async with engine_at(socket, wait), asyncio.timeout(20):
        client = Client()
        first = asyncio.create_task(ask(client))
        await began.wait()
        with pytest.raises(TooManyRequests, match="1 generations in flight"):
            await ask(Client())
        go_on.set()
        await first
        assert client.headers["x-ratelimit-remaining-tokens"] == "10"
        with pytest.raises(TooManyRequests, match="10 tokens a minute"):
            await ask(Client())
        await gateway.close()
    assert {status for one in gateway.counts.copy() for _, status in one.requests} == {200, 429}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(store: Store, data: Workspace, built: dict[str, Any]) -> TestClient:
    settings = Settings(data_dir=data.path, api_key=OPERATOR)
    store.engines.declare(["tiny"])
    server, spec = built.get("") or built.setdefault("", build(settings, store))
    spec.gateway = gateway_for(store)
    server.app.state.context = ServiceContext(settings, store, data, spec.control)
    return TestClient(server.app, base_url="http://127.0.0.1:8000", headers=bearer(OPERATOR))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


Team = Callable[..., tuple[str, dict[str, str]]]


@pytest.fixture
def team(api: TestClient) -> Team:
    def make(key_limits: dict[str, int] | None = None, **limits: int) -> tuple[str, dict[str, str]]:
        project = api.post(PROJECTS, json={"name": "team", "limits": limits}).json()["id"]
        scopes = ["read", "infer", "train", "admin"]
        body = {"name": "k", "scopes": scopes, "limits": key_limits or {}}
        return project, bearer(api.post(f"{PROJECTS}/{project}/api_keys", json=body).json()["value"])

    return make


def test_limits_are_set_changed_and_taken_away(api: TestClient) -> None:
    made = api.post(PROJECTS, json={"name": "team", "limits": {"requests_per_minute": 5}}).json()
    path = f"{PROJECTS}/{made['id']}"
    changed = api.post(path, json={"limits": {"adapters": 0, "requests_per_minute": 6}}).json()
    assert (changed["name"], changed["limits"]["adapters"]) == ("team", 0)
    assert api.post(path, json={"limits": {"requests_per_minute": None}}).json()["limits"] == {
        **dict.fromkeys(made["limits"]), "adapters": 0
    }  # fmt: skip
    assert api.post(path, json={"name": "other"}).json()["limits"]["adapters"] == 0
    for wrong in (
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"adapters": "many"},
        {"adapters": False},
        {"gpus": 1},
    ):
        assert api.post(path, json={"limits": wrong}).status_code == 400, wrong
    key = api.post(f"{path}/api_keys", json={"name": "k", "limits": {"tokens_per_minute": 9}}).json()
    limited = api.post(f"{path}/api_keys/{key['id']}", json={"limits": {"concurrent_requests": 2}}).json()
    assert (limited["limits"]["tokens_per_minute"], limited["limits"]["concurrent_requests"]) == (9, 2)
    rotated = api.post(f"{path}/api_keys/{key['id']}/rotate").json()
    assert rotated["limits"] == limited["limits"]
    assert api.post(f"{path}/api_keys/key-x", json={"limits": {}}).status_code == 404
    assert api.post(f"{path}/api_keys/{rotated['id']}", json={"limits": {"adapters": 1}}).status_code == 400


def test_a_projects_rate_holds_for_all_its_keys_and_for_no_other_project(api: TestClient, team: Team) -> None:
    project, headers = team(requests_per_minute=1)
    other = team()[1]
    body = {"model": "nothing", "messages": []}
    first = api.post(CHAT, json=body, headers=headers)
    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (404, "0")
    for again in (headers, {**bearer(OPERATOR), "OpenAI-Project": project}):
        refused = api.post(CHAT, json=body, headers=again)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert api.get("/v1/files", headers=headers).status_code == 200, "rates are those of generations"
    for free in (other, bearer(OPERATOR)):
        answered = api.post(CHAT, json=body, headers=free)
        assert answered.status_code == 404
        assert not [name for name in answered.headers if name.startswith("x-ratelimit")]
    api.post(f"{PROJECTS}/{project}", json={"limits": {"requests_per_minute": 100}})
    assert api.post(CHAT, json=body, headers=headers).status_code == 404, "the limit is read anew"


def test_the_default_projects_rate_holds_for_whoever_has_no_project(api: TestClient) -> None:
    api.post(f"{PROJECTS}/default", json={"limits": {"requests_per_minute": 1}})
    statuses = [api.post(CHAT, json={"model": "x", "messages": []}).status_code for _ in range(2)]
    assert statuses == [404, 429]


def test_the_openai_package_waits_as_it_is_told(
    api: TestClient, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    headers = team(requests_per_minute=6)[1]
    client = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key=headers["Authorization"].removeprefix("Bearer "),
        http_client=api, max_retries=1,
    )  # fmt: skip
    for _ in range(6):
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="x", prompt="x")
    with pytest.raises(openai.RateLimitError, match="6 requests a minute") as refused:
        client.completions.create(model="x", prompt="x")
    assert refused.value.code == "rate_limit_exceeded"
    assert 9 <= slept[0] <= 11


def upload(api: TestClient, headers: dict[str, str], size: int) -> Any:
    files = {"file": ("rows.jsonl", b"x" * size)}
    return api.post("/v1/files", files=files, data={"purpose": "batch"}, headers=headers)


def test_no_more_bytes_are_stored_than_a_project_may_have(api: TestClient, team: Team) -> None:
    headers = team(stored_bytes=100)[1]
    kept = upload(api, headers, 90).json()
    refused = upload(api, headers, 20)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "has 90" in error["message"]
    announced = {"filename": "f", "purpose": "batch", "bytes": 20, "mime_type": "application/jsonl"}
    assert api.post("/v1/uploads", json=announced, headers=headers).status_code == 429
    fits = api.post("/v1/uploads", json={**announced, "bytes": 5}, headers=headers).json()["id"]
    part = api.post(f"/v1/uploads/{fits}/parts", files={"data": ("part", b"x" * 20)}, headers=headers)
    assert (part.status_code, part.json()["error"]["code"]) == (429, "insufficient_quota")
    assert upload(api, team()[1], 200).status_code == 200, "another project has its own"
    assert api.delete(f"/v1/files/{kept['id']}", headers=headers).status_code == 200
    assert upload(api, headers, 20).status_code == 200


def test_the_parts_of_an_upload_count_until_it_expires(store: Store) -> None:
    mine = store.of(store.projects.create("p").id)
    made = mine.uploads.create(
        id="upload-1", filename="f", purpose="batch", bytes=9, created_at=1.0, expires_at=time.time() + 600,
        file_seconds=None,
    )  # fmt: skip
    mine.uploads.add_part(made, "part-1", 9, 9)
    assert mine.holdings.stored_bytes() == 9
    with store.database.begin() as connection:
        connection.execute(update(uploads).values(expires_at=time.time()))
    assert mine.holdings.stored_bytes() == 0


def test_no_more_jobs_wait_than_a_project_may_have(api: TestClient, team: Team) -> None:
    headers = team(queued_jobs=1)[1]
    file = upload(api, headers, 5).json()["id"]
    asked = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": file}
    assert api.post("/v1/batches", json=asked, headers=headers).status_code == 200
    refused = api.post("/v1/batches", json={**asked, "endpoint": CHAT}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")


def test_nor_do_they_where_many_are_created_at_once(api: TestClient, team: Team) -> None:
    headers = team(queued_jobs=1)[1]
    file = upload(api, headers, 5).json()["id"]
    asked = {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": file}

    def create(number: int) -> int:
        other = {**asked, "metadata": {"number": str(number)}}
        return api.post("/v1/batches", json=other, headers=headers).status_code

    assert sorted(at_once(12, create)) == [200] + [429] * 11


@pytest.mark.each_database
def test_what_is_counted_for_a_limit_is_counted_with_what_is_added(store: Store) -> None:
    mine = store.of(store.projects.create("team").id)
    waiting, adapters = list[int](), list[int]()
    request = BatchRequest(endpoint=CHAT, completion_window="24h", expires_at=2e9)
    file = mine.files.add(
        id="file-mine", filename="f", purpose="batch", size=1, sha256="e" * 64, created_at=1.0,
        status=FileStatus.PROCESSED,
    )  # fmt: skip

    def add(number: int) -> None:
        new = NewJob(
            "batch", "", request, 0, (JobInput(INPUT_FILE, file_id=file.id),), fingerprint=f"{number}"
        )
        mine.jobs.create(new, admit=waiting.append)
        named = {"id": f"adapter-{number}", "name": f"ft:tiny::{number}", "base": "tiny"}
        mine.models.register({**PRODUCT, **named}, admit=adapters.append)

    at_once(6, add)
    assert (sorted(waiting), sorted(adapters)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])


def test_no_more_jobs_are_created_than_there_are_hours_of_gpus(
    api: TestClient, team: Team, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = datetime.fromtimestamp(hour_of(time.time()) - 10 * HOUR, UTC)
    monkeypatch.setattr(quotas, "_month", lambda: month)
    base = "tunewright-tiny"
    store.engines.declare([base])

    def create(headers: dict[str, str], file: str, seed: int) -> Any:
        asked = {"model": base, "training_file": file, "seed": seed}
        return api.post("/v1/fine_tuning/jobs", json=asked, headers=headers)

    def with_file(limits: dict[str, int], of_key: dict[str, int] | None = None) -> Any:
        project, headers = team(of_key, **limits)
        rows = {"file": ("rows.jsonl", b'{"prompt": "a", "completion": "b"}')}
        file = api.post("/v1/files", files=rows, data={"purpose": "fine-tune"}, headers=headers)
        return project, headers, file.json()["id"]

    for limits, of_key, whose in (
        ({"gpu_hours_per_month": 2}, None, "project"),
        ({"gpu_hours_per_month": 9}, {"gpu_hours_per_month": 2}, "key"),
    ):
        project, headers, file = with_file(limits, of_key)
        first = create(headers, file, 1).json()["id"]
        with store.database.begin() as connection:
            row = {"device": f"cuda:{project}", "job_id": first, "since": time.time() - 1.5 * HOUR}
            connection.execute(insert(job_devices).values(row))
        assert create(headers, file, 2).status_code == 200
        with store.database.begin() as connection:
            connection.execute(
                update(job_devices)
                .where(job_devices.c.job_id == first)
                .values(since=time.time() - 2.5 * HOUR)
            )
        refused = create(headers, file, 3)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert f"of the {whose} " in refused.json()["error"]["message"]
        assert "2.50" in refused.json()["error"]["message"]
        job = store.jobs.get(first)
        assert job is not None
        assert job.devices, "what runs goes on"
        batch = {
            "endpoint": "/v1/completions",
            "completion_window": "24h",
            "input_file_id": upload(api, headers, 5).json()["id"],
        }
        assert api.post("/v1/batches", json=batch, headers=headers).status_code == 200, "it needs no device"
    assert create(*with_file({"gpu_hours_per_month": 0})[1:], 1).status_code == 429


def queued(store: Store, project: str, number: int, state: JobState = JobState.QUEUED) -> list[str]:
    mine = store.of(project)
    file = mine.files.add(
        id=new_id("file"), filename="f", purpose="fine-tune", size=1, sha256="0" * 64, created_at=1.0
    ).id
    jobs = [
        create_job(mine, base="tiny", training_file=file, state=state, fingerprint=new_id("x"))
        for _ in range(number)
    ]
    return [job.id for job in jobs]


def claimed(store: Store) -> str | None:
    job = store.jobs.claim("cpu", ["tiny"], ["fine_tuning"])
    if job is None:
        return None
    store.jobs.fail(job.id, JobError(code="x", message="it has run"))
    store.jobs.release(job.id)
    return job.id


@pytest.mark.each_database
def test_a_project_that_queues_many_jobs_starts_one_of_two(store: Store) -> None:
    """The bound: of any n jobs that start in a row, each of n projects with queued jobs has one."""
    loud, quiet = (store.projects.create(name).id for name in ("loud", "quiet"))
    many = queued(store, loud, 5)
    assert claimed(store) == many[0]
    few = queued(store, quiet, 2)
    assert [claimed(store) for _ in range(7)] == [few[0], many[1], few[1], *many[2:], None]
    (late,) = queued(store, store.projects.create("late").id, 1)
    more = queued(store, loud, 1)
    assert [claimed(store), claimed(store)] == [late, more[0]]


@pytest.mark.each_database
def test_a_job_whose_files_are_read_holds_up_its_own_project_alone(store: Store) -> None:
    loud, quiet = (store.projects.create(name).id for name in ("loud", "quiet"))
    queued(store, loud, 1, JobState.VALIDATING_FILES)
    queued(store, loud, 1)
    (other,) = queued(store, quiet, 1)
    assert [claimed(store), claimed(store)] == [other, None]


@pytest.mark.each_database
def test_no_more_jobs_of_a_project_run_than_may(store: Store) -> None:
    loud, quiet = store.projects.create("loud", Limits(running_jobs=1)).id, store.projects.create("quiet").id
    first, second = queued(store, loud, 2)
    (other,) = queued(store, quiet, 1)
    running = [store.jobs.claim(f"cuda:{number}", ["tiny"]) for number in range(3)]
    assert [job and job.id for job in running] == [first, other, None]
    store.jobs.fail(first, JobError(code="x", message="it has run"))
    store.jobs.release(first)
    assert claimed(store) == second


def test_adapters_and_weights_count_once_each(store: Store) -> None:
    mine = store.of(store.projects.create("team", Limits(adapters=2)).id)
    for number, step in ((1, None), (2, None), (3, 5)):
        named = {"id": f"adapter-{number}", "name": f"ft:tiny::{number}", "checkpoint_step": step}
        mine.models.register({**PRODUCT, **named, "base": "tiny", "sha256": "e" * 64, "bytes": 10})
    assert (mine.holdings.adapters(), mine.holdings.stored_bytes()) == (2, 10)
    assert mine.holdings.limits() == Limits(adapters=2)
    assert (store.of("default").holdings.adapters(), store.of("default").holdings.limits()) == (0, NO_LIMITS)
