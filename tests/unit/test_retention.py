"""Limits on disk use: old or excess data is removed, never data in use, and a crash leaves nothing for ever."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update

from rows import FILE, Publish, create_job, engine_info
from tunewright.config import RetentionOptions
from tunewright.errors import TunewrightError
from tunewright.registry import removals
from tunewright.registry.workspace import Workspace
from tunewright.rows.totals import Totals
from tunewright.scheduler import retention as module
from tunewright.scheduler.retention import Retention
from tunewright.store.records import Job
from tunewright.store.states import JobState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import files, job_devices, jobs, models

DAY = 86_400.0
UNFINISHED = [state for state in JobState if not state.is_final]
FINAL = [state for state in JobState if state.is_final]


pytestmark = pytest.mark.each_database


class World:
    """A store and a data folder with objects of any age, at a fixed `now`."""

    def __init__(self, store: Store, data: Workspace, publish: Publish) -> None:
        self.store, self.data, self._publish = store, data, publish
        self.now = time.time()
        self._count = 0
        store.files.delete(FILE["id"])

    def retention(self, **options: Any) -> Retention:
        return Retention(RetentionOptions(**options), self.store, self.data, lambda: self.now)

    def round(self, **options: Any) -> None:
        self.retention(**options).round()

    def _next(self) -> int:
        self._count += 1
        return self._count

    def file(self, age: float = 0.0, size: int = 10, purpose: str = "fine-tune") -> str:
        """A file that is `age` days old."""
        id = f"file-{self._next()}"
        self.data.file(id).write_bytes(b"x" * size)
        self.store.files.add(
            id=id, filename=f"{id}.jsonl", purpose=purpose, size=size, sha256="0" * 64,
            created_at=self.now - age * DAY,
        )  # fmt: skip
        return id

    def job(self, state: JobState = JobState.RUNNING, ended: float = 0.0, **values: Any) -> Job:
        """A job in `state`; if that is final, it ended `ended` days ago. Without a given file, it reads a new one."""
        values.setdefault("training_file", None)
        values["training_file"] = values["training_file"] or self.file()
        values.setdefault("fingerprint", str(self._next()))
        end = self.now - ended * DAY if state.is_final else None
        return create_job(self.store, state=state, finished_at=end, **values)

    def folder(self, job_id: str) -> Path:
        path = self.data.job(job_id)
        path.mkdir()
        (path / "trainer.log").write_text("trained")
        (path / "events.jsonl").write_text("{}\n")
        return path

    def artifact(self, sha256: str, age: float = 0.0, size: int = 10) -> Path:
        path = self.data.artifacts.local(sha256)
        path.mkdir(exist_ok=True)
        (path / "adapter_model.safetensors").write_bytes(b"x" * size)
        os.utime(path, (self.now - age * DAY,) * 2)
        return path

    def model(
        self,
        *,
        step: int | None = 1,
        age: float = 0.0,
        size: int = 10,
        sha256: str | None = None,
        **values: Any,
    ) -> str:
        """The name of a new checkpoint, or without a step of a product, with an artifact and a job that has ended."""
        number = self._next()
        sha256 = sha256 or f"{number:064x}"
        self.artifact(sha256, age, size)
        name = f"m-{number}"
        row = {
            "name": name,
            "sha256": sha256,
            "checkpoint_step": step,
            "bytes": size,
            "desired": "unloaded",
            **values,
        }
        assert self._publish(row, job=self.job())
        with self.store.database.begin() as connection:
            connection.execute(
                update(models).where(models.c.name == name).values(created_at=self.now - age * DAY)
            )
        return name

    def files(self) -> set[str]:
        """Uploads that are listed; what is listed has its bytes."""
        listed, _ = self.store.files.list(purpose="fine-tune", after=None, limit=10**6)
        ids = {file.id for file in listed}
        assert {id for id in ids if not self.data.file(id).is_file()} == set()
        return ids

    def models(self) -> set[str]:
        """What is listed; it has its artifact."""
        listed = self.store.models.list()[0]
        assert {
            model.name for model in listed if not self.data.artifacts.local(model.sha256).is_dir()
        } == set()
        return {model.name for model in listed}

    def artifacts(self) -> set[str]:
        return self.data.artifacts.hashes()


@pytest.fixture
def world(store: Store, data: Workspace, publish_model: Publish) -> World:
    return World(store, data, publish_model)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What retention logged since it was last asked."""
    caplog.set_level(logging.INFO, "tunewright.retention")

    def ask() -> list[str]:
        messages = [record.getMessage() for record in caplog.records if record.name == "tunewright.retention"]
        caplog.clear()
        return messages

    return ask


