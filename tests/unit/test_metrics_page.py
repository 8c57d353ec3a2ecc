"""GET /metrics: what it tells, to whom, in which form, and that nothing that hangs holds it up."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families as parse_text
from sqlalchemy import update
from starlette.testclient import TestClient
from tests.unit.test_api import Make, api, built, make, worker  # noqa: F401

from fake_engine import engine_at, gateway_for
from rows import PRODUCT, Publish, create_job, engine_info
from tunewright.api.gateway.turns import Caller
from tunewright.api.telemetry import engines, exporter, machine
from tunewright.api.telemetry.counts import Counts, HttpCounts
from tunewright.api.telemetry.exporter import Exporter
from tunewright.api.telemetry.source import Source
from tunewright.api.telemetry.state import step_seconds
from tunewright.config import Settings
from tunewright.engine.gpus import GpuState
from tunewright.engine.tally import Change, Tally
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Engine
from tunewright.store.states import EngineState, JobState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import alias_versions, jobs, models
from tunewright.supervisor.heartbeat import beat

KEY, OWN_KEY = "k" * 16, "m" * 16
GPU = GpuState(0, "GPU-1", "NVIDIA H200", 1000, 250, 0.5, 300.0, 61.0)
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base-1"} 3.0
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="aaa,bbb",waiting_lora_adapters=""} 1.7e9
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0"} 1.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="base-1"} 42.0
# HELP vllm:generation_tokens_created Number of generation tokens processed.
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="base-1"} 1.7e9
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="base-1"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="base-1"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="base-1"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="base-1"} 0.5
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9.0
"""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in parse_text(text):
        for one in family.samples:
            key = (one.name, frozenset(one.labels.items()))
            assert key not in found, f"{key} is told twice"
            found[key] = one.value
    return found


