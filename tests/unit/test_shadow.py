"""Shadows: copies of requests, recorded answers, and that none of it reaches the caller."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rows import PRODUCT
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.shadow import LONGEST, Shadow
from tunewright.errors import NotFound, StorageFull
from tunewright.registry.aliases import Alias, AliasShadow, AliasTarget
from tunewright.store.shadow_answers import ShadowAnswer
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

BOT = "support-bot"
PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": BOT, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
Answers = Callable[[str, str, dict[str, Any]], Awaitable[tuple[int, bytes]]]


class Engine:
    """The shadow's model: `asked` has its requests, `answer` is what it returns or raises."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: tuple[int, bytes] | Exception = 200, b'{"text": "Hello"}'
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(
        self, model: str, path: str, body: dict[str, Any], *, payer: Payer
    ) -> tuple[int, bytes]:
        assert payer == Payer("default", source="shadow")
        self.asked.append((model, path, body))
        await self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def alias(store: Store) -> Alias:
    store.engines.declare(["tiny"])
    for number in (1, 2):
        row = {**PRODUCT, "id": f"adapter-{number}", "name": f"m{number}", "sha256": f"{number:064}"}
        store.models.register({**row, "source": "upload"})
    return store.aliases.put(BOT, [AliasTarget("m1")], AliasShadow("m2"))


def shares(store: Store, share: float) -> Alias:
    return store.aliases.put(BOT, [AliasTarget("m1")], AliasShadow("m2", share))


async def copied(
    store: Store, alias: Alias, engine: Engine, *bodies: dict[str, Any], **options: Any
) -> list[ShadowAnswer]:
    """Returns the answers recorded for copies of these requests, oldest first."""
    shadow = Shadow(store, engine, **options)
    for body in bodies:
        shadow.copy(alias, "m1", PATH, body)
    await shadow.settle()
    return list(store.shadow_answers.list(BOT)[0])[::-1]


async def test_a_copy_is_answered_by_the_shadow_and_recorded(store: Store, alias: Alias) -> None:
    engine = Engine()
    [found] = await copied(store, alias, engine, BODY)
    assert engine.asked == [("m2", PATH, BODY)]
    assert (found.alias, found.model, found.answered_by, found.path) == (BOT, "m2", "m1", PATH)
    assert (found.status, found.request, found.answer) == (200, BODY, {"text": "Hello"})
    assert found.at > alias.updated_at - 60
    assert 0 <= found.seconds < 60
    assert found.id.startswith("shadow-")


async def test_a_copy_is_not_streamed(store: Store, alias: Alias) -> None:
    engine = Engine()
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    [found] = await copied(store, alias, engine, body)
    assert engine.asked[0][2] == BODY
    assert found.request == BODY
    assert body["stream"] is True, "the request itself is"


async def test_an_alias_without_a_shadow_copies_nothing(store: Store, alias: Alias) -> None:
    plain = store.aliases.put(BOT, [AliasTarget("m1")])
    engine = Engine()
    assert await copied(store, plain, engine, BODY) == []
    assert engine.asked == []


@pytest.mark.parametrize(("share", "chance", "sent"), [(0.5, 0.49, 1), (0.5, 0.5, 0), (1.0, 0.999, 1)])
async def test_its_share_is_copied(
    store: Store, alias: Alias, share: float, chance: float, sent: int
) -> None:
    engine = Engine()
    await copied(store, shares(store, share), engine, BODY, chance=lambda: chance)
    assert len(engine.asked) == sent


async def test_its_share_is_kept_over_many(store: Store, alias: Alias) -> None:
    engine = Engine()
    bodies = [{"n": n} for n in range(400)]
    await copied(store, shares(store, 0.25), engine, *bodies, chance=random.Random(7).random, at_once=400)
    assert 70 < len(engine.asked) < 130


async def test_too_many_at_once_are_dropped_and_counted(
    store: Store, alias: Alias, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    engine.may_answer.clear()
    shadow = Shadow(store, engine, at_once=16)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            shadow.copy(alias, "m1", PATH, BODY)
        await asyncio.sleep(0)
        assert len(engine.asked) == 16
        engine.may_answer.set()
        await shadow.settle()
        shadow.copy(alias, "m1", PATH, BODY)
        await shadow.settle()
        assert len(engine.asked) == 17, "there is room again"
    assert shadow.dropped == {BOT: 4}
    assert len(store.shadow_answers.list(BOT)[0]) == 17
    assert len(caplog.records) == 1, "logged once, not for each"


async def test_copying_does_not_wait(store: Store, alias: Alias) -> None:
    engine = Engine()
    engine.may_answer.clear()
    shadow = Shadow(store, engine)
    shadow.copy(alias, "m1", PATH, BODY)
    await asyncio.sleep(0.01)
    assert engine.asked
    await shadow.close()
    assert len(shadow._tasks) == 0
    assert store.shadow_answers.list(BOT)[0] == []


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (NotFound("No such model: 'm2'.", code="model_not_found"), 404, "model_not_found"),
        (RuntimeError("a bug"), 500, "internal_error"),
        ((503, b'{"error": {"code": "engine_unavailable"}}'), 503, "engine_unavailable"),
    ],
)
async def test_what_goes_wrong_is_recorded_and_stays_here(
    store: Store, alias: Alias, answer: Any, status: int, code: str
) -> None:
    engine = Engine()
    engine.answer = answer
    [found] = await copied(store, alias, engine, BODY)
    assert (found.status, found.answer["error"]["code"]) == (status, code)


async def test_a_shadow_that_takes_too_long_is_given_up(store: Store, alias: Alias) -> None:
    engine = Engine()
    engine.may_answer.clear()
    [found] = await copied(store, alias, engine, BODY, timeout=0.01)
    assert (found.status, found.answer["error"]["code"]) == (504, "request_timeout")


async def test_a_record_that_fails_stays_here(
    store: Store, alias: Alias, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageFull("The disk is full.")

    monkeypatch.setattr(type(store.shadow_answers), "add", full)
    assert await copied(store, alias, Engine(), BODY) == []
    assert "could not be recorded: The disk is full." in caplog.text


async def test_what_is_long_is_cut(store: Store, alias: Alias) -> None:
    engine = Engine()
    long = "x" * LONGEST
    engine.answer = 200, json.dumps({"text": long}).encode()
    fits = {"model": BOT, "prompt": "x" * (LONGEST - len(json.dumps({"model": BOT, "prompt": ""})))}
    [whole] = await copied(store, alias, engine, fits)
    _, cut = await copied(store, alias, engine, {"model": BOT, "prompt": long})
    assert whole.request == fits
    assert cut.request == json.dumps({"model": BOT, "prompt": long})[:LONGEST]
    assert len(cut.request) == len(cut.answer) == LONGEST
    assert cut.answer.startswith('{"text": "xxx')


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"plain text", "plain text"),
        (b"\xff", "\ufffd"),
        (b"", ""),
        (b'{"logprob": NaN}', '{"logprob": NaN}'),
        (b"[" * 100_000, "[" * LONGEST),
    ],
)
async def test_an_answer_that_is_no_json_is_text(
    store: Store, alias: Alias, answer: bytes, kept: str
) -> None:
    engine = Engine()
    engine.answer = 200, answer
    assert [found.answer for found in await copied(store, alias, engine, BODY)] == [kept]


async def test_a_copy_of_an_alias_that_is_deleted_is_forgotten(store: Store, alias: Alias) -> None:
    store.aliases.delete(BOT)
    assert await copied(store, alias, Engine(), BODY) == []