Logged = Callable[[], list[str]]


class Killed(BaseException):
    """Raised like a SIGKILL: no code after it runs."""


def killed(*_: object, **__: object) -> None:
    raise Killed


# files


def test_nothing_that_is_listed_goes_without_a_limit(world: World) -> None:
    file, checkpoint = world.file(9999), world.model(age=9999)
    job = world.job(JobState.FAILED, ended=9999)
    folder = world.folder(job.id)
    before = world.files()
    world.round()
    assert file in before
    assert world.files() == before
    assert world.models() == {checkpoint}
    assert (folder / "trainer.log").is_file()


def test_an_old_file_goes_and_the_log_says_why(world: World, logged: Logged) -> None:
    old, new = world.file(31, size=3 * 2**20), world.file(29)
    world.round(keep_files_days=30)
    assert world.files() == {new}
    assert not world.data.file(old).exists()
    assert list(world.data.tmp.iterdir()) == []
    assert logged() == [f"removed file {old} ({old}.jsonl) (3.0 MiB, 31.0 days old): --keep-files-days 30"]


@pytest.mark.parametrize("column", ["training_file", "validation_file"])
@pytest.mark.parametrize("state", UNFINISHED)
def test_a_file_that_an_unfinished_job_needs_stays(world: World, state: JobState, column: str) -> None:
    needed = world.file(99)
    world.job(FINAL[0], ended=98, **{column: needed})
    world.job(state, **{column: needed})
    world.job(FINAL[0], ended=97, **{column: needed})
    world.round(keep_files_days=1, max_files_size="0")
    assert needed in world.files()


@pytest.mark.parametrize("column", ["training_file", "validation_file"])
@pytest.mark.parametrize("state", FINAL)
def test_a_files_age_counts_from_the_end_of_its_last_job(world: World, state: JobState, column: str) -> None:
    kept, gone = world.file(99), world.file(99)
    for ended in (98, 1.5, 50):
        world.job(state, ended=ended, **{column: kept})
    world.job(state, ended=2.5, **{column: gone})
    world.round(keep_files_days=2)
    assert kept in world.files()
    assert gone not in world.files()


def test_a_job_shows_its_file_also_when_that_is_gone(world: World) -> None:
    job = world.job(JobState.SUCCEEDED, ended=5)
    world.round(keep_files_days=9)
    assert job.file("training_file") in world.files()
    world.now += 30 * DAY
    world.round(keep_files_days=9)
    assert job.file("training_file") not in world.files()
    shown = world.store.jobs.get(job.id)
    assert shown is not None
    assert shown.file("training_file") == job.file("training_file")


def test_result_files_go_like_uploads(world: World) -> None:
    result = world.file(31, purpose="fine-tune-results")
    world.round(keep_files_days=30)
    assert world.store.files.get(result) is None
    assert not world.data.file(result).exists()


def test_the_oldest_files_go_until_the_rest_fits(world: World, logged: Logged) -> None:
    ages = (5, 1, 4, 2, 3)
    by_age = {age: world.file(age, size=100) for age in ages}
    world.round(max_files_size="300B")
    assert world.files() == {by_age[age] for age in (1, 2, 3)}
    assert [line.split(" ")[2] for line in logged()] == [by_age[5], by_age[4]]
    world.round(max_files_size="300B")
    assert logged() == []


def test_what_is_in_use_counts_for_the_size_and_stays(world: World) -> None:
    used, idle, other = world.file(9, 200), world.file(8, 100), world.file(7, 100)
    world.job(training_file=used)
    world.round(max_files_size="300B")
    assert world.files() == {used, other}
    assert idle not in world.files()


