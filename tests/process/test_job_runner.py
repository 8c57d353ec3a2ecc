"""The scheduler's JobRunner with real processes: a small script stands in for the trainer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rows import create_job, resolved
from tunewright.config import Settings, embedded_base_path
from tunewright.errors import Busy, DatabaseUnavailable, StorageFull
from tunewright.jobs.folder import DISK_FULL, JobFolder
from tunewright.jobs.kinds import JobError
from tunewright.kinds.fine_tuning import kind as fine_tuning
from tunewright.kinds.kind import Service
from tunewright.plan.defaults import Resolved
from tunewright.registry.bases import inspect_base
from tunewright.registry.workspace import Workspace
from tunewright.scheduler import jobs as scheduler_jobs
from tunewright.scheduler.devices import Devices
from tunewright.scheduler.fork_server import ForkServer
from tunewright.scheduler.jobs import MAX_ATTEMPTS, JobRunner
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.trainer.spec import TrainingSpec

BASE = "tunewright-tiny"
RESOLVED = resolved()
STEP = '{{"type": "metrics", "level": "info", "message": "m", "data": {{"step": {0}, "total_steps": 9}}}}'
SUCCEED = """printf '{"status": "succeeded", "trained_tokens": 7}' > "$folder/result.json" """


def step(number: int) -> str:
    """Shell code that writes the event of step `number`."""
    return f"echo '{STEP.format(number)}' >> $folder/events.jsonl; touch $folder/heartbeat"


class Scheduler:
    """JobRunner as the scheduler's process has it; `again()` is another process on the same data folder."""

    def __init__(self, store: Store, data: Workspace, settings: Settings, lifeline: int) -> None:
        self.store, self.data, self.settings, self.lifeline = store, data, settings, lifeline
        info = inspect_base(settings.models.bases[0])
        engines: Any = SimpleNamespace(
            base=lambda name: info,
            available_bases=lambda: [BASE],
            names=lambda: [BASE],
        )
        self.runner = JobRunner(
            settings,
            store,
            data,
            engines,
            lifeline,
            Devices(["cpu"], store),
            ForkServer(data.run, lifeline, 0),
        )

    def again(self) -> Scheduler:
        return Scheduler(self.store, self.data, self.settings, self.lifeline)

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            self.runner.tick()
            time.sleep(0.02)

    def job(self, id: str) -> Job:
        found = self.store.jobs.get(id)
        assert found is not None
        return found

    def steps(self, id: str) -> list[int]:
        return [e.data["step"] for e in self.events(id) if e.type == "metrics" and e.data]

    def messages(self, id: str) -> list[str]:
        return [e.message for e in self.events(id) if e.type == "message"]

    def events(self, id: str) -> list[Any]:
        return list(self.store.jobs.events(id, after=None, limit=1000, ascending=True)[0])


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the shell script that the next trainers run; `$folder` is the job's, `$run` counts its starts."""
    script = tmp_path / "trainer"
    monkeypatch.setattr(scheduler_jobs, "sys", SimpleNamespace(executable=str(script)))

    def run(text: str) -> None:
        script.write_text(
            "#!/bin/sh\nfolder=$3\necho x >> $folder/runs\nrun=$(wc -l < $folder/runs)\n" + text + "\n"
        )
        script.chmod(0o755)

    return run


@pytest.fixture
def scheduler(store: Store, data: Workspace) -> Iterator[Scheduler]:
    reading, writing = os.pipe()
    settings = Settings(
        base=[f"{BASE}={embedded_base_path()}"], data_dir=data.path, step_timeout=1.0, device="cpu"
    )
    yield Scheduler(store, data, settings, reading)
    os.close(writing)  # ends what is left
    os.close(reading)


