"""What names stand for is kept in memory, and yet every question is answered with what the database says by then."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from rows import Publish
from tunewright.api.gateway import lookups as module
from tunewright.api.gateway.lookups import Lookups
from tunewright.engine.leases import Drain, Leases
from tunewright.registry.aliases import AliasTarget
from tunewright.registry.workspace import Workspace
from tunewright.store.names import Named
from tunewright.store.records import Engine
from tunewright.store.sqlite_file import Changes
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

_LONGEST = 120.0
"""Seconds that a race with another process may take until it has been run often enough."""
BASE, TUNED, SHA, BOT = "tiny", "ft:tiny::1", "a" * 64, "bot"


class Counted:
    """The store's names; `reads` has the names of each transaction. While `held`, reads wait."""

    def __init__(self, store: Store) -> None:
        self._read = store.names.read
        self.reads: list[set[str]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, names: Collection[str]) -> dict[str, Named]:
        found = self._read(names)
        self.reads.append(set(names))
        assert self.go_on.wait(20)
        return found


@pytest.fixture
async def lookups(store: Store) -> AsyncIterator[Lookups[str, Named]]:
    made: Lookups[str, Named] = Lookups(store.names.read, store.database.changes())
    yield made
    made.close()


@pytest.fixture
def counted(lookups: Lookups[str, Named], store: Store) -> Counted:
    made = Counted(store)
    lookups._read_all = lambda names: made.read(names)
    return made


def flip(store: Store, target: str) -> None:
    store.aliases.put(BOT, [AliasTarget(target)])


async def target(lookups: Lookups[str, Named]) -> str | None:
    alias = (await lookups.find(BOT)).alias
    return alias.targets[0].model if alias else None


