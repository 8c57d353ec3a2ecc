"""Usage: what is counted of generations, when it is written, and how it is told, with the `openai` package too."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from sqlalchemy import update
from starlette.testclient import TestClient

from fake_engine import Client, Handler, engine_at, gateway_for, stream
from rows import create_job
from tunewright.api.gateway.below import BelowLive
from tunewright.api.gateway.inner import InnerGateway, _payer
from tunewright.api.gateway.ledger import Ledger, Payer
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.api.gateway.usage import usage_of
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings
from tunewright.config.prices import price_for, price_of
from tunewright.ids import new_id
from tunewright.jobs.gateway import SOURCE_HEADER, payer_headers
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Engine, Job
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.store.tables import job_devices
from tunewright.store.usage import DAY, HOUR, Asked, UsageKey, Used, hour_of

ROOT = Path(__file__).parents[2]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OPERATOR = "the-operators-key-0123"
USAGE, COSTS = "/v1/organization/usage", "/v1/organization/costs"
EVER = Asked(0, 2**34, DAY, ("project", "api_key_id", "model", "batch"))


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def told(prompt: int, generated: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}


TOKEN = event(id="1", choices=[{"delta": {"content": "a"}}])
DONE = b"data: [DONE]\n\n"


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Three tokens to a prompt of seven; to `tokenize`, five."""
    if request.path == "/tokenize":
        return web.json_response({"count": 5, "tokens": [1] * 5})
    if body.get("stream"):
        return await stream(request, TOKEN, TOKEN, TOKEN, event(id="1", choices=[], usage=told(7, 3)), DONE)
    text = json.dumps({"model": body["model"], "choices": [], "usage": told(7, 3)}, separators=(",", ":"))
    return web.Response(text=text, content_type="application/json")


async def ask(gateway: Gateway, client: Client | None = None, path: str = CHAT, **body: Any) -> Client:
    client = client or Client()
    asked = {"model": "tiny", **({"messages": []} if path == CHAT and "prompt" not in body else {}), **body}
    await Relay(gateway, path, asked, project="proj-a", key="key-a")(
        {"type": "http"}, client.receive, client.send
    )
    return client


def used(store: Store) -> dict[tuple[Any, ...], Used]:
    return {tuple(sums.group.values()): sums.used for sums in store.usage.tokens(EVER)}


async def from_evaluation(
    gateway: Gateway, inner_socket: Path, engine: Engine, body: dict[str, Any], project: str
) -> None:
    """As the process of an evaluation asks."""
    inner = InnerGateway(gateway, inner_socket)
    await inner.start()
    assert engine.info is not None
    asked = {"model": engine.name, "content": engine.info.fingerprint, "path": CHAT, "body": body}
    connector = aiohttp.UnixConnector(path=str(inner_socket))
    async with (
        aiohttp.ClientSession(connector=connector, headers=payer_headers(project, "key-b")) as session,
        session.post("http://gateway/ask", json=asked) as answered,
    ):
        assert answered.status == 200
    await inner.stop()


@pytest.mark.anyio
async def test_every_generation_is_counted_for_who_has_asked(
    store: Store, socket: Path, engine: Engine
) -> None:
    gateway = gateway_for(store)
    async with engine_at(socket, answer):
        await ask(gateway)
        streamed = await ask(gateway, stream=True)
        await ask(gateway, path="/v1/embeddings", input="x")
        await ask(gateway, path="/tokenize", prompt="x")
        await ask(gateway, model="nothing")
        body = json.dumps({"model": "tiny", "messages": []}).encode()
        await BelowLive(gateway).ask(CHAT, body, None, Payer("proj-b", "key-b", source="batch"))
        evaluation = Payer("proj-b", "key-b", source="evaluation")
        await from_evaluation(gateway, socket.parent / "inner", engine, json.loads(body), "proj-b")
        await gateway.ask_by_name(json.loads(body), "proj-c", "key-c")

        async def keep(_: bytes) -> None:
            pass

        await gateway.stream(
            "tiny", TEXT, {"model": "tiny", "prompt": "", "stream": True}, keep, payer=evaluation
        )
        assert used(store) == {}, "no request waits for the database"
        await gateway.close()
    assert b"usage" not in streamed.body, "its client did not ask for it"
    assert used(store) == {
        ("proj-a", "key-a", "tiny", False): Used(3, 21, 9),
        ("proj-b", "key-b", "tiny", True): Used(1, 7, 3),
        ("proj-b", "key-b", "tiny", False): Used(2, 14, 6),
        ("proj-c", "key-c", "tiny", False): Used(1, 7, 3),
    }
    assert [one.used for one in store.usage.tokens(EVER, "embeddings")] == [Used(1, 7, 3)]