def test_an_upload_has_an_hour_for_its_job(world: World, logged: Logged) -> None:
    new, waiting = world.file(0.5 / 24), world.file(1.5 / 24)
    retention = world.retention(max_files_size="0")
    retention.round()
    assert world.files() == {new}
    assert waiting in logged()[0]
    retention.round()
    assert logged() == [], "that there is still too much is said once"
    world.now += DAY
    retention.round()
    assert world.files() == set()
    fresh = world.file()
    logged()
    retention.round()
    assert world.files() == {fresh}
    assert logged() == ["10 B are over --max-files-size 0 B: what is left is in use, or newer than an hour."]


# the cache of tokenized files


def tokens(world: World, key: str, *, age: float, size: int = 10, source: str = "0" * 64) -> Path:
    """Tokens of a file, last used `age` days ago. By default they are those of any of the world's files."""
    counts = dict.fromkeys(
        ("max_length", "rows", "examples", "tokens", "learnt", "truncated", "dropped", "lost", "longest"), 1
    )
    totals = Totals(source=source, lengths={}, **counts)

    def make(folder: Path) -> None:
        (folder / "rows.arrow").write_bytes(b"x" * size)
        (folder / "totals.json").write_text(totals.model_dump_json())

    used = world.data.token_cache.take(key, make)
    used.close()
    os.utime(used.path / "lock", (world.now - age * DAY,) * 2)
    return used.path


def test_tokens_used_longest_ago_go_until_the_rest_fits(world: World, logged: Logged) -> None:
    world.file()
    old, recent, new = (
        tokens(world, f"k{age}", age=age, size=2 * 2**20) for age in (3, 2, 0.01)
    )  # fmt: skip
    world.round(max_token_cache_size="7MiB")
    assert old.exists()
    world.round(max_token_cache_size="5MiB")
    assert [path.exists() for path in (old, recent, new)] == [False, True, True]
    assert logged() == ["removed token cache k3 (2.0 MiB, 3.0 days old): --max-token-cache-size 5.0 MiB"]
    world.round(max_token_cache_size="0")
    assert [path.exists() for path in (recent, new)] == [False, True], "what is new stays an hour"


def test_tokens_that_a_running_job_uses_stay(world: World) -> None:
    world.file()
    path = tokens(world, "k", age=9)
    used = world.data.token_cache.find("k")
    assert used is not None
    os.utime(path / "lock", (1, 1))
    world.now += DAY
    world.round(max_token_cache_size="0")
    assert path.exists()
    used.close()
    world.now += DAY
    world.round(max_token_cache_size="0")
    assert not path.exists()


def test_tokens_of_a_file_that_is_deleted_go_too(world: World, logged: Logged) -> None:
    world.file()
    path, other = tokens(world, "k", age=1, source="f" * 64), tokens(world, "other", age=1)
    used = world.data.token_cache.find("k")
    assert used is not None
    world.round()
    assert path.exists(), "a job still trains on them"
    used.close()
    world.round()
    assert not path.exists()
    assert other.exists()
    assert len(logged()) == 1


# checkpoints


def test_an_old_checkpoint_goes_with_its_artifact(world: World, logged: Logged) -> None:
    product, old, new = world.model(step=None, age=40), world.model(age=31), world.model(age=29)
    world.round(keep_checkpoints_days=30)
    assert world.models() == {product, new}
    assert len(world.artifacts()) == 2
    assert logged() == [f"removed checkpoint {old} (10 B, 31.0 days old): --keep-checkpoints-days 30"]


def test_it_is_no_longer_listed_among_its_jobs_checkpoints(world: World) -> None:
    name = world.model(age=2)
    model = world.store.models.get(name)
    assert model is not None
    assert model.job_id is not None
    assert len(world.store.jobs.checkpoints(model.job_id, after=None, limit=9)[0]) == 1
    world.round(keep_checkpoints_days=1)
    assert world.store.jobs.checkpoints(model.job_id, after=None, limit=9)[0] == []