@pytest.fixture
def job(store: Store, data: Workspace) -> Job:
    (data.files / "file-1").write_text('{"prompt": "a", "completion": "b"}\n')
    return create_job(store, base=BASE, training_file="file-1", state=JobState.QUEUED, resolved=RESOLVED)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Publishing, reduced to its transaction."""
    seen: list[str] = []

    def publish(service: Service, job: Job, base: Any, folder: JobFolder, result: Any) -> None:
        seen.append(job.id)
        with service.store.database.begin() as connection:
            scheduler_succeed(connection, job.id, model="ft:x")

    from tunewright.store.job_rows import succeed as scheduler_succeed

    monkeypatch.setattr(fine_tuning, "publish_products", publish)
    return seen


def test_a_crash_is_followed_by_another_start_and_no_step_is_told_twice(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(f"{step(1)}; {step(2)}; if [ $run = 1 ]; then kill -9 $$; fi; {step(3)}; {SUCCEED}")
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert scheduler.steps(job.id) == [1, 2, 3]
    assert (
        "The trainer ended with signal 9; starting it again from its last checkpoint"
        in scheduler.messages(job.id)
    )
    assert published == [job.id]


OUT_OF_MEMORY = """printf '{"status": "failed", "error_code": "out_of_memory"}' > "$folder/result.json" """


def test_a_job_that_runs_out_of_memory_goes_on_with_less(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(f"{step(1)}; if [ $run -lt 4 ]; then {OUT_OF_MEMORY}; else {SUCCEED}; fi")
    scheduler.until(lambda: scheduler.job(job.id).state.is_final, 20)
    done = scheduler.job(job.id)
    assert (done.state, runs(scheduler, job)) == (JobState.SUCCEEDED, 4)
    assert isinstance(done.resolved, Resolved)
    assert done.resolved == RESOLVED.model_copy(
        update={
            "gradient_checkpointing": True, "per_device_batch_size": 2, "gradient_accumulation_steps": 16,
            "order_batch_size": 8,
        }
    )  # fmt: skip
    spec = JobFolder(scheduler.data.job(job.id)).read_spec(TrainingSpec)
    assert spec.tuning == done.resolved
    told = [text for text in scheduler.messages(job.id) if "ran out of memory" in text]
    assert [text.partition("with less: ")[2] for text in told] == [
        "gradient checkpointing on. The model is the same.",
        "per_device_batch_size 4 (batch_size stays 32). The model is the same.",
        "per_device_batch_size 2 (batch_size stays 32). The model is the same.",
    ]


def test_a_job_for_which_no_memory_suffices_fails(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None]
) -> None:
    trainer(OUT_OF_MEMORY)
    scheduler.until(lambda: scheduler.job(job.id).state.is_final, 20)
    error = scheduler.job(job.id).error
    assert error is not None
    assert error.code == "out_of_memory"
    assert runs(scheduler, job) == 5, "as asked for, checkpointing, 4, 2 and 1 rows at a time"


def test_a_trainer_that_only_crashes_fails_its_job(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None]
) -> None:
    trainer("echo 'Segmentation fault' >&2; exit 139")
    scheduler.until(lambda: scheduler.job(job.id).state.is_final)
    error = scheduler.job(job.id).error
    assert error is not None
    assert error.code == "trainer_crashed"
    assert "exit code 139" in error.message
    assert "Segmentation fault" in error.message
    assert runs(scheduler, job) == MAX_ATTEMPTS
    scheduler.until(lambda: scheduler.job(job.id).device is None)


def test_a_trainer_that_hangs_is_started_again_and_its_stack_is_asked_for(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    hang = "trap 'echo stack >> $folder/stack; exit 134' ABRT; sleep 60 & wait"
    trainer(f"if [ $run = 1 ]; then {step(1)}; {hang}; fi; {step(2)}; {SUCCEED}")
    began = time.monotonic()
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert time.monotonic() - began > 1.0
    assert scheduler.steps(job.id) == [1, 2]
    assert (folder_of(scheduler, job).path / "stack").exists()
    assert any("no sign of progress for 1 s" in text for text in scheduler.messages(job.id))


def test_a_trainer_that_is_stopped_dead_every_time_fails_its_job_as_hung(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None]
) -> None:
    trainer("kill -STOP $$")
    scheduler.until(lambda: scheduler.job(job.id).state.is_final, 30)
    error = scheduler.job(job.id).error
    assert error is not None
    assert error.code == "trainer_hung"
    assert "no sign of progress for 1 s" in error.message


def test_a_slow_trainer_that_gets_on_does_not_hang(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(f"for i in 1 2 3 4 5; do sleep 0.5; touch $folder/heartbeat; done; {SUCCEED}")
    scheduler.until(lambda: scheduler.job(job.id).state.is_final)
    assert scheduler.job(job.id).state is JobState.SUCCEEDED
    assert runs(scheduler, job) == 1


def test_a_new_scheduler_adopts_the_trainer(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(f"{step(1)}; while [ ! -e $folder/go ]; do sleep 0.05; done; {step(2)}; {SUCCEED}")
    scheduler.until(lambda: scheduler.steps(job.id) == [1])
    second = scheduler.again()
    for _ in range(5):
        second.runner.tick()
    (folder_of(scheduler, job).path / "go").touch()
    second.until(lambda: second.job(job.id).state is JobState.SUCCEEDED)
    assert runs(second, job) == 1, "it was not started a second time"
    assert second.steps(job.id) == [1, 2]


def test_deaths_that_nobody_saw_are_no_fault_of_the_job(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    """The whole machine stopped repeatedly, before a step was done."""
    trainer(f"if [ $run -gt {MAX_ATTEMPTS + 2} ]; then {step(1)}; {SUCCEED}; else sleep 60; fi")
    for number in range(1, MAX_ATTEMPTS + 3):
        scheduler.until(lambda count=number, now=scheduler: runs(now, job) == count)
        group = scheduler.runner.processes[job.id].group
        os.killpg(group.record.group, signal.SIGKILL)
        for child in (group._child, group._watcher):
            assert child is not None
            child.wait()
        scheduler = scheduler.again()
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)


def test_events_that_power_loss_took_are_told_again_and_none_twice(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    """The events read so far are safe in the database; the file that was not synced is shorter."""
    trainer(f"if [ $run = 1 ]; then {step(1)}; {step(2)}; sleep 60; fi; {step(2)}; {step(3)}; {SUCCEED}")
    scheduler.until(lambda: scheduler.steps(job.id) == [1, 2])
    group = scheduler.runner.processes[job.id].group
    os.killpg(group.record.group, signal.SIGKILL)
    for child in (group._child, group._watcher):
        assert child is not None
        child.wait()
    events = folder_of(scheduler, job).events_file
    os.truncate(events, len(events.read_bytes().splitlines(keepends=True)[0]) + 5)
    scheduler = scheduler.again()
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert scheduler.steps(job.id) == [1, 2, 3]


def test_pausing_frees_the_device_and_resuming_goes_on(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(
        f"if [ $run = 1 ]; then {step(1)}; trap 'exit 75' TERM; sleep 60 & wait; fi; {step(2)}; {SUCCEED}"
    )
    scheduler.until(lambda: scheduler.steps(job.id) == [1])
    scheduler.store.jobs.pause(job.id)
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.PAUSED)
    assert scheduler.job(job.id).device is None
    for _ in range(5):
        scheduler.runner.tick()
    assert runs(scheduler, job) == 1
    scheduler.store.jobs.resume(job.id)
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert scheduler.steps(job.id) == [1, 2]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        Busy("The database was busy"),
        DatabaseUnavailable("It is gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_was_trained_waits_for_a_full_disk_and_for_the_database(
    scheduler: Scheduler,
    job: Job,
    trainer: Callable[[str], None],
    published: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    trainer(SUCCEED)
    publish, calls = fine_tuning.publish_products, []

    def full_at_first(*arguments: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error
        publish(*arguments, **options)

    monkeypatch.setattr(fine_tuning, "publish_products", full_at_first)
    monkeypatch.setattr(scheduler_jobs, "_PUBLISH_AGAIN_AFTER", 0.3)
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert len(calls) == 2
    assert any(str(error) in text for text in scheduler.messages(job.id))


def test_a_trainer_without_room_for_its_result_fails_its_job_with_that_reason(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's leftovers are removed first: the database may need their space to record the failure."""
    trainer(f"{step(1)}; mkdir -p $folder/checkpoints/step-1 $folder/work; exit {DISK_FULL}")
    fail, refused = scheduler.store.jobs.fail, []

    def full_while_it_lies_there(id: str, why: JobError) -> Any:
        if folder_of(scheduler, job).checkpoints.exists() or not refused:
            refused.append(1)
            raise StorageFull("full")
        return fail(id, why)

    monkeypatch.setattr(scheduler.store.jobs, "fail", full_while_it_lies_there)
    with pytest.raises(StorageFull):
        scheduler.until(lambda: scheduler.job(job.id).state.is_final)
    scheduler.until(lambda: scheduler.job(job.id).device is None)
    assert len(refused) == 1
    error = scheduler.job(job.id).error
    assert error is not None
    assert error.code == "disk_full"
    assert f"could not write to {folder_of(scheduler, job).path}. Free some space there" in error.message
    assert (runs(scheduler, job), scheduler.steps(job.id)) == (1, [1])


