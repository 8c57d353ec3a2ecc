"""The gateway with a small stand-in for vLLM on a unix socket: names, errors, ends and disconnects."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from fake_engine import Client, Handler, engine_at, gateway_for, say_hello, stream
from rows import Publish
from tunewright.api.gateway import reply, routing
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.api.gateway.reply import Reply
from tunewright.api.gateway.routing import Target
from tunewright.engine.leases import Drain
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Engine
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

BASE, INTERNAL, SHA, TUNED = "tiny", "base-" + "0" * 32, "a" * 64, "ft:tiny::1"
CHAT = "/v1/chat/completions"


async def ask(
    store: Store, body: dict[str, Any], path: str = CHAT, client: Client | None = None, **options: Any
) -> Client:
    gateway = gateway_for(store, **options)
    client = client or Client()
    try:
        await asyncio.wait_for(
            Relay(gateway, path, body, project="default")({"type": "http"}, client.receive, client.send), 20
        )
    finally:
        await gateway.close()
    return client


async def ask_once(
    store: Store, socket: Path, handler: Handler, body: dict[str, Any], path: str = CHAT
) -> Any:
    """Returns the client and the requests that the engine got."""
    async with engine_at(socket, handler) as fake:
        client = await ask(store, body, path)
        return client, fake.seen


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


# names


async def test_the_engine_is_asked_by_its_own_name_and_answers_by_the_public_one(
    store: Store, socket: Path, engine: Engine
) -> None:
    body = {"model": BASE, "messages": [], "temperature": 0}
    client, seen = await ask_once(store, socket, say_hello, body)
    assert seen == [(CHAT, {**body, "model": INTERNAL})]
    assert (client.status, client.headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(client.body) == {"model": BASE, "content": "hello"}
    assert body["model"] == BASE, "the request itself is not changed"


async def test_an_adapter_is_asked_for_by_its_hash(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    client, seen = await ask_once(store, socket, say_hello, {"model": TUNED})
    assert seen[0][1]["model"] == SHA
    assert json.loads(client.body)["model"] == TUNED


async def test_an_answers_text_is_never_touched(store: Store, socket: Path, engine: Engine) -> None:
    content = f'{INTERNAL} "model":"{INTERNAL}" and {{"model":"{INTERNAL}"}}'

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await stream(request, event({"model": INTERNAL, "delta": content}), b"data: [DONE]\n\n")
        return web.json_response(
            {"model": INTERNAL, "content": content}, dumps=lambda o: json.dumps(o, separators=(",", ":"))
        )

    client, _ = await ask_once(store, socket, handler, {"model": BASE})
    assert json.loads(client.body) == {"model": BASE, "content": content}
    client, _ = await ask_once(store, socket, handler, {"model": BASE, "stream": True})
    assert json.loads(client.body.split(b"\n\n")[0][6:]) == {"model": BASE, "delta": content}


COMMENT = b": keep-alive\n\n"


async def test_a_silent_stream_is_kept_open_between_whole_events(
    store: Store, socket: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "_KEEP_ALIVE", 0.05)
    events = [event({"model": INTERNAL, "delta": text}) for text in ("one", "two")]

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request)
        for part in (events[0] + events[1][:20], events[1][20:], b"data: [DONE]\n\n"):
            await asyncio.sleep(0.2)
            await response.write(part)
        return response

    client, _ = await ask_once(store, socket, handler, {"model": BASE, "stream": True})
    silences = client.body.split(b"data: ")[:3]
    assert all(COMMENT in silence for silence in silences), "before and between the events"
    named = b"".join(events).replace(INTERNAL.encode(), BASE.encode())
    assert client.body.replace(COMMENT, b"") == named + b"data: [DONE]\n\n"
    stream_of = SSEDecoder().iter_bytes(iter([client.body]))
    assert [found.json()["delta"] for found in stream_of if found.data != "[DONE]"] == ["one", "two"]


async def test_a_stream_that_is_not_silent_has_no_comments(
    store: Store, socket: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its client is slow: then a part of it is still being sent."""
    monkeypatch.setattr(reply, "_KEEP_ALIVE", 0.1)

    class Slow(Client):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0.3 if message.get("body") else 0)
            await super().send(message)

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, EVENTS[0])
        await response.write(EVENTS[1])
        await response.write(b"data: [DONE]\n\n")
        return response

    client = Slow()
    async with engine_at(socket, handler):
        await ask(store, {"model": BASE, "stream": True}, client=client)
    assert COMMENT not in client.body