def test_a_checkpoint_that_is_wanted_or_held_or_started_from_stays(world: World) -> None:
    wanted, pinned = world.model(age=99, desired="loaded"), world.model(age=99, pinned=True)
    held, held_before, parent, ended_parent = (world.model(age=99) for _ in range(4))
    world.store.engines.declare(["tiny"])
    engine = world.store.engines.starting("tiny", "/s", engine_info())
    for state, name in ((Residency.LOADED, held), (Residency.LOADED, held_before)):
        world.store.engines.set_residency(engine, sha256_of(world, name), state)
    engine = world.store.engines.starting("tiny", "/s", engine_info())
    world.store.engines.set_residency(engine, sha256_of(world, held), Residency.LOADING)
    world.job(JobState.PAUSED, parent_sha256=sha256_of(world, parent))
    world.job(JobState.CANCELLED, parent_sha256=sha256_of(world, ended_parent))
    world.round(keep_checkpoints_days=1, max_checkpoints_size="0")
    assert world.models() == {wanted, pinned, held, parent}
    world.store.engines.declare(["another"])
    world.round(keep_checkpoints_days=1)
    assert held not in world.models(), "its engine is no longer there"


def test_a_checkpoints_age_counts_from_its_last_use(world: World) -> None:
    used = world.model(age=9, last_used_at=world.now - DAY)
    world.model(age=9, last_used_at=world.now - 9 * DAY)
    never_used = world.model(age=1)
    world.round(keep_checkpoints_days=2)
    assert world.models() == {used, never_used}


def sha256_of(world: World, name: str) -> str:
    model = world.store.models.get(name)
    assert model is not None
    return model.sha256


def test_the_oldest_checkpoints_go_until_the_rest_fits(world: World) -> None:
    names = {age: world.model(age=age, size=100) for age in (5, 1, 4, 2, 3)}
    world.model(step=None, age=9, size=5000)
    world.round(max_checkpoints_size="300B")
    assert world.models() & set(names.values()) == {names[age] for age in (1, 2, 3)}


def test_weights_that_a_product_shares_free_no_space(world: World) -> None:
    """The last epoch's checkpoint is the product: it takes nothing, and goes for its age only."""
    product = world.model(step=None, age=9, size=500)
    twin = world.model(age=9, size=500, sha256=sha256_of(world, product))
    older, newer = world.model(age=8, size=100), world.model(age=7, size=100)
    world.round(max_checkpoints_size="100B")
    assert world.models() == {product, twin, newer}
    assert older not in world.models()
    world.round(keep_checkpoints_days=8.5)
    assert world.models() == {product, newer}
    assert sha256_of(world, product) in world.artifacts()


# artifacts


def test_an_artifact_goes_a_day_after_nothing_points_at_it(world: World, logged: Logged) -> None:
    product = world.model(step=None, age=99)
    parent, old, new = "a" * 64, "b" * 64, "c" * 64
    started_from = world.model(step=None, age=99, sha256=parent)
    world.job(parent_sha256=parent)
    with world.store.database.begin() as connection:
        connection.execute(models.delete().where(models.c.name == started_from))
    world.artifact(old, age=1.1)
    world.artifact(new, age=0.9)
    world.round()
    assert world.artifacts() == {sha256_of(world, product), parent, new}
    assert logged() == [
        f"removed artifact {old}, which nothing points at (10 B, 1.1 days old): --keep-unused-artifacts-days 1"
    ]


def test_unused_artifacts_have_a_size_too(world: World) -> None:
    used = sha256_of(world, world.model(step=None, size=10**4))
    world.artifact("b" * 64, age=0.3, size=100)
    world.artifact("c" * 64, age=0.2, size=100)
    world.artifact("d" * 64, age=0.01, size=100)
    world.round(max_unused_artifacts_size="200B")
    assert world.artifacts() == {used, "c" * 64, "d" * 64}


def test_what_is_not_the_services_is_left_alone(world: World) -> None:
    world.job()
    for folder in (world.data.path / "artifacts", world.data.files, world.data.jobs):
        (folder / "lost+found").mkdir()
        os.utime(folder / "lost+found", (0, 0))
    world.round(keep_job_folders_days=1)
    for folder in (world.data.path / "artifacts", world.data.files, world.data.jobs):
        assert (folder / "lost+found").is_dir()


