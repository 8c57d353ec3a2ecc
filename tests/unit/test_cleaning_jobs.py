"""The kind `cleaning` in the scheduler: its process, what it publishes, and how it ends where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunewright.cleaner.folder import cleaned_file
from tunewright.config import Settings
from tunewright.errors import InvalidRequest
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds.cleaning.models import AGAINST, SOURCE_FILE, CleaningRequest, CleaningResult
from tunewright.kinds.data import DataOptions
from tunewright.kinds.products import name_of_made_file
from tunewright.registry.workspace import Workspace
from tunewright.rows.cleaning.counts import CleaningReport
from tunewright.rows.formats import read_rows
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.jobs import JobRunner
from tunewright.store.records import FileRecord, Job, JobInput, NewJob
from tunewright.store.states import FileStatus, JobState
from tunewright.store.store import Store

HTML = {"type": "html"}
DUPLICATES = {"type": "duplicates"}
ROWS = [
    {"prompt": "2+2=", "completion": "<b>4</b>"},
    {"prompt": "3+3=", "completion": "6"},
    {"prompt": "2+2=", "completion": "4"},
]


class World:
    """A scheduler of jobs without any engine: cleanings need none."""

    def __init__(
        self, store: Store, data: Workspace, lifeline: int, devices: Sequence[str] = ("cpu",)
    ) -> None:
        self.store, self.data = store, data
        settings = Settings(data_dir=data.path, step_timeout=60.0)
        engines: Any = SimpleNamespace(base=lambda name: None, available_bases=list, names=list)
        forks = ForkServer(data.run, lifeline, 60)
        self.runner = JobRunner(
            settings, store, data, engines, lifeline, Devices(list(devices), store), forks
        )

    def file(self, id: str, rows: Sequence[dict[str, Any]] | bytes = ROWS, name: str = "train.jsonl") -> str:
        """An uploaded file whose check is not done."""
        content = (
            rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        )
        self.data.file(id).write_bytes(content)
        self.store.files.add(
            id=id, filename=name, purpose="fine-tune", size=len(content),
            sha256=hashlib.sha256(content).hexdigest(), created_at=1.0, status=FileStatus.UPLOADED,
        )  # fmt: skip
        return id

    def create(self, file: str, *steps: dict[str, Any], against: str | None = None, **data: Any) -> str:
        record = self.store.files.get(file)
        assert record is not None
        request = CleaningRequest.model_validate(
            {
                "filename": record.filename,
                "sha256": record.sha256,
                "steps": steps,
                "data": DataOptions(**data),
            }
        )
        inputs = [JobInput(SOURCE_FILE, file_id=file)]
        inputs += [JobInput(AGAINST, file_id=against)] if against else []
        new = NewJob(kind="cleaning", base=NO_BASE, request=request, seed=0, inputs=tuple(inputs))
        return self.store.jobs.create(new).id

    def job(self, id: str) -> Job:
        found = self.store.jobs.get(id, "cleaning")
        assert found is not None
        return found

    def until(self, condition: Callable[[], object], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.runner.tick()
            time.sleep(0.02)

    def has_begun(self, id: str) -> bool:
        """Whether a part of its rows is written."""
        work = JobFolder(self.data.job(id)).work
        return any(path.exists() and path.stat().st_size for path in work.glob(".*"))

    def ends(self, id: str) -> Job:
        self.until(lambda: self.job(id).state.is_final and not self.job(id).devices)
        return self.job(id)

    def succeeds(self, id: str) -> tuple[FileRecord, CleaningReport]:
        done = self.ends(id)
        assert done.state is JobState.SUCCEEDED, done.error
        assert isinstance(done.result, CleaningResult)
        assert isinstance(done.report, CleaningReport)
        record = self.store.files.get(done.result.file or "")
        assert record is not None
        return record, done.report

    def fails(self, id: str) -> tuple[str, str]:
        failed = self.ends(id)
        assert failed.state is JobState.FAILED
        assert failed.error is not None
        return failed.error.code, failed.error.message

    def messages(self, id: str) -> list[str]:
        events = self.store.jobs.events(id, after=None, limit=1000, ascending=True)[0]
        assert {event.id.partition("-")[0] for event in events} == {"cleanevent"}
        return [event.message for event in events]


@pytest.fixture
def lifeline() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(writing)  # ends what is left
    os.close(reading)


@pytest.fixture
def world(store: Store, data: Workspace, lifeline: int) -> World:
    return World(store, data, lifeline)


def many(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{number % (count // 2)} + 1 =", "completion": "<i>more</i>"} for number in range(count)
    ]


def test_the_product_is_a_new_file_with_its_lineage(world: World) -> None:
    id = world.create(world.file("file-a"), HTML, DUPLICATES)
    record, report = world.succeeds(id)
    assert [row for _, row in read_rows(world.data.file(record.id))] == [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": "3+3=", "completion": "6"},
    ]
    content = world.data.file(record.id).read_bytes()
    assert (record.filename, record.purpose) == ("train-cleaned.jsonl", "fine-tune")
    assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert record.status is FileStatus.PROCESSED
    assert record.report is not None
    assert (record.report["rows"], record.report["format"]) == (2, "prompt_completion")
    source, made = world.store.files.get("file-a"), record.lineage
    assert source is not None
    assert made is not None
    assert (made.cleaning, made.file, made.filename) == (id, "file-a", "train.jsonl")
    assert (made.sha256, made.rows_before, made.rows_after) == (source.sha256, 3, 2)
    assert made.steps == [HTML, DUPLICATES]
    assert [(step.step, step.changed, step.removed) for step in report.steps] == [
        ("html", 1, 0),
        ("duplicates", 0, 1),
    ]
    messages = world.messages(id)
    assert messages[:2] == [
        f"Created cleaning: {id}",
        "Files validated (file 3 rows); moving job to queued state",
    ]
    assert messages[-2:] == [f"New file created: {record.id}", "The job has successfully completed"]
    assert not JobFolder(world.data.job(id)).work.exists()


def test_it_needs_no_engine_and_no_gpu(store: Store, data: Workspace, lifeline: int) -> None:
    world = World(store, data, lifeline, devices=("cuda:0",))
    id = world.create(world.file("file-a"), HTML)
    world.succeeds(id)
    assert "Cleaning started on cpu" in world.messages(id)


def test_rows_that_the_other_file_has_are_removed(world: World) -> None:
    other = world.file("file-valid", [{"prompt": "3+3=", "completion": "6"}])
    leaks = {"type": "leaks", "against": other, "similarity": None}
    record, report = world.succeeds(world.create(world.file("file-a"), leaks, against=other))
    assert [step.removed for step in report.steps] == [1]
    assert record.lineage is not None
    assert record.lineage.steps == [leaks]


def test_columns_are_read_as_was_asked(world: World) -> None:
    file = world.file("file-a", b"question,answer\n2+2=,4\n2+2=,4\n", "sums.csv")
    columns = {"prompt": "question", "completion": "answer"}
    record, _ = world.succeeds(world.create(file, DUPLICATES, columns=columns))
    assert world.data.file(record.id).read_text() == '{"prompt": "2+2=", "completion": "4"}\n'
    assert record.filename == "sums-cleaned.jsonl"


@pytest.mark.parametrize(
    ("content", "steps", "code", "words"),
    [
        (ROWS, [{"type": "length", "min_answer": 99}], "nothing_left", "no row is left of 3"),
        (b"{}\n", [HTML], "invalid_file", "line 1"),
        (b"\x00\x01", [HTML], "invalid_file", "a binary file"),
        (ROWS, [{"type": "balance", "by": "colour"}], "invalid_steps", "no row has it"),
        (ROWS, [{"type": "language", "keep": ["xx"]}], "invalid_steps", "does not know xx"),
    ],
)
def test_what_cannot_be_cleaned_says_why(
    world: World, content: Any, steps: list[dict[str, Any]], code: str, words: str
) -> None:
    id = world.create(world.file("file-a", content), *steps)
    found, message = world.fails(id)
    assert found == code
    assert words in message
    assert [file.id for file, _ in world.store.files.last_used()] == ["file-1", "file-a"]
    if code == "nothing_left":
        report = world.job(id).report
        assert isinstance(report, CleaningReport)
        assert [(step.step, step.removed) for step in report.steps] == [("length", 3)]


def test_the_other_file_is_named_where_it_cannot_be_used(world: World) -> None:
    other = world.file("file-valid", b"[1]\n")
    id = world.create(world.file("file-a"), {"type": "leaks", "against": other}, against=other)
    assert world.fails(id)[0] == "invalid_against"


def test_too_little_memory_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.kinds.cleaning.kind.MEMORY", 2**25)
    row = {"prompt": "2+2=", "completion": "four " * 2_500_000}
    code, message = world.fails(world.create(world.file("file-a", [row]), HTML, DUPLICATES))
    assert code == "out_of_memory"
    assert "A cleaning may take 0.0312 GiB: leave out near_duplicates" in message


def test_killed_it_is_started_again_and_makes_the_same_file(world: World) -> None:
    rows = many(8_000)
    steps = [HTML, DUPLICATES, {"type": "balance", "by": "answer"}]
    undisturbed, first = world.succeeds(world.create(world.file("file-a", rows), *steps))
    id = world.create(world.file("file-b", rows), *steps)
    world.until(lambda: world.has_begun(id))
    pid = world.runner.processes[id].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    record, report = world.succeeds(id)
    assert (record.sha256, report) == (undisturbed.sha256, first)
    assert "The cleaner ended with signal 9; starting it again from its last saved row" in world.messages(id)


def test_paused_it_makes_room_and_resumed_it_goes_on_where_it_was(world: World) -> None:
    rows, steps = many(30_000), [DUPLICATES, {"type": "balance", "by": "answer"}]
    undisturbed, first = world.succeeds(world.create(world.file("file-a", rows), *steps))
    id = world.create(world.file("file-b", rows), *steps)
    world.until(lambda: world.has_begun(id))
    world.store.jobs.pause(id)
    world.until(lambda: world.job(id).state is JobState.PAUSED)
    assert world.job(id).devices == ()
    world.store.jobs.resume(id)
    record, report = world.succeeds(id)
    assert (record.sha256, report) == (undisturbed.sha256, first)
    assert any(text.startswith("Going on behind row ") for text in world.messages(id))


def test_cancelled_it_leaves_no_file(world: World) -> None:
    id = world.create(world.file("file-a", many(8_000)), DUPLICATES)
    world.until(lambda: world.has_begun(id))
    world.store.jobs.cancel(id)
    assert world.ends(id).state is JobState.CANCELLED
    assert not JobFolder(world.data.job(id)).work.exists()
    assert sorted(path.name for path in world.data.files.iterdir()) == ["file-a"]


def test_published_twice_after_a_crash_it_is_one_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler is killed when the product has its name and no row, which is then repeated."""
    id = world.create(world.file("file-a"), DUPLICATES)
    succeed, calls = world.store.jobs.succeed, []

    def crash_first(*args: Any, **values: Any) -> bool:
        calls.append(values["files"][0]["id"])
        if len(calls) == 1:
            assert world.data.file(calls[0]).is_file()
            raise OSError("killed")
        return succeed(*args, **values)

    monkeypatch.setattr("tunewright.scheduler.jobs._PUBLISH_AGAIN_AFTER", 0.1)
    monkeypatch.setattr(world.store.jobs, "succeed", crash_first)
    record, _ = world.succeeds(id)
    assert calls == [record.id, record.id]
    assert cleaned_file(JobFolder(world.data.job(id))).exists() is False


