"""A kind of job that only this test defines: its class and one line are all that it takes to run, be killed, resumed,
paused, cancelled, pruned, backed up and restored."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from backups import url_of
from counting_job import Counted, CountingSpec
from rows import FILE
from tunewright.backup.create import make_backup
from tunewright.backup.restore import restore_archive
from tunewright.config import RetentionOptions, Settings, embedded_base_path
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.kinds import JobResult, kind_named, register, unregister
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated
from tunewright.registry.bases import BaseInfo, inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.jobs import JobRunner
from tunewright.scheduler.retention import Retention
from tunewright.store.records import Job, JobInput, NewJob
from tunewright.store.states import JobState
from tunewright.store.store import Store

BASE = "tunewright-tiny"
DAY = 86_400.0


class CountingRequest(BaseModel):
    to: int | str = "auto"


class CountingResolved(BaseModel):
    to: int


class CountingResult(JobResult):
    total: int = 0


class Counting(Kind):
    name, id_prefix, event_prefix, noun = "counting", "count", "countevent", "count"
    request, resolved, result = CountingRequest, CountingResolved, CountingResult
    path, module, process = "/v1/counts", "counting_job", "counter"
    imports_torch = False
    saves, on_kill = "its last number", "count less"

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        to = asked(job).to
        if to == 0:
            raise JobRefused("nothing_to_count", "there is nothing to count", "to")
        return Validated(CountingResolved(to=5 if to == "auto" else int(to)), "Counted on fingers")

    def spec(self, service: Service, job: Job, base: BaseInfo) -> CountingSpec:
        assert isinstance(job.resolved, CountingResolved)
        return CountingSpec(job_id=job.id, steps=job.resolved.to)

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_result(Counted)
        assert outcome is not None
        service.store.jobs.succeed(job.id, CountingResult(total=outcome.total))


def asked(job: Job) -> CountingRequest:
    assert isinstance(job.request, CountingRequest)
    return job.request


@pytest.fixture(autouse=True)
def kind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """Registered, and its process's module where the process finds it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    found = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", found)
    counting = Counting()
    register(counting)
    yield counting
    unregister(counting)


class World:
    def __init__(self, store: Store, data: Workspace, lifeline: int) -> None:
        self.store, self.data, self.lifeline = store, data, lifeline
        base = f"{BASE}={embedded_base_path()}"
        self.settings = Settings(base=[base], data_dir=data.path, step_timeout=30.0, device="cpu")
        info = inspect_base(self.settings.models.bases[0])
        engines: Any = SimpleNamespace(
            base=lambda name: info, available_bases=lambda: [BASE], names=lambda: [BASE]
        )
        self.runner = JobRunner(
            self.settings,
            store,
            data,
            engines,
            lifeline,
            Devices(["cpu"], store),
            ForkServer(data.run, lifeline, 60),
        )

    def create(self, to: int | str = "auto", *, waits: bool = False) -> str:
        """`waits`: before its last number, until the file `wait` is gone."""
        inputs = (JobInput("data", file_id=FILE["id"]),)
        new = NewJob(kind="counting", base=BASE, request=CountingRequest(to=to), seed=1, inputs=inputs)
        job = self.store.jobs.create(new)
        folder = self.folder(job.id)
        folder.path.mkdir(parents=True)
        if waits:
            (folder.path / "wait").touch()
        return job.id

    def folder(self, id: str) -> JobFolder:
        return JobFolder(self.data.job(id))

    def go_on(self, id: str) -> None:
        (self.folder(id).path / "wait").unlink()

    def job(self, id: str) -> Job:
        found = self.store.jobs.get(id, "counting")
        assert found is not None
        return found

    def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.runner.tick()
            time.sleep(0.02)

    def until_it_waits(self, id: str) -> None:
        self.until(lambda: self.job(id).last_step == 4)

    def ends(self, id: str) -> Job:
        self.until(lambda: self.job(id).state.is_final and not self.job(id).devices)
        return self.job(id)

    def messages(self, id: str) -> list[str]:
        events = self.store.jobs.events(id, after=None, limit=100, ascending=True)[0]
        assert {event.id.partition("-")[0] for event in events} == {"countevent"}
        return [event.message for event in events]


@pytest.fixture
def world(store: Store, data: Workspace) -> Iterator[World]:
    reading, writing = os.pipe()
    yield World(store, data, reading)
    os.close(writing)  # ends what is left
    os.close(reading)