def test_a_job_is_not_lost_for_want_of_room(
    scheduler: Scheduler,
    job: Job,
    trainer: Callable[[str], None],
    published: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or because the database is busy: neither while it is validated, nor when its trainer is to start, nor when the
    trainer's events are read."""
    trainer(f"{step(1)}; {SUCCEED}")
    monkeypatch.setattr(scheduler_jobs, "_VALIDATE_AGAIN_AFTER", 0.1)
    full_once(monkeypatch, scheduler.store.jobs, "mark_valid", Busy("busy"))
    full_once(monkeypatch, scheduler.store.jobs, "take_in", StorageFull("full"))
    full_once(monkeypatch, JobFolder, "write_spec", OSError(28, "No space left on device"))
    new = create_job(scheduler.store, base=BASE, model=BASE, training_file="file-1", seed=2)
    raised = []
    deadline = time.monotonic() + 20
    while not (scheduler.job(new.id).state is scheduler.job(job.id).state is JobState.SUCCEEDED):
        assert time.monotonic() < deadline
        try:
            scheduler.runner.tick()
        except (OSError, StorageFull) as error:
            raised.append(str(error))
        time.sleep(0.02)
    assert sorted(raised) == ["[Errno 28] No space left on device", "full"]
    assert scheduler.steps(job.id) == scheduler.steps(new.id) == [1]
    assert runs(scheduler, job) == runs(scheduler, new) == 1


def test_a_job_that_cannot_be_stored_now_holds_up_no_other(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(f"{step(1)}; sleep 60")
    scheduler.until(lambda: scheduler.steps(job.id) == [1])
    new = create_job(scheduler.store, base=BASE, model=BASE, training_file="file-1", seed=2)

    def busy(*_: Any, **__: Any) -> None:
        raise Busy("The database was busy")

    monkeypatch.setattr(scheduler_jobs, "take_in_events", busy)
    deadline = time.monotonic() + 20
    while scheduler.job(new.id).state is not JobState.QUEUED:
        assert time.monotonic() < deadline
        with pytest.raises(Busy):
            scheduler.runner.tick()
        time.sleep(0.02)
    scheduler.runner.stop(5.0)
    assert not scheduler.runner.processes, "its process has ended, although that could not be stored"


def full_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
    """The first call of a method finds the disk full."""
    method, calls = getattr(owner, name), []

    def full_at_first(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, full_at_first)


def test_trainers_that_are_killed_time_after_time_may_lack_memory(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None]
) -> None:
    trainer("kill -9 $$")
    scheduler.until(lambda: scheduler.job(job.id).state.is_final)
    error = scheduler.job(job.id).error
    assert error is not None
    assert error.code == "trainer_crashed"
    assert error.message.startswith("its trainer ended 3 times without a new step, last with signal 9: ")
    assert error.message.endswith(
        "when the machine's memory runs out: lower batch_size or max_length, or use type qlora"
    )


def test_a_job_whose_device_is_gone_waits_for_another(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(SUCCEED)
    scheduler.store.jobs.claim("cuda:7", [BASE])
    scheduler.until(lambda: scheduler.job(job.id).state is JobState.SUCCEEDED)
    assert any("cuda:7 is gone" in text for text in scheduler.messages(job.id))


def test_a_job_that_needs_more_gpus_than_are_left_fails_and_holds_up_nobody(
    scheduler: Scheduler, store: Store, trainer: Callable[[str], None], published: list[str]
) -> None:
    trainer(SUCCEED)
    many, one = (
        create_job(
            store, base=BASE, training_file="file-1", state=JobState.QUEUED,
            resolved=RESOLVED.model_copy(update={"gpus": gpus}),
        )
        for gpus in (2, 1)
    )  # fmt: skip
    scheduler.until(lambda: scheduler.job(one.id).state is JobState.SUCCEEDED)
    error = scheduler.job(many.id).error
    assert error is not None
    assert error.code == "not_enough_gpus"


def test_a_cancelled_job_loses_its_trainer_and_its_leftovers(
    scheduler: Scheduler, job: Job, trainer: Callable[[str], None]
) -> None:
    trainer(f"{step(1)}; mkdir $folder/checkpoints; trap '' TERM; sleep 60")
    scheduler.until(lambda: scheduler.steps(job.id) == [1])
    group = scheduler.runner.processes[job.id].group
    scheduler.store.jobs.cancel(job.id)
    scheduler.until(lambda: scheduler.job(job.id).device is None)
    assert not group.is_alive()
    assert not folder_of(scheduler, job).checkpoints.exists()


def runs(scheduler: Scheduler, job: Job) -> int:
    """How often a trainer was started."""
    try:
        return len((folder_of(scheduler, job).path / "runs").read_text().split())
    except FileNotFoundError:
        return 0


def folder_of(scheduler: Scheduler, job: Job) -> JobFolder:
    return JobFolder(scheduler.data.job(job.id))