# leftovers of this and other databases


def test_a_file_without_a_row_goes_after_an_hour(world: World, logged: Logged) -> None:
    listed = world.file(99)
    for id, age in (("file-old", 3700), ("file-new", 3500)):
        world.data.file(id).write_bytes(b"x")
        os.utime(world.data.file(id), (world.now - age,) * 2)
    world.round()
    assert {path.name for path in world.data.files.iterdir()} == {listed, "file-new"}
    assert [line.startswith("removed file file-old (1 B") for line in logged()] == [True]


def test_another_database_does_not_cost_what_it_does_not_know(world: World, logged: Logged) -> None:
    """The folder of a job that has no row was written by a service with another database."""
    stranger = world.folder("ftjob-stranger")
    world.artifact("b" * 64, age=99)
    world.data.file("file-theirs").write_bytes(b"x")
    os.utime(world.data.file("file-theirs"), (0, 0))
    world.file()
    retention = world.retention(keep_job_folders_days=1)
    for _ in range(3):
        retention.round()
    assert world.artifacts() == {"b" * 64}
    assert world.data.file("file-theirs").exists()
    assert stranger.is_dir()
    [warning] = logged()
    assert "ftjob-stranger" in warning
    stranger.rename(world.data.path / "moved-away")
    retention.round()
    assert world.artifacts() == set()
    assert not world.data.file("file-theirs").exists()


def test_an_empty_database_costs_nothing(world: World) -> None:
    world.artifact("b" * 64, age=99)
    world.data.file("file-theirs").write_bytes(b"x")
    os.utime(world.data.file("file-theirs"), (0, 0))
    world.round()
    assert world.artifacts() == {"b" * 64}
    assert world.data.file("file-theirs").exists()


# folders of jobs


@pytest.mark.parametrize("state", JobState)
def test_the_folder_of_a_job_goes_long_after_its_end(world: World, state: JobState, logged: Logged) -> None:
    created_at = world.now - 99 * DAY
    old, new, held = (world.job(state, ended=ended, created_at=created_at) for ended in (8, 6, 8))
    with world.store.database.begin() as connection:
        connection.execute(insert(job_devices).values(device="cpu", job_id=held.id))
    for job in (old, new, held):
        world.folder(job.id)
    world.round(keep_job_folders_days=7)
    assert world.data.job(new.id).is_dir()
    assert world.data.job(held.id).is_dir(), "its trainer may still write"
    assert world.data.job(old.id).is_dir() is not state.is_final
    if state.is_final:
        assert logged() == [f"removed folder of job {old.id} (10 B, 8.0 days old): --keep-job-folders-days 7"]
    assert world.store.jobs.get(old.id) == old
    assert len(world.store.jobs.events(old.id, after=None, limit=9)[0]) == 1


# jobs and their events


@pytest.mark.parametrize("state", JobState)
def test_a_job_goes_with_its_events_and_its_folder_long_after_its_end(
    world: World, state: JobState, logged: Logged
) -> None:
    created_at = world.now - 99 * DAY
    old, new, held = (world.job(state, ended=ended, created_at=created_at) for ended in (8, 6, 8))
    with world.store.database.begin() as connection:
        connection.execute(insert(job_devices).values(device="cpu", job_id=held.id))
    for job in (old, new, held):
        world.folder(job.id)
    world.round(keep_jobs_days=7)
    assert {new.id, held.id} <= {job.id for job in world.store.jobs.in_states(state)}
    assert world.data.job(new.id).is_dir()
    assert (world.store.jobs.get(old.id) is None) is state.is_final
    assert world.data.job(old.id).is_dir() is not state.is_final
    assert bool(world.store.jobs.events(old.id, after=None, limit=9)[0]) is not state.is_final
    if state.is_final:
        assert logged() == [f"removed job {old.id} (0 B, 8.0 days old): --keep-jobs-days 7"]


