"""Traces: what is in that of a request and of a job, and that neither depends on who receives them."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fake_engine import engine_at, gateway_for, stream
from otlp import receiver, tree
from rows import Publish, create_job
from tunewright import tracing
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Base, Settings, child_environment, embedded_base_path
from tunewright.engine.command import EngineOptions, engine_command, tracing_environment
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.kinds import JobError
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.job_traces import JobTraces
from tunewright.scheduler.processes import Exit
from tunewright.store.records import Engine
from tunewright.store.states import JobPhase, JobState, Residency
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

CHAT, SHA, TUNED = "/v1/chat/completions", "a" * 64, "ft:tiny::1"
CLIENTS = f"00-{'c' * 32}-{'d' * 16}-01"
TOKENS = [{"choices": [{"delta": {"content": word}}]} for word in ("", "a", "b")]


class Traced:
    """The spans of this process."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracing.start("http://nobody", "api", self._exporter)

    def spans(self) -> Any:
        tracing.stop(60)
        return self._exporter.get_finished_spans()


@pytest.fixture
def traced() -> Iterator[Traced]:
    yield Traced()
    tracing.stop(0)


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        events = [f"data: {json.dumps(one)}\n\n".encode() for one in TOKENS]
        return await stream(request, *events, b"data: [DONE]\n\n")
    return web.json_response({"model": body["model"]})


