"""Deployments in the store, over HTTP and on a request's way: what is refused, and what disturbs no other request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import psutil
import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from adapters import adapter_files
from fake_engine import gateway_for
from races import at_once
from rows import PRODUCT, create_job, engine_info
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.engine.command import EngineOptions
from tunewright.engine.leases import ENGINE, Drain
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound
from tunewright.kinds.fine_tuning.kind import request_of
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Deployment
from tunewright.store.states import DeploymentState, EngineState, JobState, ModelState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import models

FULL, ADAPTER, BASE = "ft:tiny:full:1", "ft:ft:tiny:full:1::2", "tiny"
OPTIONS = asdict(EngineOptions("cpu", kv_cache_memory=1, weights_bytes=1))
CREATE = "/v1/deployments"


def register(store: Store, name: str, **changes: Any) -> None:
    source = {"lineage": {}, "source": "job", "id": f"model-{name}", "job_id": None}
    store.models.register({**PRODUCT, **source, "name": name, **changes})


def full(store: Store, name: str = FULL, **changes: Any) -> str:
    register(store, name, kind="full", method="full", sha256="c" * 64, desired="unloaded", **changes)
    return name


def deploy(store: Store, model: str = FULL, **asked: Any) -> Deployment:
    return store.deployments.create(model, asked, lambda _: OPTIONS)


def ready(store: Store, deployment: Deployment, socket: str = "/tmp/s", **info: Any) -> None:
    started = engine_info(deployment=deployment.id, fingerprint="c" * 64, **info)
    store.engines.starting(deployment.model, socket, started)
    store.engines.set_state(deployment.model, EngineState.READY)


def state(store: Store, model: str = FULL) -> EngineState | None:
    engine = store.engines.get(model)
    return engine.state if engine else None


# the store


@pytest.fixture
def each(store: Store) -> Store:
    store.engines.declare([BASE])
    full(store)
    return store


@pytest.mark.each_database
def test_a_deployment_comes_with_its_engine(each: Store) -> None:
    made = deploy(each, max_loras=2)
    assert (made.model, made.asked, made.options) == (FULL, {"max_loras": 2}, OPTIONS)
    assert (made.state, made.failures, made.was_ready) == (DeploymentState.ACTIVE, 0, False)
    for name in (made.id, FULL):
        found = each.deployments.get(name)
        assert found is not None
        assert found[0] == made
        assert found[1] == each.engines.get(FULL)
    assert state(each) is EngineState.STOPPED
    assert each.deployments.get("none") is None


@pytest.mark.each_database
def test_the_same_request_gives_the_same_deployment_and_another_is_refused(each: Store) -> None:
    made = deploy(each, max_loras=2)
    assert deploy(each, max_loras=2) == made
    with pytest.raises(InvalidRequest, match=r"deployed already, as deploy-.*, with max_loras 2") as refused:
        deploy(each)
    assert (refused.value.code, refused.value.param) == ("already_deployed", "engine")
    assert len(each.deployments.all()) == 1


@pytest.mark.each_database
def test_many_at_once_make_one_deployment_and_share_one_room(each: Store) -> None:
    """Each is placed with regard to all others: five want 0.3 of 0.95, so three get it."""
    for number in range(5):
        full(each, f"m{number}")

    def place(deployed: Any) -> dict[str, Any]:
        time.sleep(0.01)  # time for others, if they could
        if len(deployed) >= 3:
            raise InvalidRequest("full")
        return OPTIONS

    def create(number: int) -> str:
        try:
            return each.deployments.create(f"m{number % 5}", {}, place).id
        except InvalidRequest:
            return "refused"

    made = at_once(10, create)
    assert len({id for id in made if id != "refused"}) == 3
    assert len(each.deployments.all()) == 3


@pytest.mark.each_database
def test_bases_aliases_and_deleted_models_are_not_deployed(each: Store) -> None:
    with pytest.raises(InvalidRequest, match="served already"):
        deploy(each, BASE)
    each.aliases.put("bot", [AliasTarget(BASE)])
    with pytest.raises(InvalidRequest, match="name of an alias"):
        deploy(each, "bot")
    with pytest.raises(NotFound, match="deleted"):
        each.deployments.create("gone", {}, lambda _: OPTIONS, sha256="d" * 64)
    assert not each.deployments.all()


@pytest.mark.each_database
def test_what_was_refused_a_place_leaves_nothing(each: Store) -> None:
    def refuse(_: Any) -> dict[str, Any]:
        raise InvalidRequest("no room")

    with pytest.raises(InvalidRequest, match="no room"):
        each.deployments.create(FULL, {}, refuse)
    assert (each.deployments.all(), each.engines.get(FULL)) == ([], None)


@pytest.mark.each_database
def test_declaring_the_bases_keeps_the_deployments(each: Store) -> None:
    made = deploy(each)
    each.engines.declare([BASE])
    assert state(each) is EngineState.STOPPED
    each.engines.declare([BASE, FULL])
    assert each.deployments.get(made.id) is None, "it is a base now"
    assert state(each) is EngineState.STOPPED


@pytest.mark.each_database
def test_a_draining_engine_stays_so_until_it_is_gone(each: Store) -> None:
    made = deploy(each)
    ready(each, made)
    each.deployments.drain(made.id, 7.0)
    for change in (EngineState.READY, EngineState.STOPPED, EngineState.BACKOFF):
        each.engines.set_state(FULL, change)
        assert state(each) is EngineState.DRAINING
    assert each.engines.starting(FULL, "/s", engine_info()) is None
    each.deployments.drain(made.id, 99.0)
    found = each.deployments.get(made.id)
    assert found is not None
    assert (found[0].is_draining, found[0].drain_until) == (True, 7.0), "as it was asked for first"
    with pytest.raises(EngineUnavailable, match="being taken down") as refused:
        deploy(each)
    assert refused.value.retry_after
    each.engines.forget()
    each.engines.declare([BASE])
    assert state(each) is EngineState.DRAINING, "also after a restore"
    each.deployments.remove(made.id)
    assert (state(each), each.deployments.all()) == (None, [])
    assert deploy(each).id != made.id


@pytest.mark.each_database
def test_what_it_held_goes_with_it(each: Store) -> None:
    made = deploy(each)
    ready(each, made)
    engine = each.engines.get(FULL)
    assert engine is not None
    each.engines.set_residency(engine, "a" * 64, Residency.LOADED, number=1)
    each.deployments.remove(made.id)
    assert each.engines.residents(engine) == {}


@pytest.mark.each_database
def test_an_alias_keeps_it_and_its_adapters(each: Store) -> None:
    register(each, ADAPTER, base=FULL)
    made = deploy(each)
    for name in (FULL, ADAPTER):
        each.aliases.put("bot", [AliasTarget(BASE), AliasTarget(name)])
        with pytest.raises(InvalidRequest, match="in use by aliases: bot") as refused:
            each.deployments.drain(made.id, 0.0)
        assert refused.value.code == "model_in_use"
        assert state(each) is EngineState.STOPPED
    each.aliases.put("other", [AliasTarget(ADAPTER)])
    each.deployments.drain(made.id, 0.0, force=True, who="ann")
    bot = each.aliases.get("bot")
    assert bot is not None
    assert [target.model for target in bot.targets] == [BASE]
    assert each.aliases.get("other") is None
    assert each.aliases.history("other")[0][0].who == "ann"
    with pytest.raises(InvalidRequest, match="The base of ft:ft:tiny"):
        each.aliases.put("bot", [AliasTarget(ADAPTER)])
    with pytest.raises(InvalidRequest, match="not deployed"):
        each.aliases.put("bot", [AliasTarget(FULL)])


@pytest.mark.each_database
def test_an_unfinished_job_keeps_it_also_by_force(each: Store) -> None:
    made = deploy(each)
    job = create_job(each, base=FULL, model=FULL)
    with pytest.raises(InvalidRequest, match=f"Job {job.id} needs {FULL}"):
        each.deployments.drain(made.id, 0.0, force=True)
    each.jobs.cancel(job.id)
    each.deployments.drain(made.id, 0.0)
    with pytest.raises(InvalidRequest, match="being taken down"):
        create_job(each, base=FULL, model=FULL, fingerprint="g")


@pytest.mark.each_database
def test_a_job_and_a_deletion_at_the_same_moment_do_not_both_win(each: Store) -> None:
    for number in range(8):
        made = deploy(each, full(each, f"m{number}"))

        def do(index: int, made: Deployment = made) -> bool:
            try:
                if index:
                    create_job(each, base=made.model, model=made.model, fingerprint=made.id)
                else:
                    each.deployments.drain(made.id, 0.0)
            except InvalidRequest:
                return False
            return True

        assert at_once(2, do).count(True) == 1


@pytest.mark.each_database
def test_a_deployed_model_is_not_deleted(each: Store) -> None:
    made = deploy(each)
    model = each.models.get(FULL)
    assert model is not None
    for force in (False, True):
        with pytest.raises(InvalidRequest, match=f"deployed as {made.id}"):
            each.models.delete(model, force=force)
    each.deployments.remove(made.id)
    assert each.models.delete(model)


@pytest.mark.each_database
def test_retention_keeps_a_deployed_checkpoint(each: Store) -> None:
    register(each, "ft:tiny::c", kind="full", checkpoint_step=1, sha256="e" * 64, desired="unloaded")
    assert [one.name for one in each.models.idle_checkpoints()] == ["ft:tiny::c"]
    deploy(each, "ft:tiny::c")
    assert each.models.idle_checkpoints() == []


@pytest.mark.each_database
def test_failures_are_counted_until_it_works_or_somebody_asks(each: Store) -> None:
    made = deploy(each)
    assert [each.deployments.count_failure(made.id) for _ in range(2)] == [1, 2]
    each.engines.set_state(FULL, EngineState.FAILED, reason="why")
    each.deployments.restart(made.id)
    engine = each.engines.get(FULL)
    assert engine is not None
    assert (engine.state, engine.reason) == (EngineState.STOPPED, None)
    assert each.deployments.count_failure(made.id) == 1
    each.deployments.is_ready(made.id, engine_info())
    found = each.deployments.get(made.id)
    assert found is not None
    assert (found[0].failures, found[0].was_ready) == (0, True)
    ready(each, made)
    each.deployments.restart(made.id)
    assert state(each) is EngineState.READY, "what runs is left alone"


@pytest.mark.each_database
def test_a_start_of_the_service_tries_all_again(each: Store) -> None:
    made = deploy(each)
    each.deployments.count_failure(made.id)
    each.engines.set_state(FULL, EngineState.FAILED, reason="why")
    each.deployments.start_anew()
    found = each.deployments.get(made.id)
    assert found is not None
    assert found[0].failures == 0
    assert state(each) is EngineState.STOPPED


# requests to deployments


@pytest.fixture
def deployment(store: Store) -> Deployment:
    store.engines.declare([BASE])
    full(store)
    made = deploy(store)
    ready(store, made)
    return made


@pytest.mark.anyio
async def test_a_request_finds_a_deployed_model_by_its_name(store: Store, deployment: Deployment) -> None:
    router = gateway_for(store).router
    with ExitStack() as held:
        target = await router.find(FULL, held, project="default")
    assert (target.socket, target.internal_name, target.public_name) == ("/tmp/s", "base-1", FULL)
    assert target.chat_template is None, "its folder has it"


@pytest.mark.anyio
async def test_a_request_holds_its_engine_from_the_first_one_on(
    store: Store, deployment: Deployment, data: Workspace
) -> None:
    """So does a request to an adapter; and an engine that is held cannot be drained."""
    register(store, ADAPTER, base=FULL)
    engine = store.engines.get(FULL)
    assert engine is not None
    store.engines.set_residency(engine, PRODUCT["sha256"], Residency.LOADED, number=1)
    drain = Drain(data.leases)

    router = gateway_for(store).router
    for name in (FULL, ADAPTER, FULL):
        with ExitStack() as held:
            await router.find(name, held, project="default")
            assert drain.try_unused(FULL, ENGINE) is None, name
            idle = drain.try_unused(FULL, PRODUCT["sha256"])
            assert (idle is None) is (name == ADAPTER)
            if idle is not None:
                idle.close()
        unused = drain.try_unused(FULL, ENGINE)
        assert unused is not None, name
        unused.close()


@pytest.mark.anyio
async def test_a_base_is_not_leased(store: Store, data: Workspace) -> None:
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/b", engine_info(internal_name="base-0"))
    store.engines.set_state(BASE, EngineState.READY)

    router = gateway_for(store).router
    with ExitStack() as held:
        await router.find(BASE, held, project="default")
        assert not list(data.leases.iterdir())


@pytest.mark.parametrize(
    ("now", "kind", "code", "message"),
    [
        (EngineState.STARTING, EngineUnavailable, "engine_unavailable", "not ready (starting)"),
        (EngineState.BACKOFF, EngineUnavailable, "engine_unavailable", "not ready (backoff: no room)"),
        (EngineState.FAILED, InvalidRequest, "deployment_failed", f"POST /v1/deployments/{FULL}/restart"),
        (EngineState.DRAINING, NotFound, "model_not_found", "being taken down"),
        (None, InvalidRequest, "model_not_served", "POST /v1/deployments"),
    ],
)
@pytest.mark.anyio
async def test_one_that_does_not_answer_says_why(
    store: Store,
    deployment: Deployment,
    now: EngineState | None,
    kind: type[Exception],
    code: str,
    message: str,
) -> None:
    reason = "no room" if now in (EngineState.BACKOFF, EngineState.FAILED) else None
    if now is None:
        store.deployments.remove(deployment.id)
    elif now is EngineState.DRAINING:
        store.deployments.drain(deployment.id, 0.0)
    else:
        store.engines.set_state(FULL, now, reason=reason)

    with ExitStack() as held, pytest.raises(kind) as refused:
        await gateway_for(store).router.find(FULL, held, project="default")
    error = refused.value
    assert isinstance(error, EngineUnavailable | InvalidRequest | NotFound)
    assert error.code == code
    assert message in error.message
    assert reason is None or reason in error.message
    assert (error.retry_after is not None) is (kind is EngineUnavailable)


def test_no_admission_slips_past_a_drain(store: Store, deployment: Deployment, data: Workspace) -> None:
    """Admitted requests are waited for; one that comes after the last of them is refused, and does not hang."""
    drain = Drain(data.leases)
    admitted = threading.Event()
    may_end = threading.Event()
    outcomes: list[str] = []

    def ask() -> None:
        async def run() -> None:
            router = gateway_for(store).router
            with ExitStack() as held:
                await router.find(FULL, held, project="default")
                admitted.set()
                await asyncio.to_thread(may_end.wait, 10)
                outcomes.append("finished")
            try:
                with ExitStack() as held:
                    await router.find(FULL, held, project="default")
                outcomes.append("admitted after the end")
            except NotFound:
                outcomes.append("refused")

        asyncio.run(run())

    thread = threading.Thread(target=ask)
    thread.start()
    assert admitted.wait(10)
    store.deployments.drain(deployment.id, time.time() + 60)
    assert drain.try_unused(FULL, ENGINE) is None
    may_end.set()
    thread.join(10)
    assert outcomes == ["finished", "refused"]
    unused = drain.try_unused(FULL, ENGINE)
    assert unused is not None
    unused.close()


# over HTTP


class Worker:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((operation["op"], operation["model"]))
        return {"state": operation["op"] + "ed"}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


Make = Callable[..., TestClient]


@pytest.fixture
def make(built: dict[str, Any], store: Store, data: Workspace) -> Make:
    def client(devices: list[str] | None = None, **options: Any) -> TestClient:
        copy = f"copy={embedded_base_path()}"
        settings = Settings(base=["tiny=/x"], deployable=[copy], data_dir=data.path, parity="off", **options)
        store.engines.declare([BASE])
        if not built:
            built["server"], _ = build(settings, store)
        there = tuple(devices or ["cpu"])
        built["server"].app.state.context = ServiceContext(
            settings, store, data, Worker().control, lambda: there
        )
        return TestClient(
            built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
        )

    return client


@pytest.fixture
def api(make: Make, store: Store) -> TestClient:
    full(store)
    return make()


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def create(api: TestClient, model: str = FULL, **engine: Any) -> dict[str, Any]:
    answer = api.post(CREATE, json={"model": model, "engine": engine})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_deployment_is_made_listed_and_shown(api: TestClient, store: Store, data: Workspace) -> None:
    made = create(api, kv_cache_memory="64MiB", device="auto")
    assert made["engine"] == {"kv_cache_memory": 64 * 2**20}, "what says nothing is not kept"
    assert (made["model"], made["state"], made["device"]) == (FULL, "starting", "cpu")
    assert made["options"]["kv_cache_memory"] == 64 * 2**20
    assert made["options"]["weights_bytes"] == PRODUCT["bytes"]
    assert (made["memory_bytes"], made["log_tail"], made["adapters"]) == (None, [], [])
    assert create(api, kv_cache_memory=64 * 2**20) == made
    assert error(api.post(CREATE, json={"model": FULL}))["code"] == "already_deployed"
    other = create(api, "copy")
    listed = api.get(CREATE).json()
    assert [one["id"] for one in listed["data"]] == [other["id"], made["id"]]
    assert (listed["data"][0]["log_tail"], listed["has_more"]) == (None, False)
    first = api.get(CREATE, params={"limit": 1}).json()
    assert first["has_more"]
    rest = api.get(CREATE, params={"limit": 1, "after": first["last_id"]}).json()
    assert [one["id"] for one in rest["data"]] == [made["id"]]
    (data.engine(FULL) / "engine.log").write_text("".join(f"line {number}\n" for number in range(100)))
    for name in (FULL, made["id"]):
        shown = api.get(f"{CREATE}/{name}").json()
        assert shown["log_tail"] == [f"line {number}" for number in range(60, 100)]
    assert api.get(f"{CREATE}/{FULL}/logs").text.count("\n") == 100
    assert api.get(f"{CREATE}/{FULL}/logs", params={"tail": 2}).text == "line 98\nline 99\n"
    assert api.get(f"{CREATE}/{other['id']}/logs").text == ""


def test_what_its_engine_holds_is_shown(api: TestClient, store: Store) -> None:
    create(api)
    found = store.deployments.get(FULL)
    assert found is not None
    ready(store, found[0], max_model_len=77)
    register(store, ADAPTER, base=FULL)
    register(store, "ft:tiny::elsewhere", base=BASE)
    engine = store.engines.get(FULL)
    assert engine is not None
    store.engines.set_residency(engine, PRODUCT["sha256"], Residency.LOADED, number=1)
    shown = api.get(f"{CREATE}/{FULL}").json()
    assert shown["adapters"] == [{"model": ADAPTER, "id": f"model-{ADAPTER}", "state": "loaded"}]
    assert (shown["state"], shown["max_model_len"]) == ("ready", 77)
    assert shown["started_at"] <= shown["ready_at"] if shown["ready_at"] else True


def test_models_show_their_deployments_state_once(api: TestClient, store: Store) -> None:
    def listed() -> dict[str, tuple[str, str]]:
        models = api.get("/v1/models").json()["data"]
        assert len({model["id"] for model in models}) == len(models)
        return {model["id"]: (model["kind"], model["state"]) for model in models}

    assert listed()[FULL] == ("full", "stored")
    create(api)
    create(api, "copy")
    found = store.deployments.get(FULL)
    assert found is not None
    ready(store, found[0])
    assert listed() == {BASE: ("base", "stopped"), "copy": ("base", "stopped"), FULL: ("full", "ready")}
    assert api.get(f"/v1/models/{FULL}").json()["state"] == "ready"
    assert "deployed as deploy-" in error(api.delete(f"/v1/models/{FULL}"))["message"]
    assert "deployed as deploy-" in error(api.delete("/v1/models/copy"))["message"]


@pytest.mark.parametrize(
    ("model", "status", "code", "message"),
    [
        (BASE, 400, "already_served", "is a base"),
        ("none", 404, "model_not_found", "copy (--deployable)"),
        ("an-adapter", 400, "not_deployable", "is served on its base, tiny"),
        ("a-bad-one", 400, "model_not_ready", "quarantined"),
        ("bot", 400, "invalid_value", "is an alias"),
    ],
)
def test_models_that_cannot_be_deployed(
    api: TestClient, store: Store, model: str, status: int, code: str, message: str
) -> None:
    register(store, "an-adapter")
    full(store, "a-bad-one", state=ModelState.QUARANTINED)
    store.aliases.put("bot", [AliasTarget(BASE)])
    refused = error(api.post(CREATE, json={"model": model}), status)
    assert (refused["code"], refused["param"]) == (code, "model")
    assert message in refused["message"]


@pytest.mark.parametrize(
    ("engine", "param"),
    [
        ({"trust_remote_code": True}, "engine.trust_remote_code"),
        ({"extra_args": ["--x"]}, "engine.extra_args"),
        ({"device": "cuda:0; rm"}, "engine.device"),
        ({"device": "cuda:3"}, "engine.device"),
        ({"gpu_memory_utilization": 0.96}, "engine.gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0.2}, "engine.gpu_memory_utilization"),
        ({"kv_cache_memory": "much"}, "engine.kv_cache_memory"),
        ({"kv_cache_memory": "1,5GiB"}, "engine.kv_cache_memory"),
        ({"kv_cache_memory": "1B"}, "engine.kv_cache_memory"),
        ({"kv_cache_memory": "900TiB"}, "engine.kv_cache_memory"),
        ({"max_model_len": 0}, "engine.max_model_len"),
        ({"max_model_len": "8"}, "engine.max_model_len"),
        ({"max_lora_rank": 7}, "engine.max_lora_rank"),
        ({"enable_lora": "yes"}, "engine.enable_lora"),
        ({"dtype": "int8"}, "engine.dtype"),
        (None, "engine"),
    ],
)
def test_engines_that_cannot_be(api: TestClient, store: Store, engine: Any, param: str) -> None:
    assert error(api.post(CREATE, json={"model": FULL, "engine": engine}))["param"] == param
    assert store.deployments.all() == []


def test_on_gpus_deployments_are_spread_until_they_are_full(make: Make, store: Store) -> None:
    api = make(["cuda:0", "cuda:1"])
    for number in range(5):
        full(store, f"m{number}")
    placed = [create(api, f"m{number}")["options"] for number in range(4)]
    assert [(o["device"], o["gpu_memory_utilization"]) for o in placed] == [
        ("cuda:1", 0.3), ("cuda:1", 0.3), ("cuda:0", 0.3), ("cuda:1", 0.3),
    ]  # fmt: skip
    refused = error(api.post(CREATE, json={"model": "m4", "engine": {"gpu_memory_utilization": 0.4}}))
    assert refused["code"] == "does_not_fit"
    assert "tiny has 0.45" in refused["message"]
    assert create(api, "m4", gpu_memory_utilization=0.2)["device"] == "cuda:0"


def test_slots_are_shown_once_an_engine_has_started_with_them(make: Make, store: Store) -> None:
    api = make(["cuda:0"])
    full(store, "m")
    before = create(api, "m")["options"]
    assert (before["max_loras"], before["specialize_active_lora"]) == (None, False)
    found = store.deployments.get("m")
    assert found is not None
    ready(store, found[0], max_loras=31, specialize_active_lora=True)
    after = api.get(f"{CREATE}/m").json()["options"]
    assert (after["max_loras"], after["specialize_active_lora"]) == (31, True)


def test_memory_that_others_will_take_is_spoken_for(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that each fit alone do not both fit while the first is still to take its memory."""
    memory = psutil.virtual_memory()._replace(available=4 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    create(api, kv_cache_memory="2GiB")
    refused = error(api.post(CREATE, json={"model": "copy", "engine": {"kv_cache_memory": "2GiB"}}))
    assert refused["code"] == "does_not_fit"
    store.engines.set_state(FULL, EngineState.FAILED, reason="x")
    create(api, "copy", kv_cache_memory="2GiB")


def test_a_deletion_waits_until_it_is_gone(api: TestClient, store: Store) -> None:
    made = create(api)
    api.put("/v1/aliases/bot", json={"targets": [{"model": FULL}], "wait": False})
    assert error(api.delete(f"{CREATE}/{FULL}"))["code"] == "model_in_use"
    seen: list[bool] = []

    def scheduler() -> None:
        while not seen:
            found = store.deployments.get(made["id"])
            if found is not None and found[0].is_draining:
                seen.append(found[0].drain_until is not None and found[0].drain_until > time.time() + 3000)
                time.sleep(0.3)
                store.deployments.remove(made["id"])
            time.sleep(0.02)

    thread = threading.Thread(target=scheduler)
    thread.start()
    began = time.monotonic()
    answer = api.delete(f"{CREATE}/{FULL}", params={"force": True, "timeout": 3600})
    assert time.monotonic() - began > 0.25
    thread.join()
    assert answer.json() == {"id": made["id"], "object": "deployment", "deleted": True}
    assert seen == [True]
    assert error(api.delete(f"{CREATE}/{FULL}"), 404)["code"] == "deployment_not_found"
    assert api.get("/v1/aliases/bot").status_code == 404


def test_a_failed_one_is_started_again_and_a_running_one_left(api: TestClient, store: Store) -> None:
    made = create(api)
    store.engines.set_state(FULL, EngineState.FAILED, reason="ValueError: no")
    shown = api.get(f"{CREATE}/{FULL}").json()
    assert (shown["state"], shown["reason"]) == ("failed", "ValueError: no")
    again = api.post(f"{CREATE}/{made['id']}/restart").json()
    assert (again["state"], again["reason"]) == ("starting", None)
    store.deployments.drain(made["id"], 0.0)
    assert error(api.post(f"{CREATE}/{FULL}/restart"))["code"] == "deployment_draining"
    assert error(api.post(f"{CREATE}/none/restart"), 404)["code"] == "deployment_not_found"


def test_deployments_do_not_make_the_service_unready(api: TestClient, store: Store, data: Workspace) -> None:
    (data.run / "scheduler.heartbeat").touch()
    store.engines.starting(BASE, "/s", engine_info())
    store.engines.set_state(BASE, EngineState.READY)
    create(api)
    store.engines.set_state(FULL, EngineState.FAILED, reason="why")
    answer = api.get("/ready")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    component = answer.json()["components"][f"engine:{FULL}"]
    assert (component["ready"], component["required"], component["state"]) == (False, False, "failed")
    store.engines.set_state(BASE, EngineState.BACKOFF)
    assert api.get("/ready").status_code == 503


def test_an_alias_is_flipped_only_to_a_deployment_that_is_ready(api: TestClient, store: Store) -> None:
    def put(**body: Any) -> Any:
        return api.put("/v1/aliases/bot", json={"targets": [{"model": FULL}], **body})

    assert error(put())["code"] == "model_not_served"
    create(api)
    refused = error(put(), 503)
    assert "not ready (stopped)" in refused["message"]
    store.engines.set_state(FULL, EngineState.FAILED, reason="no such architecture")
    assert "no such architecture" in error(put(), 503)["message"]
    found = store.deployments.get(FULL)
    assert found is not None
    ready(store, found[0])
    assert put().json()["version"] == 1
    assert api.get("/v1/models/bot").json()["state"] == "ready"


# adapters and jobs on them


def upload(api: TestClient, base: str | None) -> Any:
    parts = [("file", (name, content)) for name, content in adapter_files().items()]
    return api.post("/v1/adapters/upload", files=parts, data={} if base is None else {"base": base})


def test_an_adapter_is_registered_on_a_deployed_model(api: TestClient, store: Store) -> None:
    assert error(upload(api, FULL))["code"] == "model_not_served"
    create(api)
    assert error(upload(api, FULL), 503)["code"] == "engine_unavailable"
    found = store.deployments.get(FULL)
    assert found is not None
    ready(store, found[0], path=str(embedded_base_path()), max_lora_rank=8)
    shown = upload(api, FULL).json()
    assert (shown["base"], shown["lineage"]["base_fingerprint"]) == (FULL, "c" * 64)
    assert shown["model"].startswith(f"ft:{FULL}::")
    assert [one["model"] for one in api.get("/v1/adapters", params={"base": FULL}).json()["data"]] == [
        shown["model"]
    ]


def test_the_rank_that_counts_is_the_deployments(make: Make, store: Store) -> None:
    full(store)
    api = make(max_lora_rank=64)
    create(api, max_lora_rank=8)
    refused = error(job(api, FULL, {"type": "lora", "rank": 16}))
    assert (refused["param"], "a larger max_lora_rank" in refused["message"]) == ("tuning.rank", True)


def test_without_adapters_none_are_taken(api: TestClient) -> None:
    create(api, enable_lora=False)
    assert "enable_lora false" in error(upload(api, FULL))["message"]
    assert "enable_lora false" in error(job(api, FULL, {"type": "lora"}))["message"]


def job(api: TestClient, model: str, tuning: dict[str, Any]) -> Any:
    rows = json.dumps({"prompt": "a", "completion": "b"}).encode()
    files = {"file": ("rows.jsonl", rows)}
    file = api.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    return api.post(
        "/v1/fine_tuning/jobs", json={"model": model, "training_file": file, "tuning": tuning, "seed": 1}
    )


def test_training_on_a_full_model_needs_its_deployment_for_an_adapter(api: TestClient, store: Store) -> None:
    refused = error(job(api, FULL, {"type": "lora"}))
    assert (refused["code"], "deploy it first" in refused["message"]) == ("model_not_served", True)
    create(api)
    for type in ("lora", "qlora"):
        made = store.jobs.get(job(api, FULL, {"type": type}).json()["id"])
        assert made is not None
        assert (request_of(made).model, made.base, made.weights("parent")) == (FULL, FULL, [])
    on = store.jobs.get(job(api, FULL, {"type": "full"}).json()["id"])
    assert on is not None
    assert (on.base, on.weights("parent")) == (BASE, ["c" * 64]), "its weights go on, on its own base"


def test_on_a_deployable_adapters_are_trained_once_it_is_deployed(api: TestClient, store: Store) -> None:
    assert error(job(api, "copy", {"type": "lora"}), 404)["code"] == "model_not_found"
    create(api, "copy")
    assert job(api, "copy", {}).json()["tuning"]["type"] == "lora"
    assert error(job(api, "copy", {"type": "full"}))["code"] == "unsupported"
    store.deployments.drain(create(api, FULL)["id"], 0.0)
    assert error(job(api, FULL, {"type": "lora"}))["code"] == "model_not_served"


def test_quantized_weights_are_not_trained_on(api: TestClient, store: Store) -> None:
    full(store, "packed")
    with store.database.begin() as connection:
        connection.execute(update(models).where(models.c.name == "packed").values(method="awq"))
    create(api, "packed")
    for type in ("lora", "full", "auto"):
        assert "quantized (AWQ)" in error(job(api, "packed", {"type": type}))["message"]


def test_a_paused_job_on_a_deployment_is_resumed_while_that_is_there(api: TestClient, store: Store) -> None:
    made = create(api)
    paused = create_job(store, base=FULL, model=FULL, state=JobState.PAUSED)
    path = f"/v1/fine_tuning/jobs/{paused.id}/resume"
    store.deployments.remove(made["id"])
    assert error(api.post(path))["code"] == "base_not_served"
    create(api)
    assert api.post(path).json()["status"] == "queued"
