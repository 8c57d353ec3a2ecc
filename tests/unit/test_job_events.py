"""A trainer's events reach the store once: incomplete lines wait, repeated steps are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rows import create_job, resolved
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.scheduler.events import take_in_events
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingResult, TrainingSpec

pytestmark = pytest.mark.each_database


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    (tmp_path / "job").mkdir()
    return JobFolder(tmp_path / "job")


@pytest.fixture
def job(store: Store) -> Job:
    created = create_job(store)
    store.jobs.mark_valid(created.id, resolved().model_dump(), "fine")
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    return claimed


def take_in(store: Store, job: Job, folder: JobFolder) -> Job:
    current = store.jobs.get(job.id)
    assert current is not None
    take_in_events(store, current, folder)
    after = store.jobs.get(job.id)
    assert after is not None
    return after


def messages(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id, after=None, limit=100, ascending=True)[0]]


def step(log: EventLog, number: int, loss: float = 1.0) -> None:
    log.metrics(f"Step {number}", {"step": number, "total_steps": 9, "train_loss": loss})


# reading


def test_a_torn_last_line_waits_for_its_rest(folder: JobFolder) -> None:
    first, second = b'{"type": "message", "n": 1}\n', b'{"type": "message", "n": 2}\n'
    for cut in range(len(second)):
        folder.events_file.write_bytes(first + second[:cut])
        events, offset = folder.read_events(0)
        assert [event["n"] for event in events] == [1]
        assert offset == len(first)
        folder.events_file.write_bytes(first + second)
        events, offset = folder.read_events(offset)
        assert [event["n"] for event in events] == [2]
        assert offset == len(first + second)


def test_before_the_first_event_there_is_nothing(folder: JobFolder) -> None:
    assert folder.read_events(0) == ([], 0)


def test_half_a_line_of_a_killed_trainer_is_passed_over(folder: JobFolder) -> None:
    folder.events_file.write_bytes(b'{"type": "message", "message": "cut he')
    EventLog(folder).message("on again")
    events, offset = folder.read_events(0)
    assert [event["message"] for event in events] == ["on again"]
    assert offset == folder.events_file.stat().st_size


def test_a_text_with_a_newline_stays_one_line(folder: JobFolder) -> None:
    EventLog(folder).message("a\nb\u2028c\x85d")
    assert [event["message"] for event in folder.read_events(0)[0]] == ["a\nb\u2028c\x85d"]


def test_a_metric_that_is_no_number_is_refused(folder: JobFolder) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        EventLog(folder).metrics("x", {"loss": float("nan")})


# storing


def test_events_arrive_once_and_in_order(store: Store, job: Job, folder: JobFolder) -> None:
    log = EventLog(folder)
    before = len(messages(store, job))
    log.message("begin")
    step(log, 1)
    job = take_in(store, job, folder)
    step(log, 2)
    job = take_in(store, job, folder)
    job = take_in(store, job, folder)
    assert messages(store, job)[before:] == ["begin", "Step 1", "Step 2"]
    assert (job.last_step, job.events_offset) == (2, folder.events_file.stat().st_size)
    assert job.progress is not None
    assert job.progress.step == 2


def test_a_resumed_trainer_repeats_steps_unheard(store: Store, job: Job, folder: JobFolder) -> None:
    log = EventLog(folder)
    for number in (1, 2, 3):
        step(log, number)
    job = take_in(store, job, folder)
    again = EventLog(folder)
    for number in (2, 3, 4):
        step(again, number, loss=0.5)
    job = take_in(store, job, folder)
    metrics = [e.data for e in store.jobs.events(job.id, after=None, limit=99, ascending=True)[0] if e.data]
    assert [data["step"] for data in metrics] == [1, 2, 3, 4]
    assert [data["train_loss"] for data in metrics] == [1.0, 1.0, 1.0, 0.5]


def test_repeats_within_one_reading_are_passed_over_too(store: Store, job: Job, folder: JobFolder) -> None:
    log = EventLog(folder)
    for number in (1, 2, 1, 2, 3):
        step(log, number)
    job = take_in(store, job, folder)
    assert [m for m in messages(store, job) if m.startswith("Step")] == ["Step 1", "Step 2", "Step 3"]


def test_a_repeated_step_does_not_set_the_progress_back(store: Store, job: Job, folder: JobFolder) -> None:
    log = EventLog(folder)
    step(log, 5)
    job = take_in(store, job, folder)
    step(log, 4)
    job = take_in(store, job, folder)
    assert job.progress is not None
    assert job.progress.step == 5


def test_an_event_keeps_the_time_it_was_written(store: Store, job: Job, folder: JobFolder) -> None:
    line = {"type": "message", "level": "info", "message": "old", "created_at": 12.0}
    folder.events_file.write_text(json.dumps(line) + "\n")
    take_in(store, job, folder)
    assert store.jobs.events(job.id, after=None, limit=1)[0][0].created_at == 12.0


def test_what_arrives_after_the_end_is_kept(store: Store, job: Job, folder: JobFolder) -> None:
    store.jobs.cancel(job.id)
    EventLog(folder).message("last words")
    job = take_in(store, job, folder)
    assert messages(store, job)[-1] == "last words"
    assert job.state is JobState.CANCELLED


# the folder's other files

SPEC: dict[str, Any] = {
    "job_id": "ftjob-1", "base_name": "tiny", "base_path": "/m", "training_file": "/f", "seed": 1, "device": "cpu",
    "tuning": resolved().model_dump(),
}  # fmt: skip


def test_a_spec_comes_back_as_it_was(folder: JobFolder) -> None:
    spec = TrainingSpec(**SPEC)
    folder.write_spec(spec)
    assert folder.read_spec(TrainingSpec) == spec


def test_a_spec_with_an_unknown_field_is_refused(folder: JobFolder) -> None:
    folder.spec_file.write_text(json.dumps({**SPEC, "surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        folder.read_spec(TrainingSpec)


def test_a_torn_result_is_no_result(folder: JobFolder) -> None:
    assert folder.read_result(TrainingResult) is None
    folder.write_result(TrainingResult(status="succeeded"))
    text = folder.result_file.read_text()
    assert folder.read_result(TrainingResult) is not None
    folder.result_file.write_text(text[:-3])
    assert folder.read_result(TrainingResult) is None


def test_only_complete_checkpoints_count_newest_first(folder: JobFolder) -> None:
    for name, complete in (("step-2", True), ("step-10", True), ("step-11", False), ("step-x", True)):
        path = folder.checkpoints / name
        path.mkdir(parents=True)
        if complete:
            (path / "complete.json").write_text("{}")
    assert [number for number, _ in folder.complete_checkpoints()] == [10, 2]