def test_a_job_stays_while_one_of_its_products_is_listed(world: World) -> None:
    name = world.model()
    model = world.store.models.get(name)
    assert model is not None
    assert model.job_id is not None
    with world.store.database.begin() as connection:
        connection.execute(
            update(jobs).where(jobs.c.id == model.job_id).values(finished_at=world.now - 99 * DAY)
        )
    world.round(keep_jobs_days=7)
    assert world.store.jobs.get(model.job_id) is not None
    with world.store.database.begin() as connection:
        connection.execute(delete(models).where(models.c.name == name))
    world.round(keep_jobs_days=7)
    assert world.store.jobs.get(model.job_id) is None


@pytest.mark.parametrize("state", JobState)
def test_the_events_of_a_job_go_and_it_stays_listed(world: World, state: JobState) -> None:
    old, new = world.job(state, ended=8), world.job(state, ended=6)
    world.round(keep_events_days=7)
    assert bool(world.store.jobs.events(old.id, after=None, limit=9)[0]) is not state.is_final
    assert world.store.jobs.events(new.id, after=None, limit=9)[0]
    assert world.store.jobs.get(old.id) == old


def test_a_killed_removal_of_a_job_leaves_no_folder_that_nothing_knows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a folder would count as another database's, and nothing unknown would be removed any more."""
    job = world.job(JobState.FAILED, ended=8)
    world.folder(job.id)
    with monkeypatch.context() as patched:
        patched.setattr("tunewright.store.jobs.JobStore.delete", killed)
        with pytest.raises(Killed):
            world.round(keep_jobs_days=7)
    assert not world.data.job(job.id).exists()
    world.round(keep_jobs_days=7)
    assert world.store.jobs.get(job.id) is None


# crashes


@pytest.mark.parametrize("at", ["the row is gone", "it is out of sight"])
def test_a_kill_leaves_only_what_the_next_round_removes(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    file, checkpoint = world.file(9), world.model(age=9)
    kept = world.file()
    limits = {"keep_files_days": 1, "keep_checkpoints_days": 1}
    os.utime(world.data.file(file), (0, 0))
    for part in ("_files", "_checkpoints"):
        with monkeypatch.context() as patch:
            if at == "the row is gone":
                patch.setattr(removals.Removals, "remove", killed)
            else:
                patch.setattr(removals, "destroy", killed)
            with pytest.raises(Killed):
                getattr(world.retention(**limits), part)()
        world.files()
        world.models()
    assert world.store.files.get(file) is None
    assert checkpoint not in world.models()
    leftovers = [
        world.data.file(file).exists(),
        bool(world.artifacts()),
        bool(list(world.data.tmp.iterdir())),
    ]
    assert leftovers == ([True, True, False] if at == "the row is gone" else [False, False, True])
    world.round(**limits)
    assert not world.data.file(file).exists()
    assert world.artifacts() == set()
    assert list(world.data.tmp.iterdir()) == []
    assert kept in world.files()


def test_one_part_that_fails_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    world.file(9)
    checkpoint = world.model(age=9)

    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.data, "remove_file", full)
    world.round(keep_files_days=1, keep_checkpoints_days=1)
    assert checkpoint not in world.models()
    assert any("failed" in line for line in logged())


# the scheduler's part


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_tick_does_not_wait_for_the_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old = world.file(9)
    go, rounds = threading.Event(), []
    retention = world.retention(keep_files_days=1)
    real = retention.round

    def slow() -> None:
        rounds.append(1)
        go.wait(20)
        real()

    monkeypatch.setattr(retention, "round", slow)
    monkeypatch.setattr(module, "_EVERY", 0.0)
    retention.tick()
    retention.tick()
    wait_for(lambda: rounds)
    assert rounds == [1], "one round at a time"
    assert old in world.files()
    go.set()
    wait_for(lambda: old not in world.files())
    wait_for(lambda: not retention._thread or not retention._thread.is_alive())
    retention.tick()
    wait_for(lambda: len(rounds) == 2)
    retention.stop()


def test_rounds_are_far_apart(world: World) -> None:
    retention = world.retention(keep_files_days=1)
    kept = set()
    for age in (9, 9, 9):
        kept = {world.file(age)}
        retention.tick()
        assert retention._thread is not None
        retention._thread.join(20)
    assert kept <= world.files(), "only the first round was due"