@pytest.mark.parametrize(
    ("said", "source"),
    [("grader", "grader"), ("synthesis", "synthesis"), ("live", "evaluation"), (None, "evaluation")],
)
def test_the_process_of_a_job_says_what_it_asks_for(said: str | None, source: str) -> None:
    headers = {**payer_headers("proj-b", "key-b"), **({SOURCE_HEADER: said} if said else {})}
    assert _payer(make_mocked_request("POST", "/ask", headers=headers)) == Payer(
        "proj-b", "key-b", source=source
    )


def slowly(go_on: asyncio.Event) -> Handler:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path == "/tokenize":
            return await answer(request, body)
        response = await stream(request, TOKEN, TOKEN)
        await go_on.wait()
        for part in (TOKEN, event(id="1", choices=[], usage=told(7, 3)), DONE):
            await response.write(part)
        return response

    return handler


@pytest.mark.anyio
async def test_what_is_seen_of_a_stream_is_written_while_it_goes_on_and_corrected_at_its_end(
    store: Store, socket: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.api.gateway.ledger.FLUSH_SECONDS", 0.02)
    gateway, go_on, client = gateway_for(store), asyncio.Event(), Client()
    async with engine_at(socket, slowly(go_on)), asyncio.timeout(20):
        asked = asyncio.create_task(ask(gateway, client, TEXT, prompt="x", stream=True))
        while list(used(store).values()) != [Used(1, 0, 2)]:
            await asyncio.sleep(0.01)
        go_on.set()
        await asked
        while list(used(store).values()) != [Used(1, 7, 3)]:
            await asyncio.sleep(0.01)
        await gateway.close()
    assert list(used(store).values()) == [Used(1, 7, 3)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"prompt": ["a", "b"]}, 10),
        ({"prompt": [1, 2, 3]}, 3),
        ({"messages": [{"role": "user", "content": "x"}]}, 5),
    ],
)
async def test_who_leaves_pays_for_what_was_generated_and_for_the_prompt(
    store: Store, socket: Path, engine: Engine, body: dict[str, Any], prompt: int
) -> None:
    gateway, client = gateway_for(store), Client()
    async with engine_at(socket, slowly(asyncio.Event())) as fake, asyncio.timeout(20):
        path = CHAT if "messages" in body else TEXT
        asked = asyncio.create_task(ask(gateway, client, path, stream=True, **body))
        await client.got_something.wait()
        while sum(message.get("body", b"").count(b"data: ") for message in client.messages) < 2:
            await asyncio.sleep(0.01)
        client.leaves.set()
        await asked
        await gateway.prompts.settle()
        await gateway.close()
        assert fake.aborted.is_set()
    generated = 1 if path == CHAT else 2  # the first event of a chat has the role
    assert list(used(store).values()) == [Used(1, prompt, generated)]


@pytest.mark.anyio
@pytest.mark.parametrize(("ends", "expected"), [(True, Used(1, 7, 3)), (False, Used(1, 5, 2))])
async def test_a_tool_with_a_property_named_usage_is_no_usage(
    store: Store, socket: Path, engine: Engine, ends: bool, expected: Used
) -> None:
    """vLLM repeats the tools in the first event and in the last."""
    tools = [{"type": "function", "parameters": {"properties": {"usage": {"prompt_tokens": 0}}}}]

    def told_by(type: str, **fields: Any) -> bytes:
        body = {"type": type, "response": {"tools": tools, **fields}}
        return f"event: {type}\ndata: ".encode() + event(**body).removeprefix(b"data: ")

    delta = b"event: response.output_text.delta\n" + event(type="response.output_text.delta", delta="a")

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path == "/tokenize":
            return await answer(request, body)
        response = await stream(request, told_by("response.created"), delta, delta)
        if not ends:
            await asyncio.Event().wait()
        await response.write(told_by("response.completed", usage={"input_tokens": 7, "output_tokens": 3}))
        return response

    gateway, client = gateway_for(store), Client()
    async with engine_at(socket, handler), asyncio.timeout(20):
        asked = asyncio.create_task(ask(gateway, client, "/v1/responses", stream=True, input="x"))
        while sum(message.get("body", b"").count(b".delta\n") for message in client.messages) < 2:
            await asyncio.sleep(0.01)
        if not ends:
            client.leaves.set()
        await asked
        await gateway.prompts.settle()
        await gateway.close()
    found = next(iter(used(store).values()))
    assert (found.requests, found.output_tokens) == (expected.requests, expected.output_tokens)
    assert not ends or found == expected