def test_it_is_validated_runs_and_leaves_its_result(world: World) -> None:
    id = world.create()
    assert id.startswith("count-")
    done = world.ends(id)
    assert (done.state, done.result) == (JobState.SUCCEEDED, CountingResult(total=5))
    assert (asked(done).to, done.resolved) == ("auto", CountingResolved(to=5))
    assert world.messages(id) == [
        f"Created count: {id}",
        "Counted on fingers; moving job to queued state",
        "Count started on cpu",
        "Counting from 0",
        *(f"Step {step}" for step in range(1, 6)),
        "The job has successfully completed",
    ]
    assert [job.id for job in world.store.jobs.list(kind="counting", after=None, limit=9)[0]] == [id]
    assert world.store.jobs.list(kind="fine_tuning", after=None, limit=9)[0] == []
    assert not (world.data.run / "fork-server.log").exists(), "it does not need torch"


def test_it_may_refuse_a_job(world: World) -> None:
    refused = world.ends(world.create(0))
    assert refused.error is not None
    assert (refused.error.code, refused.error.param) == ("nothing_to_count", "to")


def test_killed_it_goes_on_where_it_was(world: World) -> None:
    id = world.create(waits=True)
    world.until_it_waits(id)
    pid = world.runner.processes[id].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    world.until(lambda: "Counting from 4" in world.messages(id))
    world.go_on(id)
    assert world.ends(id).result == CountingResult(total=5)
    messages = world.messages(id)
    assert "The counter ended with signal 9; starting it again from its last number" in messages
    assert [text for text in messages if text.startswith("Step")] == [f"Step {step}" for step in range(1, 6)]


def test_paused_it_frees_its_device_and_resumed_it_goes_on(world: World) -> None:
    id = world.create(waits=True)
    world.until_it_waits(id)
    world.store.jobs.pause(id)
    world.until(lambda: world.job(id).state is JobState.PAUSED)
    assert world.job(id).devices == ()
    world.go_on(id)
    world.store.jobs.resume(id)
    assert world.ends(id).result == CountingResult(total=5)


def test_cancelled_it_ends_and_leaves_no_work(world: World) -> None:
    id = world.create(waits=True)
    world.until_it_waits(id)
    process = world.runner.processes[id]
    world.store.jobs.cancel(id)
    assert world.ends(id).state is JobState.CANCELLED
    assert not process.is_alive()
    assert not world.folder(id).work.exists()


def test_its_folder_is_pruned_and_no_strangers_work(world: World) -> None:
    id = world.create()
    world.ends(id)
    options = RetentionOptions(keep_job_folders_days=1)
    retention = Retention(options, world.store, world.data, lambda: time.time() + 2 * DAY)
    stranger = world.data.job("count-stranger")
    stranger.mkdir()
    retention.round()
    assert not world.folder(id).path.exists()
    assert stranger.is_dir(), "no row says that it is over"
    assert not retention._is_our_database(), "another database's job folder"


def test_it_is_backed_up_and_goes_on_where_it_is_restored(world: World, tmp_path: Path) -> None:
    (world.data.files / FILE["id"]).write_bytes(b"x")
    id = world.create(waits=True)
    world.until_it_waits(id)

    def silent(what: str, done: int, total: int) -> None:
        pass

    made = make_backup(world.data, url_of(world.data), tmp_path / "a.tar", silent)
    world.runner.stop(5)
    restored = Workspace(tmp_path / "restored")
    restore_archive(restored, url_of(restored), made.path, replace=False, on_progress=silent)
    store = Store.open(url_of(restored))
    other = World(store, restored, world.lifeline)
    assert other.job(id).state is JobState.QUEUED
    other.go_on(id)
    assert other.ends(id).result == CountingResult(total=5)
    assert [text for text in other.messages(id) if text.startswith("Step")] == [
        f"Step {step}" for step in range(1, 6)
    ]
    store.close()


def test_two_kinds_do_not_share_a_name_or_a_prefix(kind: Counting) -> None:
    class Again(Counting):
        pass

    for change in ({"name": "other"}, {"id_prefix": "other"}):
        again = Again()
        for attribute, value in change.items():
            setattr(again, attribute, value)
        with pytest.raises(ValueError, match="registered already"):
            register(again)
    assert kind_named("counting") is kind
    unregister(kind)
    with pytest.raises(LookupError, match="counting"):
        kind_named("counting")
