"""The places of an engine: how callers share them, and that none is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Client, engine_at, gateway_for, say_hello
from rows import engine_info
from tunewright.api.gateway.proxy import Relay
from tunewright.api.gateway.turns import BATCHES, Caller, Line, caller_of, sequences
from tunewright.engine.batches import most_sequences
from tunewright.engine.command import EngineOptions
from tunewright.errors import TooManyRequests
from tunewright.store.records import Engine
from tunewright.store.states import EngineState
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

BATCH, CHAT_USER = Caller("10.0.0.1"), Caller("10.0.0.2")
CHAT = "/v1/chat/completions"


class Run:
    """Requests at a line, each of which runs until `end` is called; `began` has them in the order of their turns."""

    def __init__(self, places: int, most: int = 10_000) -> None:
        self.line = Line("tiny", most, places)
        self.began: list[Caller] = []
        self._ends: list[asyncio.Event] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, caller: Caller, number: int = 1, size: int = 1) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._run(caller, size)) for _ in range(number)]
        self.tasks += tasks
        await asyncio.sleep(0)
        return tasks

    async def _run(self, caller: Caller, size: int) -> None:
        taken = await self.line.take(caller, size)
        end = asyncio.Event()
        self.began.append(caller)
        self._ends.append(end)
        try:
            await end.wait()
        finally:
            self.line.give_back(taken, caller)

    async def end(self, number: int = 1) -> None:
        """End those that run the longest, one after the other."""
        for _ in range(number):
            self._ends.pop(0).set()
            for _ in range(4):
                await asyncio.sleep(0)

    async def end_all(self) -> None:
        while self._ends:
            await self.end()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_the_first_request_of_a_caller_goes_before_the_thousand_of_another() -> None:
    run = Run(places=4)
    await run.ask(BATCH, 1000)
    assert len(run.began) == 4
    await run.ask(CHAT_USER)
    await run.end(2)
    assert CHAT_USER in run.began[4:6], "after at most one more of the other"
    await run.end_all()
    assert len(run.began) == 1001


async def test_callers_that_all_wait_get_equal_shares() -> None:
    run = Run(places=2)
    callers = [Caller(f"10.0.0.{n}") for n in range(4)]
    for caller, number in zip(callers, (300, 50, 50, 50), strict=True):
        await run.ask(caller, number)
    await run.end(160)
    shares = [run.began[2:162].count(caller) for caller in callers]
    assert max(shares) - min(shares) <= 1, shares
    await run.end_all()


async def test_many_names_take_no_share_of_another_address() -> None:
    run = Run(places=1)
    for n in range(100):
        await run.ask(Caller("10.0.0.1", f"user-{n}"), 2)
    await run.ask(CHAT_USER, 3)
    await run.end(7)
    assert run.began[1:8].count(CHAT_USER) == 3
    await run.end_all()


async def test_the_users_of_an_address_share_it() -> None:
    run = Run(places=1)
    one, other = Caller("10.0.0.1", "one"), Caller("10.0.0.1", "other")
    await run.ask(one, 100)
    await run.ask(other, 5)
    await run.end(11)
    assert run.began[1:12].count(other) == 5
    await run.end_all()


async def test_a_share_is_counted_in_sequences() -> None:
    run = Run(places=8)
    await run.ask(BATCH, 50, size=4)
    await run.ask(CHAT_USER, 50)
    await run.end(30)
    began = run.began[2:]
    assert 3 <= began.count(CHAT_USER) / began.count(BATCH) <= 5
    await run.end_all()


async def test_who_asked_little_until_now_is_owed_nothing_for_it() -> None:
    run = Run(places=1)
    await run.ask(BATCH, 200)
    await run.end(50)
    await run.ask(CHAT_USER, 50)
    await run.end(40)
    assert 19 <= run.began[51:].count(CHAT_USER) <= 21
    await run.end_all()


async def test_a_request_with_more_sequences_than_places_has_its_turn() -> None:
    run = Run(places=4)
    await run.ask(BATCH, 6)
    await run.ask(CHAT_USER, 1, size=100)
    await run.end(5)
    assert CHAT_USER in run.began
    await run.end_all()
    assert await run.line.take(BATCH, 4) == 4, "all places are free"


@pytest.mark.parametrize("places", [5, 17])
async def test_no_place_is_lost_whoever_leaves_and_whenever(places: int) -> None:
    chance = random.Random(3)
    line, peak, at_once = Line("tiny", 1000, places), 0, 0

    async def once(n: int) -> None:
        nonlocal peak, at_once
        caller = Caller(f"10.0.0.{n % 7}", f"user {n % 3}", f"project {n % 5 % 3}")
        size = await line.take(caller, chance.choice((1, 1, 2, 2 * places)))
        at_once += size
        peak = max(peak, at_once)
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            at_once -= size
            line.give_back(size, caller)

    tasks = [asyncio.create_task(once(n)) for n in range(600)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0.0005)
    assert sum(task.cancelled() for task in tasks) > 50
    assert (peak, at_once) == (places, 0)
    assert not line._running_of
    line._clock = lambda: time.monotonic() + 61  # when no places are kept any more
    async with asyncio.timeout(1):
        assert [await line.take(BATCH, 1) for _ in range(places)] == [1] * places
    assert not line._line
    assert not line._turn


FLOOD, QUIET = Caller("10.0.0.1", project="flood"), Caller("10.0.0.2", project="quiet")


async def test_a_project_that_floods_leaves_places_for_one_that_has_asked_lately() -> None:
    now = 1000.0
    run = Run(places=32)
    run.line._clock = lambda: now
    await run.ask(FLOOD, 100)
    assert len(run.began) == 32, "nobody else asks"
    await run.ask(QUIET)
    assert QUIET not in run.began
    await run.end()
    assert run.began[-1] == QUIET, "the next place is its"
    await run.end(7)
    assert run.line.running == 28, "four places are kept by now"
    await run.ask(QUIET, 3)
    await asyncio.sleep(0)
    assert run.began[-3:] == [QUIET] * 3, "none of them waits"
    await run.ask(QUIET)
    assert run.line.running == 31, "it has four, and is one of many now"
    await run.ask(Caller("10.0.0.3", project="third"))
    await asyncio.sleep(0)
    assert run.began[-1].project == "third"
    assert run.line.running == 32
    await run.end_all()
    await run.ask(FLOOD, 100)
    now += 61
    await run.ask(FLOOD)
    await run.end()
    assert run.line.running == 32, "the others have not asked for a minute"
    await run.end_all()


async def test_what_needs_many_places_is_not_kept_waiting_for_ever_by_those_that_need_few() -> None:
    run = Run(places=16)
    await run.ask(FLOOD, 14)
    await run.ask(QUIET, 2)
    await run.ask(FLOOD, 1, size=16)
    for _ in range(40):
        await run.ask(QUIET)
        await run.end()
        if run.line._running_of == {"flood": 16}:
            break
    assert run.line._running_of == {"flood": 16}
    await run.end_all()


async def test_two_that_leave_at_the_moment_of_their_turn_lose_no_place() -> None:
    run = Run(places=1)
    await run.ask(BATCH)
    first, second = await run.ask(BATCH, 2)
    run._ends[0].set()
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.gather(*run.tasks[1:], return_exceptions=True)
    async with asyncio.timeout(1):
        assert await run.line.take(BATCH, 1) == 1


async def test_at_the_limit_a_caller_without_any_request_is_let_in() -> None:
    line = Line("tiny", 16, 4)
    for _ in range(16):
        line.enter(BATCH)
    with pytest.raises(TooManyRequests):
        line.enter(BATCH)
    line.enter(CHAT_USER)
    with pytest.raises(TooManyRequests):
        line.enter(CHAT_USER)
    line.enter(Caller("10.0.0.3"))
    with pytest.raises(TooManyRequests):
        line.enter(Caller("10.0.0.4"))
    line.leave(CHAT_USER)
    line.enter(Caller("10.0.0.4"))


async def test_what_does_not_wait_costs_microseconds() -> None:
    line, rounds = Line("tiny", 1000, 100), 5_000
    began = time.process_time()
    for _ in range(rounds):
        line.enter(BATCH)
        line.give_back(await line.take(BATCH, 1), BATCH)
        line.leave(BATCH)
    assert (time.process_time() - began) / rounds < 50e-6  # 3 us where nothing else runs


async def test_ten_thousand_callers_are_not_remembered_for_ever() -> None:
    run = Run(places=1)
    await run.ask(BATCH, 2)
    for n in range(12_000):
        (task,) = await run.ask(Caller("10.0.0.2", str(n)))
        task.cancel()
    await asyncio.gather(*run.tasks[2:], return_exceptions=True)
    assert len(run.line._turn) <= 10_001
    await run.end_all()


@pytest.mark.parametrize(
    ("client", "body", "expected"),
    [
        (None, {}, Caller("")),
        (("10.0.0.1", 5), {"user": "ann"}, Caller("10.0.0.1", "ann")),
        (("10.0.0.1", 5), {"user": "ann", "safety_identifier": "bob"}, Caller("10.0.0.1", "bob")),
        (("10.0.0.1", 5), {"user": 7}, Caller("10.0.0.1")),
        (("2001:db8:1:2:3:4:5:6", 5), {}, Caller("2001:db8:1:2::/64")),
        (("no:address", 5), {}, Caller("no:address")),
        (("x" * 1000, 0), {"user": "y" * 1000}, Caller("x" * 64 + "...", "y" * 64 + "...")),
    ],
)
async def test_a_caller_is_an_address_and_a_name(client: Any, body: dict[str, Any], expected: Caller) -> None:
    assert caller_of({"client": client}, body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 1),
        ({"n": 4}, 4),
        ({"n": "4"}, 4),
        ({"n": 2, "prompt": ["a", "b", "c"]}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2]]}, 2),
    ],
)
async def test_sequences_are_choices_times_prompts(body: dict[str, Any], expected: int) -> None:
    assert sequences(body) == expected


@pytest.mark.parametrize(
    ("asked", "arguments", "is_deployment", "expected"),
    [
        (None, [], False, 128),
        (None, ["--max-num-seqs", "7", "--enforce-eager"], False, 7),
        (None, ["--max_num_seqs=9"], True, 9),
        (5, ["--max-num-seqs=9"], True, 5),
    ],
)
async def test_the_places_are_what_the_engine_runs_at_once(
    asked: int | None, arguments: list[str], is_deployment: bool, expected: int
) -> None:
    options = EngineOptions("cpu", max_num_seqs=asked)
    assert most_sequences(options, arguments, is_deployment=is_deployment) == expected


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(20):
        while not (found := condition()):
            await asyncio.sleep(0.005)
    return found


async def test_a_project_that_floods_from_many_addresses_gets_one_turn_of_two() -> None:
    """The bound: of any n turns in a row, each of n projects that wait has one."""
    run = Run(places=4)
    flood = [Caller(f"10.0.{number}.1", project="loud") for number in range(50)]
    for caller in flood:
        await run.ask(caller, 4)
    quiet = Caller("10.9.9.9", project="quiet")
    await run.ask(quiet, 6)
    await run.end(12)
    turns = [caller.project for caller in run.began[4:16]]
    assert turns.count("quiet") == 6, "one of two, although the other waits with 196"
    assert "loud" not in [a for a, b in pairwise(turns) if a == b], "they alternate"
    assert len({caller.address for caller in run.began[4:16] if caller.project == "loud"}) == 6
    third = Caller("10.9.9.9", project="third")
    await run.ask(third)
    await run.end(2)
    assert third in run.began[16:18]
    await run.end_all()
    assert (run.line.waiting, run.line.running, run.line._line, run.line._turn) == (0, 0, {}, {})


def test_a_project_that_has_all_requests_in_flight_leaves_the_others_their_own() -> None:
    line = Line("tiny", most=16, places=4)
    for number in range(16 + 2):  # with the reserve for addresses that have none
        line.enter(Caller(f"10.0.0.{number}", project="loud"))
    for project in ("quiet", "third"):
        for _ in range(2):
            line.enter(Caller("10.9.9.9", project=project))
        with pytest.raises(TooManyRequests):
            line.enter(Caller("10.9.9.9", project=project))
    for number in range(50, 60):
        with pytest.raises(TooManyRequests):
            line.enter(Caller(f"10.0.0.{number}", project="loud"))
    line.leave(Caller("10.9.9.9", project="quiet"))
    line.enter(Caller("10.9.9.9", project="quiet"))


@pytest.mark.parametrize(("second", "project"), [("10.0.0.2", "default"), ("10.0.0.1", "another")])
async def test_through_the_gateway_a_second_caller_waits_for_one_request(
    store: Store, socket: Path, engine: Engine, second: str, project: str
) -> None:
    """The engine gets no more than it runs at once, tokens are counted without a turn, and turns are taken."""
    assert engine.info is not None
    info = engine_info(internal_name=engine.info.internal_name, max_num_seqs=2)
    store.engines.set_state(engine.name, EngineState.READY, info=info)
    at_once = peak = 0
    order: list[str] = []
    go_on = asyncio.Semaphore(0)

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal at_once, peak
        if request.path == CHAT:
            at_once += 1
            peak = max(peak, at_once)
            order.append(body["name"])
            await go_on.acquire()
            at_once -= 1
        return await say_hello(request, body)

    gateway = gateway_for(store)

    def ask(name: str, address: str, path: str = CHAT, project: str = "default") -> asyncio.Task[None]:
        client = Client()
        relay = Relay(gateway, path, {"model": engine.name, "name": name}, project=project)
        return asyncio.create_task(
            relay({"type": "http", "client": (address, 1)}, client.receive, client.send)  # type: ignore[arg-type]
        )

    async with engine_at(socket, handler):
        batch = [ask("batch", "10.0.0.1") for _ in range(40)]
        line = await until(lambda: gateway.router._lines.get(engine.name))
        await until(lambda: len(order) == 2 and line.waiting == 38)
        await ask("chat", "10.0.0.2", "/tokenize")
        assert order == ["batch"] * 2, "what generates nothing does not wait"
        chat = ask("chat", second, project=project)
        await until(lambda: line.waiting == 39)
        for _ in range(2):
            go_on.release()
        await until(lambda: len(order) == 4)
        assert "chat" in order
        for _ in range(41):
            go_on.release()
        await asyncio.gather(chat, *batch)
        await gateway.close()
    assert peak == 2
    assert gateway.router.in_flight == {engine.name: 0}


class Batches(Run):
    """Requests of batches at the same line."""

    async def below(self, number: int = 1, size: int = 1) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._run_below(size)) for _ in range(number)]
        self.tasks += tasks
        await asyncio.sleep(0)
        return tasks

    async def _run_below(self, size: int) -> None:
        taken = await self.line.take_below(size)
        end = asyncio.Event()
        self.began.append(BATCHES)
        self._ends.append(end)
        try:
            await end.wait()
        finally:
            self.line.give_back_below(taken)


async def test_batches_leave_a_part_of_the_places_to_who_comes_next() -> None:
    run = Batches(places=16)
    await run.below(20)
    assert run.began == [BATCHES] * 12
    await run.ask(CHAT_USER, 4)
    assert run.began[12:] == [CHAT_USER] * 4, "they go on at once"
    await run.end(9)  # of batches
    assert (run.began.count(BATCHES), run.line.running) == (12 + 1, 4 + 4), (
        "beside others they have a quarter"
    )
    await run.end(4 + 3)
    for task in run.tasks:
        task.cancel()
    await asyncio.gather(*run.tasks, return_exceptions=True)
    assert run.line.running == 0


async def test_a_batch_waits_while_any_other_does() -> None:
    run = Batches(places=2)
    await run.ask(CHAT_USER, 3)
    await run.below(1)
    await run.end(1)
    assert run.began == [CHAT_USER] * 3
    await run.end(1)
    assert run.began == [*[CHAT_USER] * 3, BATCHES]
    await run.ask(CHAT_USER, 1)
    cancelled = await run.below(1)
    await run.below(1)
    cancelled[0].cancel()
    await run.end(3)
    assert run.began[4:] == [CHAT_USER, BATCHES]
    await run.end(1)
    assert run.line.running == 0


async def test_a_large_request_of_a_batch_is_not_left_out() -> None:
    run = Batches(places=8)
    await run.below(1, size=64)
    await run.below(1, size=64)
    assert (run.began, run.line.running) == ([BATCHES], 8)
    await run.end(2)
    assert run.line.running == 0
    small = Batches(places=1)
    await small.below(2)
    assert small.began == [BATCHES]
    await small.end(2)


async def test_a_request_that_has_no_room_beside_others_holds_up_nobody() -> None:
    run = Batches(places=8)
    await run.ask(CHAT_USER, 1)
    await run.below(1, size=8)
    await run.below(2)
    assert run.began == [CHAT_USER, BATCHES, BATCHES]
    await run.end(3)
    assert (run.began[3:], run.line.running) == ([BATCHES], 8), "once no others run"
    await run.end(1)


async def test_batches_do_not_count_for_the_limit_of_requests() -> None:
    line = Line("tiny", 2, 16)
    for _ in range(50):
        line.enter(BATCHES)
    line.enter(CHAT_USER)
    line.enter(CHAT_USER)
    with pytest.raises(TooManyRequests):
        line.enter(CHAT_USER)
    for caller in (*[BATCHES] * 50, CHAT_USER, CHAT_USER):
        line.leave(caller)
    assert line.in_flight == 0