def value(found: Samples, name: str, /, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def of_name(found: Samples, name: str) -> list[dict[str, str]]:
    return [dict(labels) for key, labels in found if key == name]


def exporter_of(store: Store, data: Workspace, **options: Any) -> Exporter:
    options = {"most_names": 100, "keeps": 0.0, "page_keeps": 0.0, **options}
    return Exporter(gateway_for(store), HttpCounts(), store, data, **options)


async def told(made: Exporter) -> Samples:
    found = samples((await made.page()).decode())
    for http in made._gateway._engines.values():
        await http.close()  # it is opened again when it is needed
    return found


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine leaves nothing out."""
    for limit in ("_DATABASE_LIMIT", "_ENGINES_LIMIT", "_GPUS_LIMIT", "_PAGE_LIMIT"):
        monkeypatch.setattr(exporter, limit, 60.0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[GpuState]:
    found = [GPU]
    monkeypatch.setattr(machine, "gpu_states", lambda: found)
    return found


# who may read it


def with_exporter(client: TestClient, store: Store, data: Workspace) -> TestClient:
    context = client.app.state.context  # type: ignore[attr-defined]
    client.app.state.context = replace(context, exporter=exporter_of(store, data))  # type: ignore[attr-defined]
    return client


def status(client: TestClient, key: str | None = None) -> int:
    answer = client.get("/metrics", headers={"Authorization": f"Bearer {key}"} if key else {})
    if answer.status_code == 200:
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert samples(answer.text)
    return answer.status_code


def test_it_is_behind_the_key_as_other_routes(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = with_exporter(make(api_key=KEY), store, data)
    assert (status(client), status(client, "x" * 16), status(client, KEY)) == (401, 401, 200)


def test_a_key_of_its_own_opens_it_and_nothing_else(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = with_exporter(make(api_key=KEY, metrics_key=OWN_KEY), store, data)
    assert (status(client), status(client, KEY), status(client, OWN_KEY)) == (401, 200, 200)
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {OWN_KEY}"}).status_code == 401
    alone = with_exporter(make(metrics_key=OWN_KEY), store, data)
    assert (status(alone), status(alone, OWN_KEY)) == (401, 200)
    assert alone.get("/v1/models").status_code == 200


def test_it_can_be_open_to_all(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = with_exporter(make(api_key=KEY, metrics="open"), store, data)
    assert (status(client), client.get("/v1/models").status_code) == (200, 401)


def test_it_can_be_off(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = make(metrics="off")  # whose context has no exporter
    answer = client.get("/metrics")
    assert answer.status_code == 404
    assert "--metrics" in answer.json()["error"]["message"]


def test_without_a_key_another_sites_page_gets_nothing(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = with_exporter(make(), store, data)
    assert status(client) == 200
    assert client.get("/metrics", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("metrics", ["off", "open"])
def test_a_key_that_nobody_is_asked_for_is_refused(metrics: str) -> None:
    with pytest.raises(ValueError, match="leave one out"):
        Settings(metrics=metrics, metrics_key=OWN_KEY)
    with pytest.raises(ValueError, match="metrics key has 3 characters"):
        Settings(metrics_key="abc")


# its form


@pytest.mark.anyio
async def test_the_text_can_be_read_and_follows_the_conventions(
    store: Store, data: Workspace, engine: Engine, gpus: list[GpuState]
) -> None:
    create_job(store, state=JobState.RUNNING, progress={"step": 3, "total_steps": 9, "train_loss": 1.5})
    made = exporter_of(store, data)
    await filled(made)
    page = await made.page()
    for family in parse_text(page.decode()):
        assert family.documentation.strip(), f"{family.name} has no HELP"
        if not family.name.startswith("tunewright_"):
            continue
        assert re.fullmatch(r"tunewright_[a-z0-9]+(_[a-z0-9]+)*", family.name)
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent|minutes|hours)\b", family.name), "base units"
        if family.type == "counter":
            assert all(one.name.endswith("_total") for one in family.samples), family.name
        else:
            assert not family.name.endswith("_total"), f"{family.name} is a {family.type}"
        assert family.type != "histogram" or family.name.endswith("_seconds")
    assert samples(page.decode())
    await made._gateway.close()


async def filled(made: Exporter) -> None:
    """Some requests."""
    counts = made._gateway.counts
    generation = counts.begin("/v1/completions")
    generation.named("tiny", "")
    for _ in range(3):
        generation.part(b'data: {"id":"1"}\n\n')
    generation.end(200)
    made._http.observe("GET", "/v1/models/{name}", 200, 0.1)
    made._http.observe("BREW", "", 404, 0.1)


# what it tells


@pytest.mark.anyio
async def test_requests_are_told_by_model_and_route(store: Store, data: Workspace) -> None:
    made = exporter_of(store, data)
    await filled(made)
    found = await told(made)
    of = {"model": "tiny", "alias": ""}
    assert value(found, "tunewright_requests_total", **of, route="/v1/completions", code="200") == 1
    assert value(found, "tunewright_generated_tokens_total", **of) == 3
    assert value(found, "tunewright_time_to_first_token_seconds_count", **of) == 1
    assert value(found, "tunewright_time_between_tokens_seconds_count", **of) == 2
    assert value(found, "tunewright_time_between_tokens_seconds_bucket", **of, le="+Inf") == 2
    assert (
        value(found, "tunewright_http_requests_total", method="GET", route="/v1/models/{name}", code="200")
        == 1
    )
    assert value(found, "tunewright_http_requests_total", method="", route="", code="404") == 1


def test_http_requests_are_counted_by_their_route(make: Make, store: Store, data: Workspace) -> None:  # noqa: F811
    client = make(api_key=KEY)
    http = HttpCounts()
    for layer in walk(client.app.middleware_stack or client.app.build_middleware_stack()):  # type: ignore[attr-defined]
        if hasattr(layer, "_counts"):
            layer._counts = http
    headers = {"Authorization": f"Bearer {KEY}"}
    client.get("/v1/models/secret-name", headers=headers)
    client.get("/v1/secret-path", headers=headers)
    client.get("/v1/files")
    client.post("/v1/chat/completions", json={"model": "secret"}, headers=headers)
    told = {key: number for key, number in http.requests.items() if number}
    assert not any("secret" in route for _, route, _ in told)
    assert told[("GET", "", 404)] == 1
    assert told[("GET", "", 401)] == 1, "refused before its route is looked for"
    assert told[("POST", "/v1/chat/completions", 404)] == 1
    assert [status for method, route, status in told if route.startswith("/v1/models/")] == [404]


def walk(layer: Any) -> Any:
    while layer is not None:
        yield layer
        layer = getattr(layer, "app", getattr(layer, "_app", None))


@pytest.mark.anyio
@pytest.mark.each_database
async def test_jobs_are_told_by_kind_and_state(store: Store, data: Workspace) -> None:
    create_job(store, state=JobState.QUEUED, created_at=5.0)
    create_job(store, state=JobState.QUEUED, created_at=9.0)
    create_job(store, state=JobState.FAILED, error={"code": "out_of_memory", "message": "x"})
    found = await told(exporter_of(store, data))
    assert value(found, "tunewright_jobs", kind="export", state="failed") == 0, (
        "a growth from nothing can be seen"
    )
    assert value(found, "tunewright_jobs", kind="fine_tuning", state="queued") == 2
    assert value(found, "tunewright_jobs", kind="fine_tuning", state="failed") == 1
    assert value(found, "tunewright_jobs_failed", kind="fine_tuning", code="out_of_memory") == 1
    assert value(found, "tunewright_jobs_oldest_queued_timestamp_seconds", kind="fine_tuning") == 5.0
    assert value(found, "tunewright_files") == 1


@pytest.mark.anyio
async def test_a_running_job_tells_its_loss_and_the_time_of_a_step(store: Store, data: Workspace) -> None:
    progress = {
        "step": 3, "total_steps": 9, "train_loss": 1.5, "eta_seconds": 60.0, "learning_rate": None, "valid_loss": 2.5,
        "tokens_per_second": 70.5, "memory_bytes": 1024, "grad_norm": 0.5,
    }  # fmt: skip
    job = create_job(store, state=JobState.RUNNING, progress=progress)
    create_job(store, state=JobState.SUCCEEDED, progress=progress)
    folder = JobFolder(data.job(job.id))
    folder.path.mkdir(parents=True)
    write_steps(folder, [(1, 10.0), (2, 11.0), (3, 13.0)])
    folder.beat()
    found = await told(exporter_of(store, data))
    of = {"job_id": job.id, "kind": "fine_tuning", "base": "tiny"}
    for name, expected in {
        "step": 3, "steps": 9, "train_loss": 1.5, "valid_loss": 2.5, "remaining_seconds": 60.0, "attempts": 0,
        "tokens_per_second": 70.5, "memory_bytes": 1024, "gradient_norm": 0.5, "step_duration_seconds": 1.5,
        "learning_rate": None,
    }.items():  # fmt: skip
        assert value(found, f"tunewright_job_{name}", **of) == expected, name
    assert time.time() - (value(found, "tunewright_job_last_progress_timestamp_seconds", **of) or 0) < 60
    assert of_name(found, "tunewright_job_step") == [of], "jobs that have ended are not told"


def write_steps(folder: JobFolder, steps: list[tuple[int, float]]) -> None:
    log = EventLog(folder)
    for step, _ in steps:
        log.metrics("x", {"step": step})
    at = dict(steps)
    lines = [json.loads(line) for line in folder.events_file.read_text().splitlines() if line]
    text = [json.dumps({**line, "created_at": at[line["data"]["step"]]}) + "\n" for line in lines]
    folder.events_file.write_text("".join(text))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], None),
        ([(1, 5.0)], None),
        ([(1, 5.0), (3, 9.0)], 2.0),
        ([(1, 1.0), (2, 2.0), (1, 50.0), (2, 53.0)], 3.0),  # resumed
        ([(n, float(n**2)) for n in range(1, 101)], (100**2 - 80**2) / 20),
    ],
)
def test_the_time_of_a_step_is_that_of_the_last_steps_of_one_process(
    tmp_path: Path, steps: list[tuple[int, float]], expected: float | None
) -> None:
    folder = JobFolder(tmp_path)
    events = [{"type": "metrics", "created_at": at, "data": {"step": step}} for step, at in steps]
    events.insert(len(events) // 2, {"type": "message", "data": None})
    folder.events_file.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"type": "metr')
    assert step_seconds(folder) == expected


def test_only_the_end_of_a_long_file_of_events_is_read(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    log = EventLog(folder)
    for step in range(1, 2001):
        log.metrics("x" * 100, {"step": step})
    found = folder.last_events(2**16)
    assert 200 < len(found) < 600
    assert [event["data"]["step"] for event in found] == list(range(2001 - len(found), 2001))


@pytest.mark.anyio
async def test_adapters_aliases_and_engines_are_told(
    store: Store, data: Workspace, engine: Engine, publish_model: Publish
) -> None:
    publish_model({}, {"name": "ft:tiny::2", "sha256": "c" * 64, "checkpoint_step": None})
    store.engines.set_residency(engine, "a" * 64, Residency.LOADED)
    store.aliases.put("bot", [AliasTarget("ft:tiny::1", 1)])
    store.aliases.put("bot", [AliasTarget("ft:tiny::2", 3)])
    store.aliases.rollback("bot", 1, who="guard", because="slow", expected_version=2)
    tally = Tally(data.tally)
    await tally.add("tiny", Change.LOADED, 0.5)
    await tally.add("tiny", Change.LOADED, 1.0)
    await tally.add("tiny", Change.EVICTED)
    beat(data.heartbeat("scheduler"))
    found = await told(exporter_of(store, data))
    assert value(found, "tunewright_models", kind="adapter", base="tiny", state="ready") == 2
    assert value(found, "tunewright_adapters_resident", engine="tiny", state="loaded") == 1
    assert value(found, "tunewright_adapter_changes_total", engine="tiny", change="loaded") == 2
    assert value(found, "tunewright_adapter_changes_total", engine="tiny", change="evicted") == 1
    assert value(found, "tunewright_adapter_changes_total", engine="tiny", change="load_failed") == 0
    assert value(found, "tunewright_adapter_load_seconds_total", engine="tiny") == 1.5
    assert value(found, "tunewright_alias_version", alias="bot") == 3
    assert value(found, "tunewright_alias_target_weight", alias="bot", model="ft:tiny::1") == 1
    assert value(found, "tunewright_alias_changes_total", alias="bot", change="set") == 2
    assert value(found, "tunewright_alias_changes_total", alias="bot", change="guard") == 1
    assert value(found, "tunewright_alias_changes_total", alias="bot", change="rollback") == 0
    assert value(found, "tunewright_parity_verdicts", verdict="fail") == 0
    assert value(found, "tunewright_export_gates", result="failed") == 0
    assert value(found, "tunewright_alias_gates_total", result="forced") == 0
    assert value(found, "tunewright_engine_state", engine="tiny", state="ready") == 1
    assert value(found, "tunewright_engine_state", engine="tiny", state="failed") == 0
    assert value(found, "tunewright_engine_starts_total", engine="tiny") == 1
    assert of_name(found, "tunewright_heartbeat_timestamp_seconds") == [{"process": "scheduler"}]


@pytest.mark.anyio
@pytest.mark.each_database
async def test_verdicts_and_gates_are_told(store: Store, data: Workspace) -> None:
    gates = [
        {"passed": True, "forced": False},
        {"passed": False, "forced": True},
        {"passed": False, "forced": False},
    ]
    for number, gate in enumerate([*gates, gates[0]]):
        made = create_job(store, state=JobState.FAILED, fingerprint=str(number))
        with store.database.begin() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == made.id)
                .values(kind="export", report={"gate": gate}, request={})
            )
    with store.database.begin() as connection:
        for number, verdict in enumerate(["pass", "pass", "fail", None]):
            parity = None if verdict is None else {"verdict": verdict}
            row = {
                **PRODUCT,
                "id": f"model-{number}",
                "name": f"m{number}",
                "created_at": 1.0,
                "parity": parity,
            }
            connection.execute(models.insert().values(**row))
        for number, forced in enumerate([True, False, False, None]):
            made_gate = None if forced is None else {"forced": forced}
            connection.execute(
                alias_versions.insert().values(
                    alias="bot", version=number, targets=[], at=1.0, why="x", gate=made_gate
                )
            )
    found = await told(exporter_of(store, data))
    assert [
        value(found, "tunewright_export_gates", result=one) for one in ("passed", "forced", "failed")
    ] == [2, 1, 1]
    assert [value(found, "tunewright_parity_verdicts", verdict=one) for one in ("pass", "fail")] == [2, 1]
    assert [value(found, "tunewright_alias_gates_total", result=one) for one in ("passed", "forced")] == [
        2,
        1,
    ]


@pytest.mark.anyio
async def test_queues_are_told(store: Store, data: Workspace, engine: Engine) -> None:
    made = exporter_of(store, data)
    with ExitStack() as held:
        target = await made._gateway.router.find("tiny", held, project="default")
        assert target.line is not None
        target.line.places = 1
        await target.line.take(Caller("a"), 1)
        waiting = [asyncio.create_task(target.line.take(Caller("b"), 1)) for _ in range(2)]
        await asyncio.sleep(0)
        found = await told(made)
        for task in waiting:
            task.cancel()
    of = {"engine": "tiny"}
    assert value(found, "tunewright_engine_requests_in_flight", **of) == 1
    assert value(found, "tunewright_engine_requests_waiting", **of) == 2
    assert value(found, "tunewright_engine_sequences_running", **of) == 1
    assert value(found, "tunewright_engine_sequence_places", **of) == 1


@pytest.mark.anyio
async def test_gpus_and_the_disk_are_told(store: Store, data: Workspace, gpus: list[GpuState]) -> None:
    gpus.append(replace(GPU, index=1, uuid="GPU-2", utilization=None, watts=None, celsius=None))
    found = await told(exporter_of(store, data))
    first = {"gpu": "0", "uuid": "GPU-1", "name": "NVIDIA H200"}
    assert value(found, "tunewright_gpu_memory_bytes", **first) == 1000
    assert value(found, "tunewright_gpu_memory_used_bytes", **first) == 250
    assert value(found, "tunewright_gpu_utilization_ratio", **first) == 0.5
    assert value(found, "tunewright_gpu_power_watts", **first) == 300
    assert value(found, "tunewright_gpu_temperature_celsius", **first) == 61
    assert [one["gpu"] for one in of_name(found, "tunewright_gpu_utilization_ratio")] == ["0"], (
        "what is not known"
    )
    assert (value(found, "tunewright_disk_free_bytes") or 0) > 0


# the engines' own metrics


def tells(text: str) -> Any:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert (request.method, request.path) == ("GET", "/metrics")
        return web.Response(text=text)

    return handler


@pytest.mark.anyio
async def test_vllms_metrics_have_the_names_that_clients_know(
    store: Store, data: Workspace, socket: Path, engine: Engine
) -> None:
    store.engines.declare(["tiny", "other"])
    second = socket.with_name("second")
    store.engines.starting("other", str(second), engine_info(internal_name="base-2"))
    store.engines.set_state("other", EngineState.READY)
    other = VLLM.replace("base-1", "base-2").replace("42.0", "7.0")
    async with engine_at(socket, tells(VLLM)), engine_at(second, tells(other)):
        made = exporter_of(store, data)
        page = await made.page()
        await made._gateway.close()
    text = page.decode()
    found = samples(text)
    for name, number in (("tiny", 42), ("other", 7)):
        assert value(found, "vllm:generation_tokens_total", engine="0", model_name=name) == number
        assert value(found, "vllm:num_requests_running", engine="0", model_name=name) == 3
        assert value(found, "vllm:cache_config_info", block_size="16", engine="0", model_name=name) == 1
        assert value(found, "tunewright_engine_metrics_up", engine=name) == 1
    bucket = "vllm:time_to_first_token_seconds_bucket"
    assert value(found, bucket, engine="0", model_name="tiny", le="0.1") == 1
    assert text.count("# TYPE vllm:generation_tokens_total counter") == 1, "a family is told in one piece"
    assert "base-1" not in text
    assert "aaa,bbb" not in text
    assert "_created" not in text
    assert 9.0 not in [number for (name, _), number in found.items() if name.startswith("python_gc")], (
        "not vLLM's"
    )


async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


async def break_off(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="vllm:x{ 1 2 3\n# TYPE vllm:y nonsense more\n")


async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=500, text="no")


@pytest.mark.anyio
@pytest.mark.parametrize("handler", [hang, break_off, fail])
async def test_an_engine_that_does_not_tell_costs_a_limited_time_and_nothing_else(
    store: Store, data: Workspace, socket: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, handler: Any
) -> None:
    monkeypatch.setattr(engines, "TIME_LIMIT", 0.2)
    async with engine_at(socket, handler):
        made = exporter_of(store, data)
        await filled(made)
        async with asyncio.timeout(30):
            found = await told(made)
        await made._gateway.close()
    assert value(found, "tunewright_engine_metrics_up", engine="tiny") == 0
    assert value(found, "tunewright_generated_tokens_total", model="tiny", alias="") == 3
    assert value(found, "tunewright_collector_success", part="engines") == 1


@pytest.mark.anyio
@pytest.mark.parametrize("part", ["gpus", "database"])
async def test_a_driver_or_a_database_that_hangs_costs_its_own_metrics(
    store: Store, data: Workspace, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    calls = []

    def stuck(*_: Any) -> Any:
        calls.append(1)
        time.sleep(1.5)

    monkeypatch.setattr(
        *((machine, "read_gpus") if part == "gpus" else (exporter.state, "read_state")), stuck
    )
    for limit in ("_DATABASE_LIMIT", "_ENGINES_LIMIT", "_GPUS_LIMIT"):
        monkeypatch.setattr(exporter, limit, 0.1)
    made = exporter_of(store, data)
    await filled(made)
    for _ in range(3):
        found = await told(made)
        assert value(found, "tunewright_collector_success", part=part) == 0
        assert value(found, "tunewright_generated_tokens_total", model="tiny", alias="") == 3
    assert len(calls) == 1, "no second call is begun while one hangs"


# parts


@pytest.mark.anyio
async def test_what_takes_a_while_is_found_out_once_and_kept() -> None:
    calls = 0

    async def read() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return calls

    source = Source(read, 0.2)
    assert await asyncio.gather(*(source.get(1) for _ in range(5))) == [1] * 5
    assert await source.get(1) == 1
    await asyncio.sleep(0.25)
    assert await source.get(1) == 2


@pytest.mark.anyio
async def test_what_failed_is_tried_again_at_once() -> None:
    answers = iter([ValueError("no"), 2])

    async def read() -> int:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    source = Source(read, 60)
    with pytest.raises(ValueError, match="no"):
        await source.get(1)
    assert await source.get(1) == 2


@pytest.mark.anyio
async def test_the_numbers_of_adapters_go_on_after_a_restart_of_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "adapters.json"
    first = Tally(path)
    await asyncio.gather(*(first.add("tiny", Change.LOADED, 0.5) for _ in range(20)))
    second = Tally(path)
    await second.add("tiny", Change.EVICTED)
    assert json.loads(path.read_text()) == {"tiny": {"loaded": 20, "load_seconds": 10.0, "evicted": 1}}
    path.write_text("{ damaged")
    await Tally(path).add("tiny", Change.LOADED)
    assert json.loads(path.read_text()) == {"tiny": {"loaded": 1}}
    unwritable = Tally(tmp_path / "missing" / "adapters.json")
    await unwritable.add("tiny", Change.LOADED)  # does not fail


def test_labels_are_bounded_whatever_is_asked() -> None:
    counts = Counts(5)
    for number in range(1000):
        generation = counts.begin("/v1/completions")
        generation.named(f"model-{number}", f"alias-{number % 7}")
        generation.end(200)
    assert len(counts.copy()) == 6
