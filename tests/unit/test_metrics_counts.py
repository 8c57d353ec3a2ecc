"""What the gateway counts of generations: tokens, times and statuses, by names that exist."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, Handler, engine_at, gateway_for, stream
from rows import Publish
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.api.telemetry.counts import OTHER, Counts, Generation, Histogram, Series
from tunewright.registry.aliases import AliasTarget
from tunewright.store.records import Engine
from tunewright.store.states import Residency
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BASE, TUNED = "tiny", "ft:tiny::1"
DONE = b"data: [DONE]\n\n"


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def usage(prompt: int, generated: int) -> bytes:
    told = {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}
    return event(id="1", choices=[], usage=told)


ROLE = event(id="1", choices=[{"delta": {"role": "assistant", "content": ""}}])
TOKEN = event(id="1", choices=[{"delta": {"content": 'a "usage":{"prompt_tokens":9} b'}}])


def parts(*given: bytes) -> Handler:
    """An engine that sends these, one after another."""

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request)
        for part in given:
            await response.write(part)
            await asyncio.sleep(0.02)
        return response

    return handler


@asynccontextmanager
async def gateway_to(store: Store, socket: Path, handler: Handler, **options: Any) -> AsyncIterator[Any]:
    async with engine_at(socket, handler) as fake:
        gateway = gateway_for(store, **options)
        try:
            async with asyncio.timeout(20):
                yield gateway, fake
        finally:
            await gateway.close()


async def ask(gateway: Gateway, path: str = CHAT, client: Client | None = None, **body: Any) -> Client:
    client = client or Client()
    asked = {"messages": []} if path == CHAT else {}
    await Relay(gateway, path, {"model": BASE, **asked, **body}, project="default")(
        {"type": "http"}, client.receive, client.send
    )
    return client


def only(gateway: Gateway) -> Series:
    (found,) = gateway.counts.copy()
    return found


@pytest.mark.parametrize(
    "given",
    [
        (ROLE, TOKEN, TOKEN, TOKEN, usage(7, 3), DONE),
        (ROLE + TOKEN, TOKEN + TOKEN, usage(7, 3) + DONE),
        (ROLE, TOKEN, TOKEN + TOKEN + usage(7, 3) + DONE),
    ],
)
async def test_a_stream_is_counted_and_its_client_gets_no_usage_that_it_did_not_ask_for(
    store: Store, socket: Path, engine: Engine, given: tuple[bytes, ...]
) -> None:
    async with gateway_to(store, socket, parts(*given)) as (gateway, fake):
        client = await ask(gateway, stream=True)
        assert fake.seen[0][1]["stream_options"] == {"include_usage": True}
        assert client.body == b"".join(given).replace(usage(7, 3), b"")
        counted = only(gateway)
    assert (counted.model, counted.alias, counted.requests) == (BASE, "", {(CHAT, 200): 1})
    assert (counted.prompts, counted.generated, counted.running) == (7, 3, 0)
    assert (sum(counted.first.counts), sum(counted.between.counts), sum(counted.seconds.counts)) == (1, 2, 1)


END = event(id="1", choices=[{"delta": {"content": "."}, "finish_reason": "stop"}])
OTHER_END = event(id="1", choices=[{"index": 1, "delta": {"content": "!"}, "finish_reason": "length"}])
TOLD = event(
    id="1", choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3}, system_fingerprint="vllm-1"
)


def stamped(end: bytes) -> bytes:
    return end.replace(b"}\n\n", b',"system_fingerprint":"vllm-1"}\n\n')


@pytest.mark.parametrize(
    ("given", "gets"),
    [
        ((ROLE, TOKEN, END, TOLD, DONE), (ROLE, TOKEN, stamped(END), DONE)),
        ((ROLE, TOKEN + END, TOLD + DONE), (ROLE, TOKEN, stamped(END), DONE)),
        ((ROLE + TOKEN + END + TOLD + DONE,), (ROLE, TOKEN, stamped(END), DONE)),
        (
            (ROLE, TOKEN, END, TOKEN, OTHER_END, TOLD, DONE),
            (ROLE, TOKEN, END, TOKEN, stamped(OTHER_END), DONE),
        ),
        ((ROLE, TOKEN, END, OTHER_END + TOLD, DONE), (ROLE, TOKEN, END, stamped(OTHER_END), DONE)),
        ((ROLE, TOKEN, END, usage(7, 3), DONE), (ROLE, TOKEN, END, DONE)),
        ((ROLE, TOKEN, END, DONE), (ROLE, TOKEN, END, DONE)),
    ],
)
async def test_the_fingerprint_of_a_stream_is_in_its_last_event_as_without_a_usage(
    store: Store, socket: Path, engine: Engine, given: tuple[bytes, ...], gets: tuple[bytes, ...]
) -> None:
    """vLLM has it in the event with the usage, where the gateway has asked for one."""
    async with gateway_to(store, socket, parts(*given)) as (gateway, _):
        assert (await ask(gateway, stream=True)).body == b"".join(gets)
        told = await ask(gateway, stream=True, stream_options={"include_usage": True})
        assert told.body == b"".join(given)


async def test_the_first_token_is_not_the_event_with_the_role(
    store: Store, socket: Path, engine: Engine
) -> None:
    async with gateway_to(store, socket, parts(ROLE, TOKEN, DONE)) as (gateway, _):
        await ask(gateway, stream=True)
        assert only(gateway).first.sum >= 0.018


@pytest.mark.parametrize(
    "options", [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]
)
async def test_who_asks_for_the_usage_gets_it(
    store: Store, socket: Path, engine: Engine, options: dict[str, Any]
) -> None:
    given = (TOKEN, usage(7, 1), DONE)
    async with gateway_to(store, socket, parts(*given)) as (gateway, fake):
        client = await ask(gateway, TEXT, stream=True, stream_options=options)
        assert fake.seen[0][1]["stream_options"] == options
        assert client.body == b"".join(given)
        assert (only(gateway).prompts, only(gateway).generated) == (7, 1)
        assert sum(only(gateway).between.counts) == 0


async def test_other_options_of_streams_are_left(store: Store, socket: Path, engine: Engine) -> None:
    async with gateway_to(store, socket, parts(TOKEN, DONE)) as (gateway, fake):
        await ask(gateway, stream=True, stream_options={"continuous_usage_stats": True, "new": 1})
        assert fake.seen[0][1]["stream_options"] == {"include_usage": True, "new": 1}


@pytest.mark.parametrize("options", [5, [], "x"])
async def test_wrong_options_are_left_for_the_engine_to_refuse(
    store: Store, socket: Path, engine: Engine, options: Any
) -> None:
    async with gateway_to(store, socket, parts(TOKEN, DONE)) as (gateway, fake):
        await ask(gateway, stream=True, stream_options=options)
        assert fake.seen[0][1]["stream_options"] == options


async def test_events_of_responses_are_counted_by_their_type(
    store: Store, socket: Path, engine: Engine
) -> None:
    def typed(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + event(type=kind, **more)

    end = {"usage": {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2}}
    given = (
        typed("response.created"), typed("response.output_item.added"), typed("response.output_text.delta", delta="a"),
        typed("response.output_text.delta", delta="b"), typed("response.completed", response=end),
    )  # fmt: skip
    async with gateway_to(store, socket, parts(*given)) as (gateway, _):
        client = await ask(gateway, RESPONSES, input="x", stream=True)
        counted = only(gateway)
    assert client.body == b"".join(given)
    assert (counted.prompts, counted.generated) == (5, 2)
    assert (sum(counted.first.counts), sum(counted.between.counts)) == (1, 1)
    assert counted.first.sum >= 0.03, "not the first event, which comes before any token"


async def test_an_answer_in_one_piece_has_its_tokens_and_no_times_between(
    store: Store, socket: Path, engine: Engine
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        told = {"prompt_tokens": 14, "total_tokens": 25, "completion_tokens": 11}
        said = {"choices": [{"message": {"content": '"usage":{"prompt_tokens":999}'}}], "usage": told}
        return web.json_response(said, dumps=lambda value: json.dumps(value, separators=(",", ":")))

    async with gateway_to(store, socket, handler) as (gateway, _):
        await ask(gateway)
        counted = only(gateway)
    assert (counted.prompts, counted.generated, sum(counted.first.counts)) == (14, 11, 0)


async def test_a_client_that_leaves_is_counted_with_what_it_got(
    store: Store, socket: Path, engine: Engine
) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, TOKEN, TOKEN)
        await asyncio.sleep(60)
        return response

    async with gateway_to(store, socket, handler) as (gateway, _):
        client = Client()
        asked = asyncio.create_task(ask(gateway, TEXT, client, stream=True))
        await client.got_something.wait()
        await asyncio.sleep(0.05)
        assert only(gateway).running == 1
        client.leaves.set()
        await asked
        counted = only(gateway)
    assert (counted.requests, counted.generated, counted.running) == ({(TEXT, 499): 1}, 2, 0)


async def test_a_stream_that_breaks_off_has_the_status_of_its_error(
    store: Store, socket: Path, engine: Engine
) -> None:
    async with gateway_to(store, socket, parts(TOKEN)) as (gateway, _):
        client = await ask(gateway, stream=True)
        assert client.status == 200
        assert only(gateway).requests == {(CHAT, 503): 1}


async def test_errors_of_the_engine_are_counted_by_status(store: Store, socket: Path, engine: Engine) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    async with gateway_to(store, socket, handler) as (gateway, _):
        await ask(gateway)
        assert only(gateway).requests == {(CHAT, 400): 1}


async def test_an_alias_is_counted_beside_the_model_that_answers(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({})
    store.engines.set_residency(engine, "a" * 64, Residency.LOADED)
    store.aliases.put("bot", [AliasTarget(TUNED, 1)])
    async with gateway_to(store, socket, parts(TOKEN, DONE)) as (gateway, _):
        await ask(gateway, model="bot", stream=True)
        assert (only(gateway).model, only(gateway).alias) == (TUNED, "bot")


async def test_a_name_that_nobody_has_becomes_no_label(store: Store, socket: Path, engine: Engine) -> None:
    async with gateway_to(store, socket, parts(DONE)) as (gateway, _):
        for name in ("nobody", "x" * 300, '"} 1\nevil 2', OTHER):
            client = await ask(gateway, model=name)
            assert client.status == 404
        counted = only(gateway)
    assert (counted.model, counted.alias, counted.requests) == ("", "", {(CHAT, 404): 4})


async def test_a_model_that_exists_is_named_although_it_cannot_answer(
    store: Store, socket: Path, engine: Engine, publish_model: Publish
) -> None:
    publish_model({"desired": "unloaded"})
    async with gateway_to(store, socket, parts(DONE), load_on_demand=False) as (gateway, _):
        await ask(gateway, model=TUNED)
        assert (only(gateway).model, only(gateway).requests) == (TUNED, {(CHAT, 400): 1})


def end(counts: Counts, model: str, alias: str = "") -> Generation:
    generation = counts.begin(CHAT)
    generation.named(model, alias)
    generation.end(200)
    return generation


def test_names_beyond_the_limit_are_counted_together_until_others_are_gone() -> None:
    counts = Counts(2)
    for model in ("a", "b", "c", "d", "a"):
        end(counts, model)
    end(counts, "c", "alias")
    found = {(one.model, one.alias): one.requests.total() for one in counts.copy()}
    assert found == {("a", ""): 2, ("b", ""): 1, (OTHER, ""): 2, (OTHER, OTHER): 1}
    counts.forget({"a", "c"}, since=0.0)
    end(counts, "c")
    assert ("c", "") not in {(one.model, one.alias) for one in counts.copy()}, "b was used since"
    counts.forget({"a", "c"}, since=time.monotonic())
    end(counts, "c")
    assert {(one.model, one.alias) for one in counts.copy()} >= {("a", ""), ("c", "")}
    assert "b" not in {one.model for one in counts.copy()}


def test_a_request_is_ended_once() -> None:
    counts = Counts()
    end(counts, "a").end(500)
    (found,) = counts.copy()
    assert (found.requests, found.running) == ({(CHAT, 200): 1}, 0)


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 7.5)


def test_an_event_costs_microseconds() -> None:
    counts, rounds = Counts(), 20_000
    generation = counts.begin(CHAT)
    generation.named("tiny", "")
    chunk = TOKEN * 1
    began = time.process_time()
    for _ in range(rounds):
        generation.part(chunk)
    assert (time.process_time() - began) / rounds < 20e-6, "1 us on an idle machine"