def test_it_stops_between_two_things(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        world.file(9)
    retention = world.retention(keep_files_days=1)
    real = retention._remove_file

    def last(id: str) -> bool:
        retention._stopping.set()
        return real(id)

    monkeypatch.setattr(retention, "_remove_file", last)
    retention.round()
    assert len(world.files()) == 4


# races

RACES = 100
"""The number of rounds, each with a removal and a creation at almost the same moment."""
HEAD_STARTS = (0, 0.0002, 0.001, 0.05, -0.0002, -0.001, -0.05)
"""Seconds that the removal has; below 0: the creation."""


def race(
    url: str, remove: Callable[[int], object], job: Callable[[int], dict[str, Any]], refusal: str
) -> set[int]:
    """Remove thing after thing while jobs on them are created: the numbers of those that have a job now."""
    opened = Store.open(url)
    start = threading.Barrier(2)

    def create() -> set[int]:
        made = set()
        for number in range(RACES):
            start.wait(20)
            time.sleep(max(0.0, HEAD_STARTS[number % len(HEAD_STARTS)]))
            refused = why_refused(opened, fingerprint=str(number), **job(number))
            if refused is None:
                made.add(number)
            else:
                assert refusal in refused
        return made

    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create)
        for number in range(RACES):
            start.wait(20)
            time.sleep(max(0.0, -HEAD_STARTS[number % len(HEAD_STARTS)]))
            remove(number)
        made = creating.result()
    opened.close()
    assert 0 < len(made) < RACES, "neither always won"
    return made


def why_refused(store: Store, **job: Any) -> str | None:
    try:
        create_job(store, **job)
    except TunewrightError as refused:
        return refused.message
    return None


def test_no_job_is_left_without_its_file(world: World, url: str) -> None:
    """Jobs are created while their files are being removed: each has its file, or is refused."""
    always, ids = world.file(), [world.file(9) for _ in range(RACES)]
    retention = world.retention(keep_files_days=1)

    def job(number: int) -> dict[str, Any]:
        both = {"training_file": always, "validation_file": always}
        return {**both, ("training_file", "validation_file")[number % 2]: ids[number]}

    made = race(url, lambda number: retention._remove_file(ids[number]), job, "No such file")
    assert {ids[number] for number in made} | {always} == world.files()


def test_no_job_is_left_without_what_it_starts_from(world: World, url: str) -> None:
    file, names = world.file(), [world.model(age=9) for _ in range(RACES)]
    found = [model for name in names if (model := world.store.models.get(name))]
    retention = world.retention(keep_checkpoints_days=1)

    def job(number: int) -> dict[str, Any]:
        return {"training_file": file, "parent_sha256": found[number].sha256}

    made = race(url, lambda number: retention._remove_checkpoint(found[number]), job, "No such model")
    assert {found[number].sha256 for number in made} == world.artifacts()
    assert {names[number] for number in made} == world.models()


def test_rounds_and_jobs_go_together(world: World, url: str) -> None:
    """Whole rounds of removals, and jobs on any file, in any order."""
    ids = [world.file(9) for _ in range(100)]
    opened = Store.open(url)

    def create() -> set[str]:
        made = set()
        for id in random.Random(1).sample(ids, len(ids)):
            time.sleep(0.0005)
            if why_refused(opened, training_file=id, fingerprint=id) is None:
                made.add(id)
        return made

    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(create)
        while not creating.done():
            world.round(keep_files_days=1)
        made = creating.result()
    opened.close()
    assert made == world.files()


# any mix of objects