def test_the_usage_of_a_response_is_not_that_of_its_tools() -> None:
    tools = [{"properties": {"usage": {"input_tokens": 1}}}]
    body = {"tools": tools, "usage": {"input_tokens": 7, "output_tokens": 3}, "messages": tools}
    assert usage_of(json.dumps(body, separators=(",", ":")).encode()) == (7, 3)


@pytest.mark.anyio
async def test_what_cannot_be_written_is_kept_and_written_later(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tunewright.api.gateway.ledger.FLUSH_SECONDS", 0.01)
    ledger, write, tries = Ledger(store), store.usage.add, 0

    def fail_twice(rows: dict[UsageKey, Used]) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError("the disk is full")
        write(rows)

    monkeypatch.setattr(store.usage, "add", fail_twice)
    async with asyncio.timeout(20):
        ledger.note(Payer("proj-a"), CHAT, "tiny", (7, 3))
        while tries < 1:
            await asyncio.sleep(0.005)
        ledger.note(Payer("proj-a"), CHAT, "tiny", (7, 3))
        while not used(store):
            await asyncio.sleep(0.005)
        await ledger.close()
    assert list(used(store).values()) == [Used(2, 14, 6)]
    assert len([one for one in caplog.records if "kept in memory" in one.message]) == 1


def put(store: Store, project: str, model: str, hour: int, key: str = "", **more: Any) -> None:
    kind = UsageKey(hour, project, key, model, "completions", "live")
    store.usage.add({kind._replace(**more): Used(2, 1_000_000, 500_000)})


@pytest.mark.each_database
def test_sums_are_added_to_and_read_by_bucket_and_group(store: Store) -> None:
    day = 20_000 * DAY
    for hour in (day, day, day + HOUR, day + DAY):
        put(store, "proj-a", "m1", hour, "key-a")
    put(store, "proj-b", "m2", day + DAY - HOUR, source="batch")
    whole = Asked(day, day + 2 * DAY, DAY)
    assert [(one.bucket, one.used.requests) for one in store.usage.tokens(whole)] == [
        (day, 8),
        (day + DAY, 2),
    ]
    hours = Asked(day, day + DAY, HOUR, ("model",), projects=["proj-a"])
    found = [(one.bucket - day, one.group["model"], one.used.requests) for one in store.usage.tokens(hours)]
    assert found == [(0, "m1", 4), (HOUR, "m1", 2)]
    batches = Asked(day, day + 2 * DAY, DAY, ("project", "batch"), is_batch=True)
    assert [dict(one.group) for one in store.usage.tokens(batches)] == [{"project": "proj-b", "batch": True}]
    assert store.usage.tokens(Asked(day, day + DAY, DAY, api_keys=["key-x"])) == []
    mine = store.of("proj-b").usage.tokens(Asked(day, day + 2 * DAY, DAY, ("project",)))
    assert [dict(one.group) for one in mine] == [{"project": "proj-b"}]


def queued(store: Store) -> Job:
    file = store.files.add(
        id=new_id("file"), filename="f", purpose="fine-tune", size=1, sha256="0" * 64, created_at=1.0
    )
    return create_job(store, base="tiny", training_file=file.id, state=JobState.QUEUED)


@pytest.mark.each_database
def test_a_jobs_gpus_are_counted_until_they_are_released_and_not_while_nothing_ran(store: Store) -> None:
    hour = hour_of(time.time()) - 5 * HOUR
    project = store.projects.create("team").id
    job, other = (queued(one) for one in (store.of(project), store))
    claimed = store.jobs.claim(["cuda:0"], ["tiny"])
    assert store.jobs.claim("cpu", ["tiny"]) is not None
    assert claimed is not None
    assert claimed.id == job.id
    by = Asked(hour - DAY, hour + DAY, HOUR, ("project", "model"))
    with store.database.begin() as connection:
        connection.execute(update(job_devices).values(since=hour - 1800))
    store.jobs.restart_clock(job.id, until=hour + 900)  # what has run it was killed then
    found = {(one.bucket - hour, *one.group.values()): one.seconds for one in store.usage.gpu_seconds(by)}
    now = found.pop((hour_of(time.time()) - hour, project, "tiny"))
    assert found == {(-HOUR, project, "tiny"): 1800.0, (0, project, "tiny"): 900.0}
    assert 0 <= now < 600, "that of the running job, until now"
    for one in (job, other):
        store.jobs.release(one.id)
        store.jobs.release(one.id)
    assert sum(one.seconds for one in store.usage.gpu_seconds(by)) < 2700 + 600


@pytest.mark.each_database
def test_gpus_are_counted_for_the_key_that_has_created_the_job(store: Store) -> None:
    hour = hour_of(time.time()) - HOUR
    mine = store.of(store.projects.create("team").id)
    for key, seconds in ((None, 100), ("key-a", 1000), ("key-b", 3600)):
        file = new_id("file")
        mine.files.add(id=file, filename="f", purpose="fine-tune", size=1, sha256="0" * 64, created_at=1.0)
        job = create_job(
            mine, base="tiny", training_file=file, state=JobState.QUEUED, fingerprint=file, api_key_id=key
        )
        assert store.jobs.claim([f"cuda:{seconds}"], ["tiny"]) is not None
        with store.database.begin() as connection:
            held = update(job_devices).where(job_devices.c.job_id == job.id)
            connection.execute(held.values(since=hour - seconds))
        store.jobs.restart_clock(job.id, until=hour)
        if key != "key-b":  # it runs
            store.jobs.release(job.id)
    asked = Asked(hour - DAY, hour, DAY * 100, ("api_key_id",))
    assert {one.group["api_key_id"]: round(one.seconds, -2) for one in mine.usage.gpu_seconds(asked)} == {
        "": 100, "key-a": 1000, "key-b": 3600
    }  # fmt: skip
    assert 1.0 <= mine.usage.gpu_hours(hour - DAY, key="key-b") < 1.2
    assert 1.3 <= mine.usage.gpu_hours(hour - DAY) < 1.5
    assert store.of("proj-x").usage.gpu_hours(hour - DAY) == 0


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(store: Store, data: Workspace, built: dict[str, Any]) -> TestClient:
    settings = Settings(
        data_dir=data.path, api_key=OPERATOR, price=["m1=2/6", "ft:*=1/1"], price_per_hour=3.0, currency="EUR"
    )
    server, spec = built.get("") or built.setdefault("", build(settings, store))
    spec.gateway = gateway_for(store)
    server.app.state.context = ServiceContext(settings, store, data, spec.control)
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    return TestClient(server.app, base_url="http://127.0.0.1:8000", headers=headers)


DAY_ONE = 20_000 * DAY


def results(answer: Any) -> list[tuple[int, Any]]:
    assert answer.status_code == 200, answer.text
    return [(bucket["start_time"], one) for bucket in answer.json()["data"] for one in bucket["results"]]


def test_buckets_are_told_page_by_page_also_the_empty_ones(api: TestClient, store: Store) -> None:
    put(store, "default", "m1", DAY_ONE)
    put(store, "default", "m1", DAY_ONE + 3 * DAY)
    query = {"start_time": DAY_ONE + 5, "end_time": DAY_ONE + 4 * DAY, "limit": 3}
    first = api.get(f"{USAGE}/completions", params=query).json()
    assert [(one["start_time"], len(one["results"])) for one in first["data"]] == [
        (DAY_ONE, 1), (DAY_ONE + DAY, 0), (DAY_ONE + 2 * DAY, 0)
    ]  # fmt: skip
    assert first["has_more"]
    second = api.get(f"{USAGE}/completions", params={**query, "page": first["next_page"]}).json()
    assert [(one["start_time"], len(one["results"])) for one in second["data"]] == [(DAY_ONE + 3 * DAY, 1)]
    assert (second["has_more"], second["next_page"]) == (False, None)
    now = api.get(f"{USAGE}/completions").json()
    assert len(now["data"]) == 7
    assert now["data"][-1]["end_time"] > time.time() - 60


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("group_by=user_id", "group_by"), ("group_by[]=x", "group_by"), ("limit=32", "limit"), ("page=abc", "page"),
        ("page=3", "page"), ("start_time=100&end_time=50", "end_time"), ("bucket_width=1m", "bucket_width"),
        ("models[]=%00", "models"), ("start_time=-1", "start_time"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_told_with_its_parameter(api: TestClient, query: str, param: str) -> None:
    refused = api.get(f"{USAGE}/completions?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].partition(".")[0] == param


def test_a_project_is_told_of_its_own_use_alone(api: TestClient, store: Store) -> None:
    keys = {}
    for name in ("a", "b"):
        project = api.post("/v1/organization/projects", json={"name": name}).json()["id"]
        made = api.post(
            f"/v1/organization/projects/{project}/api_keys", json={"name": name, "scopes": ["admin"]}
        )
        keys[name] = (project, {"Authorization": f"Bearer {made.json()['value']}"})
        put(store, project, f"m-{name}", DAY_ONE, f"key-{name}")
    mine, theirs = keys["a"], keys["b"]
    span = f"start_time={DAY_ONE}&end_time={DAY_ONE + DAY}"
    for path in (f"{USAGE}/completions", f"{USAGE}/embeddings", f"{USAGE}/gpu_seconds", COSTS):
        every = "group_by=project_id" + ("" if "embed" in path or "gpu" in path else "&group_by=api_key_id")
        shown = api.get(f"{path}?{span}&{every}", headers=mine[1])
        assert shown.status_code == 200
        assert theirs[0] not in shown.text
        assert "key-b" not in shown.text
        named = api.get(f"{path}?{span}&project_ids={theirs[0]}&{every}", headers=mine[1])
        missing = api.get(f"{path}?{span}&project_ids=proj-x&{every}", headers=mine[1])
        assert named.json() == missing.json()
    told_of = {
        one["project_id"] for _, one in results(api.get(f"{USAGE}/completions?{span}&group_by=project_id"))
    }
    assert told_of == {mine[0], theirs[0]}


def test_costs_are_tokens_and_hours_times_their_prices(api: TestClient, store: Store) -> None:
    put(store, "proj-a", "m1", DAY_ONE, "key-a")
    put(store, "proj-a", "ft:m1:x:1", DAY_ONE)
    put(store, "proj-a", "free", DAY_ONE)
    span = {"start_time": DAY_ONE, "end_time": DAY_ONE + DAY}
    ((_, whole),) = results(api.get(COSTS, params=span))
    assert whole["amount"] == {"value": 2 + 3 + 1 + 0.5, "currency": "eur"}
    items = {
        one["line_item"]: (one["amount"] and one["amount"]["value"], one["quantity"], one["quantity_unit"])
        for _, one in results(api.get(COSTS, params={**span, "group_by": "line_item"}))
    }
    assert items["m1, output_tokens"] == (3.0, 500_000, "tokens")
    assert items["free, input_tokens"] == (None, 1_000_000, "tokens")
    one = results(api.get(COSTS, params={**span, "api_key_ids[]": "key-a", "group_by[]": "api_key_id"}))
    assert [(found["api_key_id"], found["amount"]["value"]) for _, found in one] == [("key-a", 5.0)]


@pytest.mark.parametrize("packages", [None, ".venv/openai-2"])
def test_the_openai_package_reads_usage_and_costs(
    api: TestClient, store: Store, packages: str | None
) -> None:
    put(store, "proj-a", "m1", DAY_ONE, "key-a")
    put(store, "proj-a", "m1", DAY_ONE, "key-a", kind="embeddings")
    at = f"start_time={DAY_ONE}"
    queries = [
        f"/v1{USAGE[3:]}/completions?{at}&bucket_width=1d&group_by[]=project_id&group_by[]=model&limit=2&models[]=m1",
        f"/v1{USAGE[3:]}/embeddings?{at}",
        f"/v1{COSTS[3:]}?{at}&group_by[]=line_item",
    ]
    answers = {query.partition("?")[0]: api.get(query).text for query in queries}
    path = [*([str(ROOT / packages)] if packages else []), *(entry for entry in sys.path if entry)]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "openai_usage.py")], input=json.dumps(answers), text=True,
        capture_output=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}, timeout=120,
    )  # fmt: skip
    version, asked, (tokens, embedded, cost) = json.loads(done.stdout)
    assert version.partition(".")[0] == ("2" if packages else "3")
    assert [unquote(query) for query in asked] == queries
    (used,) = tokens["data"][0]["results"]
    assert (used["model"], used["project_id"], used["input_tokens"]) == ("m1", "proj-a", 1_000_000)
    assert tokens["has_more"] is True
    assert embedded["data"][0]["results"][0]["num_model_requests"] == 2
    assert cost["data"][0]["results"][0]["amount"]["currency"] == "eur"


@pytest.mark.parametrize("text", ["m1", "m1=2", "m1=a/b", "=1/2", "m1=-1/2", "m1=nan/1"])
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MODEL=INPUT/OUTPUT"):
        price_of(text)


def test_the_first_price_that_suits_holds() -> None:
    prices = [price_of("a[1]=1/1"), price_of("ft:*=2/2"), price_of("*=3/3")]
    assert [price_for(name, prices).input for name in ("a[1]", "ft:x=y:z", "b")] == [1, 2, 3]  # type: ignore[union-attr]
    assert price_for("x", prices[:2]) is None