class Chunks:
    """An upstream response whose body arrives in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    async def part(self) -> bytes:
        return next(self._pieces, b"")


async def pass_events(pieces: list[bytes], path: str = CHAT, public: str = BASE) -> Client:
    client = Client()
    relay = Relay(Gateway(None, None), path, {}, project="default")  # type: ignore[arg-type]
    target = Target("", INTERNAL, public, None)
    answer = Reply({"type": "http"}, client.receive, client.send)
    await answer.begin(200, [])
    await relay._pass_events(Chunks(pieces), target, answer)  # type: ignore[arg-type]
    return client


EVENTS = [
    event({"id": "1", "model": INTERNAL, "choices": [{"delta": {"content": c}}]}) for c in ("é", "\n\n", "x")
]
WHOLE = b"".join(EVENTS) + b"data: [DONE]\n\n"


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(1, len(WHOLE) - 1)), st.sampled_from([BASE, 'odd "name"\\', "ft:tiny:s:1"]))
async def test_a_name_is_rewritten_wherever_chunks_are_cut(cuts: set[int], public: str) -> None:
    bounds = [0, *sorted(cuts), len(WHOLE)]
    client = await pass_events([WHOLE[a:b] for a, b in itertools.pairwise(bounds)], public=public)
    assert client.body == WHOLE.replace(f'"{INTERNAL}"'.encode(), json.dumps(public).encode())


async def test_events_are_passed_on_as_they_come(store: Store, socket: Path, engine: Engine) -> None:
    """The client has the first event before the second one exists."""
    first_arrived = asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, EVENTS[0])
        await asyncio.wait_for(first_arrived.wait(), 5)
        await response.write(EVENTS[1] + b"data: [DONE]\n\n")
        return response

    client = Client()
    async with engine_at(socket, handler):
        asking = asyncio.create_task(ask(store, {"model": BASE, "stream": True}, client=client))
        await asyncio.wait_for(client.got_something.wait(), 5)
        first_arrived.set()
        await asking
    assert client.body.endswith(b"data: [DONE]\n\n")


# ends


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize(
    "pieces", [[], EVENTS, [*EVENTS, b'data: {"half'], [b'data: {"text":"data: [DONE]"}\n\n']]
)
async def test_an_end_without_done_is_told_as_an_error(
    store: Store, socket: Path, engine: Engine, path: str, pieces: list[bytes]
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, *pieces)

    client, _ = await ask_once(store, socket, handler, {"model": BASE, "stream": True}, path)
    last = client.body.split(b"\n\n")[-2]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_unavailable"
    assert not client.body.endswith(b"data: [DONE]\n\n")
    assert b'data: {"half' not in client.body


async def test_other_routes_end_as_they_do() -> None:
    events = [b'event: response.completed\ndata: {"model":"' + INTERNAL.encode() + b'"}\n\n']
    client = await pass_events(events, "/v1/responses")
    assert client.body == events[0].replace(INTERNAL.encode(), BASE.encode())


async def test_an_engine_that_dies_while_it_streams(store: Store, socket: Path, engine: Engine) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, *EVENTS)
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    client, _ = await ask_once(store, socket, handler, {"model": BASE, "stream": True})
    assert client.status == 200
    assert b"The engine was lost" in client.body
    assert b"[DONE]" not in client.body


async def test_an_engine_that_dies_in_a_whole_answer(store: Store, socket: Path, engine: Engine) -> None:
    """What is not streamed has not begun for the client: it gets the error's own status, to try again."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"id": "half')
        assert request.transport is not None
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    client, _ = await ask_once(store, socket, handler, {"model": BASE})
    assert client.status == 503
    assert client.error["code"] == "engine_unavailable"


async def test_an_engine_that_dies_before_it_answers(store: Store, socket: Path, engine: Engine) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    client, _ = await ask_once(store, socket, handler, {"model": BASE})
    assert client.status == 503
    assert client.error["code"] == "engine_unavailable"
    assert client.headers["retry-after"] == "5"


async def test_no_engine_at_the_socket(store: Store, engine: Engine) -> None:
    client = await ask(store, {"model": BASE})
    assert (client.status, client.error["code"]) == (503, "engine_unavailable")


# errors


