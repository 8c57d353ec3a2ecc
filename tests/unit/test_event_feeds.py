"""Streams of events: one poller for each job, nothing missed, and a limit."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from rows import create_job
from tunewright.api.fine_tuning.schemas import EventObject
from tunewright.api.jobs import feeds
from tunewright.api.jobs.events import events_stream
from tunewright.api.jobs.feeds import Feeds
from tunewright.errors import TooManyRequests
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.each_database]


class Jobs:
    """The store's jobs, whose reads are counted."""

    def __init__(self, store: Store) -> None:
        self._jobs = store.jobs
        self.reads = 0

    def get(self, id: str) -> Job | None:
        self.reads += 1
        return self._jobs.get(id)

    def events(self, job_id: str, **options: Any) -> Any:
        self.reads += 1
        return self._jobs.events(job_id, **options)


class Listener:
    """A client of a stream, until it ends or `leaves` is set."""

    def __init__(self) -> None:
        self.text = ""
        self.leaves = asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        self.text += message.get("body", b"").decode()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def listen(self, context: Any, job: Job, after: str | None = None) -> None:
        response = await events_stream(context, job, after, EventObject.of)
        await response({"type": "http", "asgi": {"spec_version": "2.0"}}, self.receive, self.send)  # type: ignore[arg-type]

    @property
    def messages(self) -> list[str]:
        blocks = self.text.split("\n\n")[:-1]
        return [
            json.loads(block.split("data: ", 1)[1])["message"] for block in blocks if block.startswith("id")
        ]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_POLL", 0.02)


@pytest.fixture
def job(store: Store) -> Job:
    return create_job(store, state=JobState.RUNNING)


@pytest.fixture
def context(store: Store) -> Any:
    return SimpleNamespace(store=SimpleNamespace(jobs=Jobs(store)), feeds=Feeds())


def say(store: Store, job: Job, message: str) -> None:
    store.jobs.add_event(job, {"level": "info", "type": "message", "message": message})


def told(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id, after=None, limit=10_000, ascending=True)[0]]


async def test_a_job_is_polled_once_however_many_listen(store: Store, job: Job, context: Any) -> None:
    async def reads(number: int) -> int:
        listeners = [Listener() for _ in range(number)]
        tasks = [asyncio.create_task(listener.listen(context, job)) for listener in listeners]
        while not all(listener.text for listener in listeners):
            await asyncio.sleep(0.01)
        before = context.store.jobs.reads
        await asyncio.sleep(0.5)
        polled = int(context.store.jobs.reads - before)
        for listener in listeners:
            listener.leaves.set()
        await asyncio.gather(*tasks)
        return polled

    say(store, job, "first")
    await reads(1)
    most = 2 * 0.5 / 0.02
    assert await reads(100) <= most
    assert context.feeds.by_job == {}


async def test_listeners_that_come_together_read_the_store_once(
    store: Store, job: Job, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_POLL", 10)
    for number in range(20):
        say(store, job, str(number))
    listeners = [Listener() for _ in range(100)]
    tasks = [asyncio.create_task(listener.listen(context, job)) for listener in listeners]
    while not all(listener.text for listener in listeners):
        await asyncio.sleep(0.01)
    assert context.store.jobs.reads <= 3, "the newest events, the job, and what came meanwhile"
    assert all(listener.messages == told(store, job) for listener in listeners)
    for listener in listeners:
        listener.leaves.set()
    await asyncio.gather(*tasks)


async def test_no_listener_misses_an_event_or_gets_one_twice(
    store: Store, job: Job, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early and late ones, from the beginning or from an event on, and some further back than the memory goes."""
    monkeypatch.setattr(feeds, "_KEPT", 7)
    monkeypatch.setattr(feeds, "_PAGE", 5)
    listeners: list[tuple[Listener, str | None]] = []
    tasks = []
    for number in range(60):
        await asyncio.to_thread(say, store, job, str(number))
        if number % 6 == 0:
            known, _ = store.jobs.events(job.id, after=None, limit=100, ascending=True)
            after = known[number // 2].id if number % 12 else None
            listeners.append((Listener(), after))
            tasks.append(asyncio.create_task(listeners[-1][0].listen(context, job, after)))
        await asyncio.sleep(0.003)
    store.jobs.cancel(job.id)
    await asyncio.wait_for(asyncio.gather(*tasks), 20)
    everything, _ = store.jobs.events(job.id, after=None, limit=100, ascending=True)
    ids = [event.id for event in everything]
    for listener, after in listeners:
        assert listener.messages == told(store, job)[ids.index(after) + 1 if after else 0 :]
        assert listener.text.endswith("data: [DONE]\n\n")


async def test_streams_are_limited_and_places_are_given_back(
    store: Store, job: Job, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_MOST", 3)
    listeners = [Listener() for _ in range(3)]
    tasks = [asyncio.create_task(listener.listen(context, job)) for listener in listeners]
    while context.feeds.open < 3:
        await asyncio.sleep(0.01)
    with pytest.raises(TooManyRequests, match="3 streams of events"):
        await events_stream(context, job, None, EventObject.of)
    listeners[0].leaves.set()
    await tasks[0]
    gone = Listener()
    gone.leaves.set()
    await gone.listen(context, job)  # it has left before the first event
    assert context.feeds.open == 2
    for listener in listeners:
        listener.leaves.set()
    await asyncio.gather(*tasks)
    assert (context.feeds.open, context.feeds.by_job) == (0, {})


async def test_a_store_that_fails_cuts_the_streams_off_and_the_next_try_works(
    store: Store, job: Job, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    task = asyncio.create_task(listener.listen(context, job))
    await asyncio.sleep(0.1)

    def fails(_: str) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(context.store.jobs, "get", fails)
        await asyncio.wait_for(task, 10)
    assert "[DONE]" not in listener.text
    store.jobs.cancel(job.id)
    again = Listener()
    await asyncio.wait_for(again.listen(context, job), 10)
    assert again.text.endswith("data: [DONE]\n\n")