async def test_a_name_is_read_once_while_nothing_changes(
    lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    for _ in range(5):
        assert (await lookups.find(BASE)).engine is not None
        assert await lookups.find("nobody") == Named()
    assert counted.reads == [{BASE}, {"nobody"}]


async def test_each_kind_of_change_is_seen_by_the_next_question(
    store: Store, lookups: Lookups[str, Named], engine: Engine, publish_model: Publish
) -> None:
    assert await lookups.find(TUNED) == Named()
    publish_model({})
    found = await lookups.find(TUNED)
    assert (found.model, found.engine, found.held) == (store.models.get(TUNED), store.engines.get(BASE), None)
    for state in (Residency.LOADING, Residency.LOADED, Residency.DRAINING, None):
        store.engines.set_residency(engine, SHA, state)
        held = (await lookups.find(TUNED)).held
        assert (held.state if held else None) is state
    flip(store, TUNED)
    assert await target(lookups) == TUNED
    flip(store, BASE)
    assert await target(lookups) == BASE
    store.engines.set_state(BASE, EngineState.BACKOFF)
    for name in (BASE, TUNED):
        found = await lookups.find(name)
        assert found.engine is not None
        assert found.engine.state is EngineState.BACKOFF
    model = store.models.get(TUNED)
    assert model is not None
    store.models.delete(model)
    assert await lookups.find(TUNED) == Named()


async def test_an_adapter_in_an_earlier_run_of_its_engine_is_not_held(
    store: Store, lookups: Lookups[str, Named], engine: Engine, publish_model: Publish, socket: Path
) -> None:
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    assert (await lookups.find(TUNED)).held is not None
    assert engine.info is not None
    store.engines.starting(BASE, str(socket), engine.info)
    assert (await lookups.find(TUNED)).held is None


async def test_questions_at_the_same_time_are_one_read(
    lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    found = await asyncio.gather(*(lookups.find(name) for name in [BASE, "a", "b"] * 20))
    assert counted.reads == [{BASE, "a", "b"}]
    assert all(one.engine is not None for one in found[::3])


async def test_a_question_during_a_read_is_not_answered_by_it(
    store: Store, lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    """The read may have been made before the change that the question must see."""
    flip(store, "tiny")
    counted.go_on.clear()
    early = asyncio.create_task(target(lookups))
    while not counted.reads:
        await asyncio.sleep(0.01)
    store.aliases.delete(BOT)
    late = asyncio.create_task(target(lookups))
    await asyncio.sleep(0.05)
    counted.go_on.set()
    assert (await early, await late) == (BASE, None)
    assert await target(lookups) is None


async def test_what_was_read_before_a_change_is_not_kept(
    store: Store, lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    counted.go_on.clear()
    asking = asyncio.create_task(target(lookups))
    while not counted.reads:
        await asyncio.sleep(0.01)
    flip(store, BASE)
    counted.go_on.set()
    assert await asking is None, "it asked before"
    assert await target(lookups) == BASE


async def test_a_failed_read_fails_those_who_asked_and_no_others(
    store: Store,
    lookups: Lookups[str, Named],
    counted: Counted,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(names: Collection[str]) -> dict[str, Named]:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(counted, "read", fail)
        for outcome in await asyncio.gather(*(lookups.find(BASE) for _ in range(3)), return_exceptions=True):
            assert isinstance(outcome, OSError)
    assert (await lookups.find(BASE)).engine is not None


async def test_who_leaves_does_not_end_the_read_of_others(
    lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    counted.go_on.clear()
    leaving, staying = (asyncio.create_task(lookups.find(BASE)) for _ in range(2))
    while not counted.reads:
        await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.sleep(0)
    counted.go_on.set()
    assert (await staying).engine is not None
    assert leaving.cancelled()


async def test_names_are_forgotten_one_by_one_where_there_are_too_many(
    lookups: Lookups[str, Named], counted: Counted, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT", 3)
    for name in ("a", "b", "c", "d"):
        await lookups.find(name)
    counted.reads.clear()
    for name in ("b", "c", "d", "a"):
        await lookups.find(name)
    assert counted.reads == [{"a"}]


async def test_more_names_than_one_read_takes_are_all_found(
    lookups: Lookups[str, Named], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 2)
    found = await asyncio.gather(*(lookups.find(name) for name in [*map(str, range(20)), BASE]))
    assert found[-1].engine is not None


async def test_without_word_of_changes_every_question_is_read(
    store: Store, lookups: Lookups[str, Named], counted: Counted, engine: Engine
) -> None:
    """As on PostgreSQL, where a change can only be asked for over the network."""
    lookups._changes = None
    for _ in range(3):
        assert (await lookups.find(BASE)).engine is not None
    assert len(counted.reads) == 3


# the version of the database


def test_a_version_lasts_until_a_commit_and_no_longer(store: Store) -> None:
    changes = store.database.changes()
    assert changes is not None
    first = changes.version()
    assert first is not None
    store.engines.list()
    with store.database.begin():
        pass  # nothing is written
    assert changes.version() == first
    flip_before = changes.version()
    store.engines.declare([BASE])
    assert changes.version() != flip_before
    changes.close()


def test_a_connection_that_is_opened_again_has_other_versions(store: Store) -> None:
    """SQLite counts the commits that a connection has seen: two connections may have counted as many."""
    changes = store.database.changes()
    assert changes is not None
    first = changes.version()
    changes.close()
    assert changes.version() != first
    changes.close()


def test_a_database_that_cannot_be_opened_has_no_version(tmp_path: Path) -> None:
    assert Changes(tmp_path / "nothing.db").version() is None


# against other processes


def _flip_on(url: str, log: Path, stop: Event) -> None:
    """Flips the alias between two bases, and writes the name of each when its transaction has ended."""
    store = Store.open(url)
    number = 0
    with log.open("w") as file:
        while not stop.is_set():
            number += 1
            flip(store, f"base-{number % 2}")
            file.write(f"{number}\n")
            file.flush()
    store.close()


def _flips(log: Path) -> int:
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return int(lines[-1]) if lines else 0


async def test_a_flip_by_another_process_is_seen_by_every_later_question(
    store: Store, lookups: Lookups[str, Named], tmp_path: Path
) -> None:
    store.engines.declare(["base-0", "base-1"])
    context = multiprocessing.get_context("spawn")
    stop, log = context.Event(), tmp_path / "flips"
    flipping = context.Process(target=_flip_on, args=(store.database.url, log, stop))
    flipping.start()
    questions, end = 0, time.monotonic() + _LONGEST
    try:
        while _flips(log) < 100 and time.monotonic() < end:
            done = _flips(log)
            alias = (await lookups.find(BOT)).alias
            assert (alias.version if alias else 0) >= done, "a flip had been answered before the question"
            questions += 1
            await asyncio.sleep(0)
    finally:
        stop.set()
        flipping.join()
    assert _flips(log) >= 100
    assert questions > 100
    assert (await lookups.find(BOT)).alias == store.aliases.get(BOT)


def _drain_on(url: str, folder: Path, gone: Path, rounds: Synchronized[int], stop: Event) -> None:
    """The engine worker: drains the adapter as residency does, and loads it again."""
    store = Store.open(url)
    engine = store.engines.get(BASE)
    assert engine is not None
    while not stop.is_set():
        store.engines.set_residency(engine, SHA, Residency.DRAINING)
        unused = asyncio.run(Drain(folder).wait_unused(BASE, SHA, 20))
        assert unused is not None
        with unused:
            gone.touch()  # the engine unloads it
            store.engines.set_residency(engine, SHA, None)
        time.sleep(0.002)  # a request that comes now gets its lease, and must read that it is not loaded
        gone.unlink()  # it is loaded again
        store.engines.set_residency(engine, SHA, Residency.LOADED)
        time.sleep(0.002)
        rounds.value += 1
    store.close()


async def test_no_adapter_is_unloaded_under_a_request_that_read_it_as_loaded(
    store: Store,
    lookups: Lookups[str, Named],
    engine: Engine,
    publish_model: Publish,
    data: Workspace,
    tmp_path: Path,
) -> None:
    """The order of the gateway: the lease first, then the question, which memory may answer."""
    publish_model({})
    store.engines.set_residency(engine, SHA, Residency.LOADED)
    context = multiprocessing.get_context("spawn")
    stop, rounds, gone = context.Event(), context.Value("i", 0), tmp_path / "gone"
    draining = context.Process(target=_drain_on, args=(store.database.url, data.leases, gone, rounds, stop))
    draining.start()
    leases, used, refused, end = Leases(data.leases), 0, 0, time.monotonic() + _LONGEST

    async def request() -> None:
        nonlocal used, refused
        if not leases.take(BASE, SHA):
            refused += 1
            return
        try:
            held = (await lookups.find(TUNED)).held
            if held is None or held.state is not Residency.LOADED:
                refused += 1
                return
            for _ in range(3):
                assert not gone.exists(), "it was unloaded in the middle of a request"
                await asyncio.sleep(0.0005)
            used += 1
        finally:
            leases.give_back(BASE, SHA)

    try:
        while rounds.value < 100 and time.monotonic() < end and draining.is_alive():
            await asyncio.gather(*(request() for _ in range(4)))
            await asyncio.sleep(0)
    finally:
        stop.set()
        await asyncio.to_thread(draining.join)
    assert draining.exitcode == 0
    assert rounds.value >= 100
    assert min(used, refused) > 20


def test_what_another_event_loop_asks_is_read_for_it_alone() -> None:
    """A future of one loop is never set in another."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(names: Sequence[str]) -> dict[str, str]:
        begun.set()
        go_on.wait(10)
        return {name: name.upper() for name in names}

    lookups: Lookups[str, str] = Lookups(slow, None)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(asyncio.run, lookups.find("a"))
        assert begun.wait(10)
        second = pool.submit(asyncio.run, lookups.find("a"))
        time.sleep(0.05)
        go_on.set()
        assert (first.result(10), second.result(10)) == ("A", "A")
    assert asyncio.run(lookups.find("b")) == "B", "the first loop is closed"