async def ask(
    store: Store, data: Workspace, engine: Engine, body: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[httpx.Response, list[str | None]]:
    """The api's answer, and the header `traceparent` of each request that the engine got."""
    seen: list[str | None] = []

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        seen.append(request.headers.get("traceparent"))
        return await answer(request, body)

    async def load(operation: dict[str, Any]) -> dict[str, Any]:
        store.engines.set_residency(engine, SHA, Residency.LOADED)
        return {"state": "loaded"}

    server, spec = build(Settings(data_dir=data.path), store)
    spec.gateway = gateway_for(store, load=load)
    server.app.state.context = ServiceContext(Settings(data_dir=data.path), store, data, spec.control)
    transport = httpx.ASGITransport(server.app, client=("127.0.0.1", 1))
    assert engine.socket is not None
    async with (
        engine_at(Path(engine.socket), handler),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
    ):
        got = await client.post(CHAT, json={"messages": [], **body}, headers=headers, timeout=60)
    await spec.gateway.close()
    return got, seen


async def test_a_request_is_one_trace_from_the_client_to_the_engine(
    store: Store, data: Workspace, engine: Engine, publish_model: Publish, traced: Traced
) -> None:
    publish_model({"desired": "unloaded"})
    headers = {"traceparent": CLIENTS, "tracestate": "a=b", "x-request-id": "mine-1"}
    got, seen = await ask(store, data, engine, {"model": TUNED, "stream": True}, headers)
    assert got.status_code == 200, got.text
    spans = traced.spans()
    by_name = {span.name: span for span in spans}
    root = f"POST {CHAT}"
    assert tree(spans) == {root: None, "adapter load": root, "admission": root, "engine": root}
    assert {f"{span.context.trace_id:032x}" for span in spans} == {"c" * 32}
    assert f"{by_name[root].parent.span_id:016x}" == "d" * 16, "the client's span is above"
    assert seen == [f"00-{'c' * 32}-{by_name['engine'].context.span_id:016x}-01"], (
        "the engine's are below ours"
    )
    told = by_name[root].attributes
    assert told["http.route"] == CHAT
    assert told["http.response.status_code"] == 200
    assert (told["gen_ai.response.model"], told["tunewright.request_id"]) == (TUNED, "mine-1")
    assert [event.name for event in by_name["engine"].events] == ["first token"]
    assert by_name[root].start_time <= by_name["engine"].start_time <= by_name["engine"].end_time
    assert by_name["engine"].end_time <= by_name[root].end_time


async def test_a_request_without_a_trace_begins_one_and_a_failure_is_told_by_its_code(
    store: Store, data: Workspace, engine: Engine, traced: Traced
) -> None:
    got, _ = await ask(store, data, engine, {"model": "my secret"})
    assert got.status_code == 404
    (span,) = traced.spans()
    assert span.parent is None
    assert span.attributes["error.type"] == "model_not_found"
    assert "secret" not in span.to_json(), "texts of requests are in no span"


async def test_what_the_client_does_not_sample_is_not_sampled_by_the_engine(
    store: Store, data: Workspace, engine: Engine, traced: Traced
) -> None:
    _, seen = await ask(store, data, engine, {"model": "tiny"}, {"traceparent": CLIENTS[:-1] + "0"})
    assert [header and header[-3:] for header in seen] == ["-00"]
    assert traced.spans() == ()


async def test_a_wrong_traceparent_is_as_none(
    store: Store, data: Workspace, engine: Engine, traced: Traced
) -> None:
    got, seen = await ask(store, data, engine, {"model": "tiny"}, {"traceparent": '00-zz-"'})
    assert got.status_code == 200
    assert len(traced.spans()) == 3
    assert seen[0] is not None


async def test_without_tracing_the_engine_gets_no_header(
    store: Store, data: Workspace, engine: Engine
) -> None:
    got, seen = await ask(store, data, engine, {"model": "tiny"}, {"traceparent": CLIENTS})
    assert (got.status_code, seen) == (200, [None])


def test_off_nothing_of_the_package_is_imported() -> None:
    program = (
        "import sys; from tunewright import serve, tracing; import tunewright.api.http.process;"
        "import tunewright.scheduler.main; tracing.start(None, 'api');"
        "assert not tracing.span('x').__enter__() and not tracing.current() and tracing.job('ftjob-1') is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_receiver_that_hangs_costs_spans_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    with receiver() as (found, address):
        found.answers.clear()
        tracing.start(address + "/", "api")
        for number in range(10_000):
            with tracing.request("GET", {}, {"number": number}):
                pass
        assert found.asked.wait(60)
        assert not found.spans, "it hangs"
        began = time.monotonic()
        tracing.stop(0.2)
        assert time.monotonic() - began < 9, "an export would wait for 10 s"
        found.answers.set()
        deadline = time.monotonic() + 60
        while not found.spans and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 0 < len(found.spans) <= 2048 + 512, "the queue, and the batch that was on its way"
        assert found.headers[0]["x-key"] == "k"
        assert found.services == {"ours"}


def test_a_job_is_one_trace_linked_to_its_request(store: Store, data: Workspace, traced: Traced) -> None:
    with tracing.request("POST", {}, {}) as asked:
        job = create_job(store, base="tiny")
        JobFolder(data.job(job.id)).write_trace(asked.headers())
    traces = JobTraces(store, data)
    traces.tick()
    store.jobs.mark_valid(job.id, None, "Files validated", ())
    traces.tick()
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    traces.started(claimed, 1)
    traces.tick()
    traces.exited(claimed, Exit(-9))
    traces.started(claimed, 2)
    traces.exited(claimed, Exit(0))
    for phase in (JobPhase.PUBLISH, JobPhase.CHECK):
        store.jobs.set_phase(job.id, phase)
        traces.tick()
    store.jobs.fail(job.id, JobError(code="parity_failed", message="my secret"))
    traces.tick()
    spans = traced.spans()
    request, *parts, whole = spans
    assert [span.name for span in parts] == [
        "prepare",
        "queued",
        "attempt",
        "attempt",
        "run",
        "publish",
        "check",
    ]
    assert whole.name == "job"
    assert {span.context.trace_id for span in (*parts, whole)} == {whole.context.trace_id}
    assert whole.links[0].context.span_id == request.context.span_id
    assert tree(spans) == {
        "POST": None, "job": None, "attempt": "run",
        **dict.fromkeys(("prepare", "queued", "run", "publish", "check"), "job"),
    }  # fmt: skip
    first, second = (span for span in parts if span.name == "attempt")
    assert first.attributes["tunewright.ended_with"] == "signal 9"
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert whole.attributes["error.type"] == "parity_failed"
    assert whole.attributes["tunewright.attempts"] == 2
    assert "secret" not in whole.to_json()
    times = [(span.start_time, span.end_time) for span in parts if span.name != "attempt"]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), times
    assert whole.start_time <= times[0][0]
    assert times[-1][1] <= whole.end_time


def test_a_scheduler_that_is_started_again_goes_on_with_the_trace(
    store: Store, data: Workspace, traced: Traced
) -> None:
    job = create_job(store, base="tiny", state=JobState.RUNNING)
    for _ in range(2):
        traces = JobTraces(store, data)
        traces.tick()
        traces.stop()
    traces = JobTraces(store, data)
    traces.tick()
    store.jobs.cancel(job.id)
    traces.tick()
    *parts, whole = traced.spans()
    assert {span.parent.span_id for span in parts} == {whole.context.span_id}
    assert "run" in [span.name for span in parts]


def test_a_job_that_is_deleted_meanwhile_is_no_error(store: Store, data: Workspace, traced: Traced) -> None:
    traces = JobTraces(store, data)
    job = create_job(store, base="tiny")
    traces.tick()
    store.jobs.cancel(job.id)
    assert store.jobs.delete(job.id)
    traces.tick()
    assert [span.name for span in traced.spans()] == ["prepare"]


def test_vllm_sends_its_spans_to_the_same_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_info = inspect_base(Base("tiny", str(embedded_base_path())), "0" * 32)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k")
    on, off = Settings(otlp_endpoint="http://c:4318"), Settings()
    options = EngineOptions("cpu", kv_cache_memory=1)
    command = engine_command(on, base_info, tmp_path / "s", options, trust_remote_code=False)
    at = command.index("--otlp-traces-endpoint")
    assert command[at + 1] == "http://c:4318/v1/traces"
    environment = child_environment(tracing_environment(on))
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert environment["OTEL_EXPORTER_OTLP_HEADERS"] == "x-key=k"
    assert "--otlp-traces-endpoint" not in engine_command(
        off, base_info, tmp_path / "s", options, trust_remote_code=False
    )
    assert not any(name.startswith("OTEL") for name in child_environment(tracing_environment(off)))


async def test_parts_of_other_requests_do_not_mix(traced: Traced) -> None:
    async def one(name: str) -> None:
        with tracing.request(name, {}, {}):
            await asyncio.sleep(0)
            with tracing.span(f"part of {name}"):
                await asyncio.sleep(0)

    await asyncio.gather(*(one(name) for name in "abc"))
    with tracing.span("of nothing"):
        pass
    assert tree(traced.spans()) == dict.fromkeys("abc") | {f"part of {name}": name for name in "abc"}
