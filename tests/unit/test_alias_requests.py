"""Requests to an alias through the gateway: which model answers, and what the guard and the shadow see of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, Handler, engine_at, gateway_for, say_hello, stream
from rows import Publish
from tunewright.api.gateway.guard import Guard
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.registry.aliases import AliasGuard, AliasJudge, AliasShadow, AliasTarget
from tunewright.store.records import Engine
from tunewright.store.states import Residency
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BOT, OLD, NEW = "support-bot", "ft:tiny::1", "ft:tiny::2"
SHA = {OLD: "a" * 64, NEW: "b" * 64}
DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def loaded(store: Store, engine: Engine, publish_model: Publish) -> None:
    for name, sha256 in SHA.items():
        publish_model({"name": name, "sha256": sha256})
        store.engines.set_residency(engine, sha256, Residency.LOADED)


def put(store: Store, *targets: AliasTarget, **more: Any) -> None:
    store.aliases.put(BOT, targets, **more)


@asynccontextmanager
async def gateway_to(store: Store, socket: Path, handler: Handler) -> AsyncIterator[Gateway]:
    """A gateway to an engine that answers with `handler`. At the end the guard and the shadow have finished."""
    async with engine_at(socket, handler):
        gateway = gateway_for(store)
        try:
            async with asyncio.timeout(20):
                yield gateway
                await gateway.guard.settle()
                await gateway.shadow.settle()
        finally:
            await gateway.close()


async def ask(gateway: Gateway, sticky: str | None = None, **more: Any) -> Client:
    client = Client()
    relay = Relay(gateway, CHAT, {"model": BOT, "messages": [], **more}, sticky, project="default")
    await relay({"type": "http"}, client.receive, client.send)
    return client


def version(store: Store) -> int:
    alias = store.aliases.get(BOT)
    assert alias is not None
    return alias.version


def by_new(answer: Handler) -> Handler:
    """The new model answers with `answer`, the old one correctly."""

    async def handle(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == SHA[NEW]:
            return await answer(request, body)
        return await say_hello(request, body)

    return handle


async def test_an_answer_says_which_version_gave_it(store: Store, socket: Path) -> None:
    put(store, AliasTarget(OLD))

    async with gateway_to(store, socket, say_hello) as gateway:
        first = await ask(gateway)
        await asyncio.to_thread(put, store, AliasTarget(NEW))
        second = await ask(gateway)
    for client, model, number in ((first, OLD, 1), (second, NEW, 2)):
        assert json.loads(client.body)["model"] == model
        assert client.headers["x-tunewright-model"] == model
        assert client.headers["x-tunewright-alias"] == f"{BOT}@{number}"


async def test_weights_share_the_requests_and_a_caller_stays(store: Store, socket: Path) -> None:
    put(store, AliasTarget(OLD, 3), AliasTarget(NEW, 1))

    async with gateway_to(store, socket, say_hello) as gateway:
        drawn = Counter([(await ask(gateway)).headers["x-tunewright-model"] for _ in range(200)])
        callers = []
        for caller in range(12):
            asked = [await ask(gateway, f"caller-{caller}") for _ in range(4)]
            callers.append({client.headers["x-tunewright-model"] for client in asked})
    assert drawn[OLD] + drawn[NEW] == 200
    assert 20 < drawn[NEW] < 90
    assert all(len(models) == 1 for models in callers)
    assert set.union(*callers) == {OLD, NEW}


async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no"}}, status=500)


async def refuses(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "too long"}}, status=400)


async def is_cut(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await stream(request, b'data: {"choices": []}\n\n')
    assert request.transport is not None
    request.transport.close()
    await asyncio.sleep(1)
    raise ConnectionResetError


async def ends_early(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, b'data: {"choices": []}\n\n')


async def streams(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return await stream(request, b'data: {"choices": []}\n\n', DONE)


@pytest.mark.parametrize(
    ("answer", "rolled_back"),
    [
        (fails, True),
        (is_cut, True),
        (ends_early, True),
        (refuses, False),
        (streams, False),
        (say_hello, False),
    ],
)
async def test_the_guard_counts_what_the_engine_fails(
    store: Store, socket: Path, answer: Handler, rolled_back: bool
) -> None:
    put(store, AliasTarget(OLD))
    put(store, AliasTarget(NEW), guard=AliasGuard(max_error_rate=0.5, min_requests=4))

    async with gateway_to(store, socket, by_new(answer)) as gateway:
        for _ in range(4):
            await ask(gateway)
    assert version(store) == (3 if rolled_back else 2)


async def test_a_client_that_leaves_is_nobodys_failure(store: Store, socket: Path) -> None:
    put(store, AliasTarget(OLD))
    put(store, AliasTarget(NEW), guard=AliasGuard(max_error_rate=0.0, min_requests=1))

    async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(20)
        raise AssertionError

    async with gateway_to(store, socket, by_new(waits)) as gateway:
        client = Client()
        relay = Relay(gateway, CHAT, {"model": BOT, "messages": []}, project="default")
        asking = asyncio.create_task(relay({"type": "http"}, client.receive, client.send))
        await asyncio.sleep(0.2)
        client.leaves.set()
        await asking
    assert version(store) == 2


async def test_the_guard_measures_until_the_first_byte(
    store: Store, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow_to_end(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, b'data: {"choices": []}\n\n')
        await asyncio.sleep(0.3)
        await response.write(DONE)
        return response

    async def slow_to_begin(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await streams(request, body)

    observed: list[float] = []
    monkeypatch.setattr(Guard, "observe", lambda *_, ok, seconds: observed.append(seconds))

    put(store, AliasTarget(NEW))
    async with gateway_to(store, socket, slow_to_end) as gateway:
        began = time.monotonic()
        await ask(gateway, stream=True)
        whole = time.monotonic() - began
    assert whole - observed[0] >= 0.29
    async with gateway_to(store, socket, slow_to_begin) as gateway:
        await ask(gateway, stream=True)
    assert observed[1] >= 0.29


async def test_a_shadow_gets_the_request_and_the_caller_nothing_of_it(store: Store, socket: Path) -> None:
    put(store, AliasTarget(OLD), shadow=AliasShadow(NEW))

    async with gateway_to(store, socket, by_new(fails)) as gateway:
        whole, streamed = await ask(gateway, temperature=0), await ask(gateway, stream=True)
    for client in (whole, streamed):
        assert (client.status, client.headers["x-tunewright-model"]) == (200, OLD)
    newest, oldest = store.shadow_answers.list(BOT)[0]
    assert {oldest.status, newest.status} == {500}
    assert (oldest.model, oldest.answered_by) == (NEW, OLD)
    asked = [answer.request for answer in (newest, oldest)]
    assert {"model": BOT, "messages": [], "temperature": 0} in asked
    assert {"model": BOT, "messages": []} in asked, "without stream"


async def test_the_guard_lets_a_judge_compare_and_rolls_back(store: Store, socket: Path) -> None:
    """The judge is the base, and prefers what the old model says."""
    put(store, AliasTarget(OLD))
    judge = AliasJudge("tiny", min_win_rate=0.45, min_samples=8)
    put(
        store,
        AliasTarget(OLD, 1e-9),
        AliasTarget(NEW),
        shadow=AliasShadow(OLD),
        guard=AliasGuard(judge=judge),
    )
    judged: list[dict[str, Any]] = []

    async def says(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        said = f"I am {body['model'][0]}"
        if body["model"] not in SHA.values():
            judged.append(body)
            said = json.dumps(
                {"winner": "A" if "[Answer A]\nI am a" in body["messages"][-1]["content"] else "B"}
            )
        answer = {"model": body["model"], "choices": [{"message": {"role": "assistant", "content": said}}]}
        return web.json_response(answer, dumps=lambda value: json.dumps(value, separators=(",", ":")))

    async with gateway_to(store, socket, says) as gateway:
        for _ in range(8):
            await ask(gateway, messages=[{"role": "user", "content": "Who are you?"}])
            await gateway.shadow.settle()
    assert version(store) == 3
    assert "0 wins, 0 ties, 8 losses" in store.aliases.history(BOT)[0][0].why
    assert len(judged) == 16, "each pair in both orders"
    assert all("[Request]\nWho are you?" in body["messages"][-1]["content"] for body in judged)


async def test_a_shadows_answer_is_under_its_public_name(store: Store, socket: Path) -> None:
    put(store, AliasTarget(OLD), shadow=AliasShadow(NEW))
    async with gateway_to(store, socket, say_hello) as gateway:
        await ask(gateway)
    [answer] = store.shadow_answers.list(BOT)[0]
    assert (answer.status, answer.answer) == (200, {"model": NEW, "content": "hello"})