@pytest.mark.parametrize(
    ("status", "answer", "public_status", "message"),
    [
        (400, {"error": {"message": f"{INTERNAL} is wrong", "param": "top_p"}}, 400, "tiny is wrong"),
        (400, {"object": "error", "message": "too long", "param": None}, 400, "too long"),
        (422, {"error": {"message": "x"}}, 400, "x"),
        (500, {"error": {"message": "boom"}}, 503, "The engine failed: boom"),
        (
            404,
            {"error": {"message": f"The model `{INTERNAL}` does not exist."}},
            503,
            "The engine does not know tiny now",
        ),
    ],
)
async def test_the_engines_errors_are_told_in_openais_form(
    store: Store, socket: Path, engine: Engine, status: int, answer: Any, public_status: int, message: str
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(answer, status=status)

    client, _ = await ask_once(store, socket, handler, {"model": BASE})
    assert client.status == public_status
    assert message in client.error["message"]
    assert set(client.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("text", ["Internal Server Error", "", "[1]", '"x"', "null"])
async def test_an_error_that_is_no_json_object(store: Store, socket: Path, engine: Engine, text: str) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500, text=text)

    client, _ = await ask_once(store, socket, handler, {"model": BASE})
    assert client.status == 503
    assert client.error["message"].startswith("The engine failed: ")


async def test_after_a_404_the_model_is_looked_up_once_more(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    """For example, the adapter was unloaded and loaded again between the look-up and the request."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == SHA:
            store.models.delete(store.models.get(TUNED))
            publish_model({"sha256": "c" * 64})
            store.engines.set_residency(engine, "c" * 64, Residency.LOADED)
            return web.json_response({"error": {"message": "gone"}}, status=404)
        return await say_hello(request, body)

    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    client, seen = await ask_once(store, socket, handler, {"model": TUNED})
    assert client.status == 200
    assert [body["model"] for _, body in seen] == [SHA, "c" * 64]


async def test_a_second_404_is_the_answer(store: Store, socket: Path, engine: Engine) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "gone"}}, status=404)

    client, seen = await ask_once(store, socket, handler, {"model": BASE})
    assert (client.status, len(seen)) == (404, 2)


# disconnects


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_ends_the_engines_work(
    store: Store, socket: Path, engine: Engine, streams: bool
) -> None:
    began = asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, EVENTS[0]) if streams else web.StreamResponse()
        began.set()
        await asyncio.sleep(30)
        return response

    client = Client()
    async with engine_at(socket, handler) as fake:
        asking = asyncio.create_task(ask(store, {"model": BASE, "stream": streams}, client=client))
        await asyncio.wait_for(began.wait(), 5)
        client.leaves.set()
        await asyncio.wait_for(fake.aborted.wait(), 5)
        await asyncio.wait_for(asking, 5)


# templates


@pytest.mark.parametrize(
    ("path", "body", "sent"),
    [
        (CHAT, {"messages": []}, True),
        ("/tokenize", {"messages": []}, True),
        ("/tokenize", {"prompt": "x"}, False),
        ("/v1/completions", {"prompt": "x"}, False),
        ("/v1/embeddings", {"input": "x"}, False),
    ],
)
async def test_an_adapters_own_template_travels_with_its_requests(
    store: Store,
    socket: Path,
    engine: Engine,
    publish_model: Publish,
    path: str,
    body: dict[str, Any],
    sent: bool,
) -> None:
    publish_model({"chat_template": "{{ messages }}"})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    _, seen = await ask_once(store, socket, say_hello, {"model": TUNED, **body}, path)
    assert seen[0][1].get("chat_template") == ("{{ messages }}" if sent else None)
    _, seen = await ask_once(store, socket, say_hello, {"model": BASE, **body}, path)
    assert "chat_template" not in seen[0][1]


async def test_a_base_without_a_template_says_that_it_cannot_chat(
    store: Store, socket: Path, engine: Engine
) -> None:
    assert engine.info is not None
    info = engine.info.model_copy(update={"has_chat_template": False})
    store.engines.set_state(engine.name, EngineState.READY, info=info)
    client, seen = await ask_once(store, socket, say_hello, {"model": BASE})
    assert (client.status, client.error["code"]) == (400, "no_chat_template")
    assert "/v1/completions" in client.error["message"]
    assert seen == []
    client, _ = await ask_once(store, socket, say_hello, {"model": BASE, "prompt": "x"}, "/v1/completions")
    assert client.status == 200


async def test_a_route_that_takes_no_template_is_refused(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({"chat_template": "{{ messages }}"})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    client, seen = await ask_once(store, socket, say_hello, {"model": TUNED}, "/v1/responses")
    assert (client.status, seen) == (400, [])


# what is ready


async def never(operation: dict[str, Any]) -> dict[str, Any]:
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_requests_for_an_adapter_that_is_not_there_load_it_once(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({"desired": "unloaded"})
    asked: list[dict[str, Any]] = []

    async def load(operation: dict[str, Any]) -> dict[str, Any]:
        asked.append(operation)
        await asyncio.sleep(0.2)
        store.engines.set_residency(engine, SHA, Residency.LOADED)
        return {"state": "loaded"}

    gateway = gateway_for(store, load=load)
    clients = [Client() for _ in range(20)]
    async with engine_at(socket, say_hello):
        relays = (Relay(gateway, CHAT, {"model": TUNED}, project="default") for _ in clients)
        await asyncio.gather(
            *(r({"type": "http"}, c.receive, c.send) for r, c in zip(relays, clients, strict=True))
        )
    await gateway.close()
    assert [client.status for client in clients] == [200] * 20
    assert asked == [{"op": "load", "model": TUNED}]


async def test_a_load_that_fails_is_told(store: Store, engine: Engine, publish_model: Publish) -> None:
    publish_model({"desired": "unloaded"})
    client = await ask(store, {"model": TUNED})
    assert (client.status, client.error["code"]) == (503, "load_failed")
    assert "nothing loads here" in client.error["message"]


async def test_it_does_not_wait_for_ever(
    store: Store, engine: Engine, publish_model: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_WAIT_FOR_LOADING", 0.2)
    publish_model({})
    client = await ask(store, {"model": TUNED}, load=never)
    assert client.status == 503
    assert "still being loaded" in client.error["message"]
    assert "retry-after" in client.headers


async def test_a_request_holds_its_adapter_until_it_ends(
    store: Store, socket: Path, engine: Engine, publish_model: Publish, data: Workspace
) -> None:
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)

    async def unused() -> bool:
        found = await Drain(data.leases).wait_unused(BASE, SHA, 0)
        if found is None:
            return False
        with found:
            return True

    go_on = asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, event({"model": SHA}))
        await go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async with engine_at(socket, handler):
        client = Client()
        asking = asyncio.create_task(ask(store, {"model": TUNED, "stream": True}, client=client))
        await client.got_something.wait()
        assert not await unused()
        go_on.set()
        await asking
    assert await unused()
    assert client.headers["x-tunewright-model"] == TUNED


async def test_an_adapter_that_is_drained_is_waited_for(
    store: Store, socket: Path, engine: Engine, publish_model: Publish, data: Workspace
) -> None:
    """Its row still says loaded, but the worker has begun to unload it: no request is admitted."""
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)

    async def load(operation: dict[str, Any]) -> dict[str, Any]:
        return {"state": "loaded"}

    async with engine_at(socket, say_hello) as fake:
        found = await Drain(data.leases).wait_unused(BASE, SHA, 0)
        assert found is not None
        with found:
            asking = asyncio.create_task(ask(store, {"model": TUNED}, load=load))
            await asyncio.sleep(0.3)
            assert (asking.done(), fake.seen) == (False, [])
        assert (await asking).status == 200


@pytest.mark.parametrize(
    ("values", "residency", "status", "code"),
    [
        ({"state": "quarantined"}, None, 400, "model_quarantined"),
        ({"state": "checking"}, Residency.LOADED, 503, "engine_unavailable"),
        ({}, Residency.FAILED, 503, "engine_unavailable"),
        ({"kind": "full", "desired": "unloaded"}, None, 400, "model_not_served"),
        ({"base": "elsewhere"}, None, 400, "invalid_value"),
    ],
)
async def test_a_model_that_cannot_answer_says_why(
    store: Store,
    engine: Engine,
    publish_model: Publish,
    values: dict[str, Any],
    residency: Residency | None,
    status: int,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing, "_WAIT_FOR_LOADING", 0.2)
    publish_model(values)
    if residency:
        store.engines.set_residency(engine, SHA, residency, error="out of slots")
    client = await ask(store, {"model": TUNED})
    assert (client.status, client.error["code"]) == (status, code)
    if residency is Residency.FAILED:
        assert "out of slots" in client.error["message"]


async def test_an_unloaded_adapter_is_left_alone_where_loading_on_demand_is_off(
    store: Store, engine: Engine, publish_model: Publish
) -> None:
    publish_model({"desired": "unloaded"})
    client = await ask(store, {"model": TUNED}, load_on_demand=False)
    assert (client.status, client.error["code"]) == (400, "model_not_loaded")


async def test_an_unknown_model(store: Store, engine: Engine) -> None:
    client = await ask(store, {"model": "nobody"})
    assert (client.status, client.error["code"], client.error["param"]) == (404, "model_not_found", "model")


async def test_an_engine_that_is_not_ready_says_why(store: Store, engine: Engine) -> None:
    store.engines.set_state(BASE, EngineState.BACKOFF, reason="it died of thirst")
    client = await ask(store, {"model": BASE})
    assert client.status == 503
    assert "it died of thirst" in client.error["message"]


DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_dead_engine_is_not_explained_by_a_stack_trace_that_no_client_sees(
    store: Store, engine: Engine, streamed: bool
) -> None:
    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"error": {"message": DEAD, "type": "InternalServerError", "code": 500}}
        return await stream(request, event(error)) if streamed else web.json_response(error, status=500)

    client, _ = await ask_once(store, Path(engine.socket or ""), die, {"model": BASE, "stream": streamed})
    assert b"stack trace" not in client.body
    assert b"The engine was lost while answering: try again." in client.body
    assert b"engine_unavailable" in client.body