def test_cancelled_while_it_is_published_it_leaves_no_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = world.create(world.file("file-a"), DUPLICATES)
    succeed = world.store.jobs.succeed

    def cancel_first(*args: Any, **values: Any) -> bool:
        world.store.jobs.cancel(id)
        return succeed(*args, **values)

    monkeypatch.setattr(world.store.jobs, "succeed", cancel_first)
    assert world.ends(id).state is JobState.CANCELLED
    assert sorted(path.name for path in world.data.files.iterdir()) == ["file-a"]


def test_its_files_are_kept_until_it_has_ended(world: World) -> None:
    other = world.file("file-valid")
    id = world.create(world.file("file-a"), {"type": "leaks", "against": other}, against=other)
    for file in ("file-a", other):
        with pytest.raises(InvalidRequest, match=id):
            world.store.files.delete(file)
    world.store.jobs.cancel(id)
    assert world.store.files.delete("file-a")


def test_a_new_scheduler_goes_on_with_it(store: Store, data: Workspace, lifeline: int) -> None:
    """One without GPUs, say, and with other bases."""
    world = World(store, data, lifeline, devices=("cuda:0",))
    id = world.create(world.file("file-a", many(8_000)), DUPLICATES)
    world.until(lambda: world.has_begun(id))
    pid = world.runner.processes[id].pid
    world = World(store, data, lifeline)
    world.until(lambda: id in world.runner.processes)
    assert world.runner.processes[id].pid == pid
    world.succeeds(id)


