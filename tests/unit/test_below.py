"""The gateway's answers to requests of batches: what a client could ask, and below everybody else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from fake_engine import Client, engine_at, gateway_for, say_hello
from rows import engine_info
from tunewright.api.gateway.below import BelowLive
from tunewright.api.gateway.inner import InnerGateway
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.proxy import Relay
from tunewright.api.gateway.turns import Caller
from tunewright.errors import InvalidRequest, NotFound, TunewrightError
from tunewright.registry.aliases import AliasTarget
from tunewright.store.records import Engine
from tunewright.store.states import EngineState
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BATCH = Payer("default", source="batch")
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def body(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, **SAID, **fields}).encode()


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"])
async def test_each_endpoint_answers_under_the_public_name(
    store: Store, socket: Path, engine: Engine, path: str
) -> None:
    gateway = gateway_for(store)
    asked = {CHAT: SAID, "/v1/completions": {"prompt": "hi"}}.get(path, {"input": "hi"})
    async with engine_at(socket, say_hello) as fake:
        answer = await BelowLive(gateway).ask(
            path, json.dumps({"model": "tiny", **asked}).encode(), "key", BATCH
        )
        await gateway.close()
    assert json.loads(answer) == {"model": "tiny", "content": "hello"}
    assert [seen[0] for seen in fake.seen] == [path]
    assert gateway.router.lines["tiny"].running == gateway.router.in_flight["tiny"] == 0


@pytest.mark.parametrize(
    ("path", "fields", "status", "code"),
    [
        ("/v1/load_lora_adapter", {}, 400, "invalid_value"),
        ("/tokenize", {}, 400, "invalid_value"),
        (CHAT, {"model": "nothing"}, 404, "model_not_found"),
        (CHAT, {"stream": True}, 400, "invalid_value"),
        (CHAT, {"background": True}, 400, "invalid_value"),
        (CHAT, {"chat_template": "x"}, 400, "unsupported"),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://in/x"}}]}
                ]
            },
            400,
            "media_url_not_allowed",
        ),
    ],
)
async def test_what_no_client_may_ask_is_refused(
    store: Store, socket: Path, engine: Engine, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    gateway = gateway_for(store)
    async with engine_at(socket, say_hello) as fake:
        with pytest.raises(TunewrightError) as raised:
            await BelowLive(gateway).ask(path, body(**{"model": "tiny", **fields}), None, BATCH)
        await gateway.close()
    assert (raised.value.status, raised.value.code, fake.seen) == (status, code, [])


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, (400, "invalid_value")), (500, (500, "engine_failed")), (503, (500, "engine_failed"))],
)
async def test_what_the_engine_fails_at_is_a_fault_of_the_request(
    store: Store, socket: Path, engine: Engine, status: int, expected: tuple[int, str]
) -> None:
    """Other than an engine that is not ready, for which a batch waits as long as it may."""

    async def fail(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "it fails"}}, status=status)

    gateway = gateway_for(store)
    below = BelowLive(gateway)
    async with engine_at(socket, fail):
        with pytest.raises(TunewrightError) as raised:
            await below.ask(CHAT, body("tiny"), None, BATCH)
    assert (raised.value.status, raised.value.code) == expected
    store.engines.set_state("tiny", EngineState.STARTING)
    with pytest.raises(TunewrightError) as raised:
        await below.ask(CHAT, body("tiny"), None, BATCH)
    assert (raised.value.status, raised.value.code) == (503, "engine_unavailable")
    assert gateway.router.lines["tiny"].running == 0
    await gateway.close()


async def test_it_waits_for_live_requests_without_holding_anything(
    store: Store, socket: Path, engine: Engine
) -> None:
    assert engine.info is not None
    info = engine_info(internal_name=engine.info.internal_name, max_num_seqs=1)
    store.engines.set_state(engine.name, EngineState.READY, info=info)
    order: list[str] = []
    go_on = asyncio.Semaphore(0)

    async def handler(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        order.append(asked["name"])
        await go_on.acquire()
        return await say_hello(request, asked)

    gateway = gateway_for(store, request_timeout=30)

    def live(name: str) -> asyncio.Task[None]:
        client = Client()
        relay = Relay(gateway, CHAT, {"model": "tiny", "name": name, **SAID}, project="default")
        scope = {"type": "http", "client": ("10.0.0.1", 1)}
        return asyncio.create_task(relay(scope, client.receive, client.send))  # type: ignore[arg-type]

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while len(order) < count:
                await asyncio.sleep(0.005)

    async with engine_at(socket, handler):
        tasks: list[asyncio.Task[Any]] = [live("first")]
        await until(1)
        tasks.append(
            asyncio.create_task(BelowLive(gateway).ask(CHAT, body("tiny", name="batch"), None, BATCH))
        )
        async with asyncio.timeout(60):
            while gateway.router.in_flight["tiny"] != 1 or not gateway.router.lines["tiny"].waiting_below:
                await asyncio.sleep(0.005)
        tasks += [live("second"), live("third")]
        async with asyncio.timeout(60):
            while gateway.router.lines["tiny"].waiting < 2:
                await asyncio.sleep(0.005)
        for count in (2, 3, 4):
            go_on.release()
            await until(count)
        go_on.release()
        await asyncio.gather(*tasks)
        await gateway.close()
    assert order == ["first", "second", "third", "batch"]


async def test_what_is_refused_does_not_wait(store: Store, socket: Path, engine: Engine) -> None:
    gateway = gateway_for(store)
    async with engine_at(socket, say_hello), asyncio.timeout(20):
        await BelowLive(gateway).ask(CHAT, body("tiny"), None, BATCH)
        line = gateway.router.lines["tiny"]
        places = await line.take(Caller("10.0.0.1"), line.places)
        with pytest.raises(InvalidRequest, match="max_token"):
            await BelowLive(gateway).ask(CHAT, body("tiny", max_token=5), None, BATCH)
        line.give_back(places, Caller("10.0.0.1"))
        await gateway.close()


async def test_requests_of_batches_take_a_bounded_memory(
    store: Store, socket: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.api.gateway.inner._ALL_OF_BATCHES", 300)
    gateway, go_on = gateway_for(store), asyncio.Event()

    async def waits(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        await go_on.wait()
        return await say_hello(request, asked)

    inner = InnerGateway(gateway, tmp_path / "inner")
    await inner.start()
    connector = aiohttp.UnixConnector(str(tmp_path / "inner"))
    async with (
        engine_at(socket, waits) as fake,
        asyncio.timeout(20),
        aiohttp.ClientSession(connector=connector) as http,
    ):

        async def ask(size: int) -> int:
            query = {"path": CHAT, "project": "default"}
            async with http.post(
                "http://inner/batch", params=query, data=body("tiny", user="x" * size)
            ) as answer:
                return answer.status

        first = asyncio.create_task(ask(200))
        while not fake.seen:
            await asyncio.sleep(0.005)
        assert await ask(200) == 503
        go_on.set()
        assert (await first, await ask(400)) == (200, 200), "one is always taken"
        await inner.stop()
        await gateway.close()


async def test_an_alias_answers_with_one_target_for_each_key(
    store: Store, socket: Path, engine: Engine
) -> None:
    store.aliases.put("stable", (AliasTarget("tiny"),))
    gateway = gateway_for(store)
    async with engine_at(socket, say_hello):
        answer = await BelowLive(gateway).ask(CHAT, body("stable"), "key", BATCH)
        await gateway.close()
    assert json.loads(answer)["model"] == "tiny"


async def test_the_models_and_aliases_of_another_project_do_not_exist(
    store: Store, socket: Path, engine: Engine
) -> None:
    mine = store.of(store.projects.create("mine").id)
    mine.aliases.put("stable", [AliasTarget("tiny")])
    gateway = gateway_for(store)
    async with engine_at(socket, say_hello):
        answer = await BelowLive(gateway).ask(
            CHAT, body("stable"), None, Payer(mine.database.project or "", source="batch")
        )
        with pytest.raises(NotFound):
            await BelowLive(gateway).ask(CHAT, body("stable"), None, BATCH)
        await gateway.close()
    assert json.loads(answer)["model"] == "tiny"