@pytest.fixture
def fewer_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NEW", -600.0)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(n, marks=pytest.mark.soak) for n in range(6, 12))]
)
@pytest.mark.usefixtures("fewer_hours")
def test_in_any_world_limits_are_kept_and_what_is_in_use_stays(world: World, seed: int) -> None:
    chance = random.Random(seed)
    build(world, chance)
    needed_files, needed_models, needed_artifacts, needed_folders = in_use(world)
    limits: dict[str, Any] = {
        "keep_files_days": chance.choice([None, 1, 5, 20]),
        "max_files_size": chance.choice([None, "0", "100B", "1KB"]),
        "keep_checkpoints_days": chance.choice([None, 1, 5, 20]),
        "max_checkpoints_size": chance.choice([None, "0", "100B", "1KB"]),
        "keep_unused_artifacts_days": chance.choice([1, 5, 20]),
        "max_unused_artifacts_size": chance.choice([None, "0", "50B"]),
        "keep_job_folders_days": chance.choice([None, 1, 5, 20]),
    }
    retention = world.retention(**limits)
    for _ in range(3):  # what two checkpoints share goes with the second
        retention.round()
    assert needed_files <= world.files()
    assert needed_models <= world.models()
    assert needed_artifacts <= world.artifacts()
    assert needed_folders <= {path.name for path in world.data.jobs.iterdir()}
    # what is left and not in use is within the limits
    idle_files = [
        (world.now - since) / DAY for _, since in world.store.files.last_used() if since is not None
    ]
    if limits["keep_files_days"] is not None:
        assert all(age <= limits["keep_files_days"] for age in idle_files)
    if limits["max_files_size"] == "0":
        assert idle_files == []
    idle = world.store.models.idle_checkpoints()
    if limits["keep_checkpoints_days"] is not None:
        assert all((world.now - model.created_at) / DAY <= limits["keep_checkpoints_days"] for model in idle)
    if limits["max_checkpoints_size"] == "0":
        assert {model.sha256 for model in idle} <= {
            model.sha256 for model in world.store.models.list()[0] if model not in idle
        }
    unused = world.artifacts() - world.store.models.weights_in_use()
    for sha256 in unused:
        assert (world.now - world.data.artifacts.local(sha256).stat().st_mtime) / DAY <= limits[
            "keep_unused_artifacts_days"
        ]
    assert list(world.data.tmp.iterdir()) == []


def build(world: World, chance: random.Random) -> None:
    """Random objects: files, jobs in all states on some of them, models that share weights, leftovers."""
    uploads = [world.file(chance.uniform(0, 30), chance.randrange(200)) for _ in range(8)]
    names = [
        world.model(
            step=chance.choice([None, 1, 2, 3]),
            age=chance.uniform(0, 30),
            size=50,
            sha256=chance.choice([None, None, "a" * 64, "b" * 64]),
            desired=chance.choice(["loaded", "unloaded", "unloaded"]),
        )
        for _ in range(10)
    ]
    hashes = sorted({sha256_of(world, name) for name in names})
    world.store.engines.declare(["tiny"])
    engine = world.store.engines.starting("tiny", "/s", engine_info())
    for sha256 in chance.sample(hashes, 2):
        world.store.engines.set_residency(engine, sha256, chance.choice(list(Residency)))
    for _ in range(8):
        job = world.job(
            chance.choice(list(JobState)),
            ended=chance.uniform(0, 30),
            training_file=chance.choice(uploads),
            validation_file=chance.choice([None, *uploads]),
            parent_sha256=chance.choice([None, *hashes]),
        )
        world.folder(job.id)
    for letter in "cdef":
        world.artifact(letter * 64, chance.uniform(0, 30), chance.randrange(200))


def in_use(world: World) -> tuple[set[str], set[str], set[str], set[str]]:
    """The files, models, artifacts and job folders that must stay, found by a check of every row."""
    unfinished = world.store.jobs.in_states(*UNFINISHED)
    with world.store.database.read() as connection:
        held = set(connection.scalars(text("SELECT sha256 FROM residency")))
        rows = connection.execute(models.select()).all()
        uploads = set(connection.scalars(files.select().with_only_columns(files.c.id)))
    read = {job.file("training_file") for job in unfinished} | {
        job.file("validation_file") for job in unfinished
    }
    parents = {sha256 for job in unfinished for sha256 in job.weights("parent")}
    kept = {
        row.name
        for row in rows
        if row.checkpoint_step is None or row.desired == "loaded" or row.sha256 in held | parents
    }
    artifacts = {row.sha256 for row in rows if row.name in kept} | parents
    return uploads & read, kept, artifacts, {job.id for job in unfinished}