def test_killed_beside_a_gpu_it_stays_on_the_cpu(store: Store, data: Workspace, lifeline: int) -> None:
    world = World(store, data, lifeline, devices=("cuda:0",))
    id = world.create(world.file("file-a", many(8_000)), DUPLICATES)
    world.until(lambda: world.has_begun(id))
    pid = world.runner.processes[id].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    world.succeeds(id)
    assert sum("started on cpu" in text for text in world.messages(id)) == 1


def test_one_runs_at_a_time(world: World) -> None:
    first, second = (world.create(world.file(f"file-{name}", many(2_000)), DUPLICATES) for name in "ab")
    world.succeeds(first)
    world.succeeds(second)
    started = [world.job(id).started_at for id in (first, second)]
    ended = world.job(first).finished_at
    assert started[0] is not None
    assert started[1] is not None
    assert ended is not None
    assert started[0] < ended <= started[1]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("train.jsonl", "train-cleaned.jsonl"),
        ("train.csv.gz", "train-cleaned.jsonl"),
        ("gsm8k.parquet", "gsm8k-cleaned.jsonl"),
        (".jsonl", ".jsonl-cleaned.jsonl"),
        ("x" * 255, "x" * 241 + "-cleaned.jsonl"),
    ],
)
def test_its_name_is_that_of_its_source(name: str, cleaned: str) -> None:
    assert name_of_made_file(name, "cleaned") == cleaned
    assert len(cleaned) <= 255


def test_the_folder_of_its_files_is_no_part_of_messages(world: World, tmp_path: Path) -> None:
    id = world.create(world.file("file-a", b"{}\n"), HTML)
    _, message = world.fails(id)
    assert str(tmp_path) not in message
