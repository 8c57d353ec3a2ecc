"""Archives hold all that the database refers to, whatever happens meanwhile; a restore takes only whole ones."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_upgrade import future_migration

import backups
from backups import (
    add_file,
    bytes_in,
    checkpoint,
    job_folder,
    new_job,
    publish_adapter,
    rows_of,
    url_of,
    write,
)
from rows import engine_info
from tunewright.atomic import write_atomically
from tunewright.backup import archive as archive_module
from tunewright.backup import create, restore, swap
from tunewright.backup.archive import DATABASE, FOLDERS, open_archive
from tunewright.backup.create import Backup, make_backup
from tunewright.backup.errors import BackupError
from tunewright.backup.locks import ServiceRecord, archive_lock, held, service_lock
from tunewright.backup.restore import Restored, restore_archive
from tunewright.backup.swap import clear_abandoned, finish_restore, is_restore_pending
from tunewright.cli.main import main
from tunewright.registry.scratch import scratch_folder
from tunewright.registry.workspace import Workspace
from tunewright.store.database import Database, known_revisions
from tunewright.store.records import Job
from tunewright.store.states import EngineState, JobState
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessGroup

CONTENT = (DATABASE, *FOLDERS)


def silent(what: str, done: int, total: int) -> None:
    """Ignores the progress."""


@dataclass
class Used:
    """A data folder after some use."""

    data: Workspace
    store: Store
    running: Job
    finished: Job
    sha256: str


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Used]:
    data, store = backups.new_store(tmp_path / "data")
    finished = new_job(store, JobState.RUNNING)
    job_folder(data, finished, events=3)
    sha256 = publish_adapter(data, store, finished, "ft:missing::1")
    write(data.job(finished.id) / "result.json", "{}")
    store.engines.declare(["missing"])
    store.engines.starting("missing", "/somewhere/else.sock", engine_info())
    store.engines.set_state("missing", EngineState.READY)
    deployment = store.deployments.create("ft:other:full:1", {"max_loras": 2}, lambda _: {"device": "cpu"})
    store.engines.starting(deployment.model, "/somewhere/else-2.sock", engine_info(deployment=deployment.id))
    store.engines.set_state(deployment.model, EngineState.READY)
    new_job(store, JobState.QUEUED)
    claimed = store.jobs.claim("cpu", ["missing"])
    assert claimed is not None
    folder = job_folder(data, claimed, events=2)
    for step in (4, 8):
        checkpoint(folder, step)
    (checkpoint(folder, 12) / "complete.json").unlink()
    write(folder / "adapter" / "adapter_config.json", "left by a run that was killed before its result")
    write(data.artifacts.local("c" * 64) / "adapter_config.json", "of no model")
    write(data.tmp / "half", "")
    write(data.engine("missing") / "engine.log", "")
    write(data.path / "backups" / "tunewright-0001-20260101T000000Z.db", "")
    yield Used(data, store, claimed, finished, sha256)
    store.close()


def backup_of(data: Workspace, archive: Path) -> Backup:
    return make_backup(data, url_of(data), archive, silent)


def restore_into(data: Workspace, archive: Path, *, replace: bool = False) -> Restored:
    return restore_archive(data, url_of(data), archive, replace=replace, on_progress=silent)


@pytest.fixture
def archive(used: Used, tmp_path: Path) -> Path:
    return backup_of(used.data, tmp_path / "a.tar").path


@pytest.fixture
def target(tmp_path: Path) -> Workspace:
    """The path of a data folder that does not exist yet."""
    return Workspace(tmp_path / "elsewhere" / "data")


def content(data: Workspace) -> dict[str, Any]:
    """All that a restore brings: files by path, and rows."""
    return {**bytes_in(data.path, *FOLDERS), DATABASE: rows_of(data.path / DATABASE)}


# what is in an archive


def test_an_archive_holds_what_the_database_refers_to_and_nothing_else(used: Used, tmp_path: Path) -> None:
    made = backup_of(used.data, tmp_path / "a.tar")
    running, finished = f"jobs/{used.running.id}", f"jobs/{used.finished.id}"
    saved = [
        f"{running}/checkpoints/step-{step}/{name}"
        for step in (4, 8)
        for name in ("adapter_model.safetensors", "complete.json", "optimizer.pt", "rng/state.pth")
    ]
    assert set(made.manifest.members) == {
        DATABASE,
        "files/file-1",
        f"files/file-result-{used.finished.id}",
        f"artifacts/{used.sha256}/adapter_config.json",
        f"artifacts/{used.sha256}/adapter_model.safetensors",
        *(f"{running}/{name}" for name in ("spec.json", "events.jsonl", "trainer.log")),
        *(f"{finished}/{name}" for name in ("spec.json", "events.jsonl", "trainer.log", "result.json")),
        *saved,
    }
    assert made.manifest.counts == {"files": 2, "artifacts": 1, "jobs": 2, "checkpoints": 2}
    assert made.manifest.revision == known_revisions()[0]
    assert (made.left_out, made.changed) == ([], [])
    assert (made.bytes, made.path.stat().st_mode & 0o777) == (made.path.stat().st_size, 0o600)
    with tarfile.open(made.path) as tar:
        assert tar.getnames()[-1] == "manifest.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "data"]


def test_every_folder_of_the_data_folder_is_archived_or_knowingly_not(tmp_path: Path) -> None:
    """A change that adds a folder decides here, and in backup/create.py, whether a backup needs it."""
    data = Workspace(tmp_path)
    data.create()
    assert {path.name for path in tmp_path.iterdir()} == {*FOLDERS, "engines", "run", "tmp", "uploads"}


def test_a_product_is_archived_with_the_result_that_says_it_is_whole(used: Used, tmp_path: Path) -> None:
    folder = used.data.job(used.running.id)
    write(folder / "result.json", '{"status": "succeeded"}')
    members = backup_of(used.data, tmp_path / "a.tar").manifest.members
    assert f"jobs/{used.running.id}/adapter/adapter_config.json" in members


def test_a_file_that_is_not_what_was_uploaded_is_told(used: Used, tmp_path: Path) -> None:
    used.data.file("file-1").write_bytes(b"rot")
    assert backup_of(used.data, tmp_path / "a.tar").changed == ["file-1"]


def test_a_backup_of_a_stopped_service_is_the_same(used: Used, tmp_path: Path) -> None:
    first = backup_of(used.data, tmp_path / "a.tar").manifest.members
    used.store.close()
    second = backup_of(used.data, tmp_path / "b.tar").manifest.members
    assert {**first, DATABASE: None} == {**second, DATABASE: None}


# what cannot be archived


def leaves_nothing(folder: Path, act: Callable[[], object], match: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BackupError, match=match) as error:
        act()
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_archive_is_never_written_over(used: Used, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    leaves_nothing(tmp_path, lambda: backup_of(used.data, archive), "exists already")
    assert archive.read_bytes() == before


def test_another_user_leaves_nothing_that_the_service_could_not_open(
    used: Used, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(service_lock(used.data), "")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    leaves_nothing(used.data.run, lambda: backup_of(used.data, tmp_path / "b.tar"), f"sudo -u '#{user}' ")
    leaves_nothing(used.data.run, lambda: restore_into(used.data, archive, replace=True), f"user {user}'s")


def test_where_there_is_no_folder_there_is_no_archive(used: Used, tmp_path: Path) -> None:
    act = lambda: backup_of(used.data, tmp_path / "no" / "a.tar")  # noqa: E731
    leaves_nothing(tmp_path, act, "there is no folder .*/no to put an archive in")


def test_where_there_is_no_database_there_is_no_backup(tmp_path: Path) -> None:
    act = lambda: backup_of(Workspace(tmp_path / "nothing"), tmp_path / "a.tar")  # noqa: E731
    leaves_nothing(tmp_path, act, "there is no database .*nothing/tunewright.db: is --data-dir right?")


@pytest.mark.parametrize("what", ["file", "artifact"])
def test_what_is_listed_and_lost_is_told(used: Used, tmp_path: Path, what: str) -> None:
    if what == "file":
        used.data.file("file-1").unlink()
    else:
        shutil.rmtree(used.data.artifacts.local(used.sha256))
    leaves_nothing(tmp_path, lambda: backup_of(used.data, tmp_path / "a.tar"), "not exist, in 3 attempts")


def test_a_damaged_database_is_not_archived(used: Used, tmp_path: Path) -> None:
    used.store.close()
    path = used.data.path / DATABASE
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 2 : 4096 * 2 + 512] = os.urandom(512)
    path.write_bytes(damaged)
    with pytest.raises(backups_unusable(), match="is damaged"):
        backup_of(used.data, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


def backups_unusable() -> type[Exception]:
    from tunewright.store.sqlite_file import DatabaseUnusable

    return DatabaseUnusable


# while others write


def when_taken(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Has `act` done once, just before the file that ends with `name` is taken into the archive."""
    take, done = create._take, []

    def first_act(source: Path, target: Path) -> bool:
        if str(source).endswith(name) and not done:
            done.append(act())
        return take(source, target)

    monkeypatch.setattr(create, "_take", first_act)


def test_a_checkpoint_that_vanishes_midway_is_left_out_whole(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = used.data.job(used.running.id) / "checkpoints" / "step-4"
    when_taken(monkeypatch, "step-4/optimizer.pt", lambda: shutil.rmtree(folder))
    made = backup_of(used.data, tmp_path / "a.tar")
    assert made.left_out == [f"step 4 of {used.running.id}"]
    assert made.manifest.counts["checkpoints"] == 1
    assert not [name for name in made.manifest.members if "step-4" in name]


def test_a_checkpoint_that_is_being_removed_is_left_out(used: Used, tmp_path: Path) -> None:
    folder = used.data.job(used.running.id) / "checkpoints" / "step-8"
    (folder / "optimizer.pt").unlink()
    made = backup_of(used.data, tmp_path / "a.tar")
    assert made.left_out == [f"step 8 of {used.running.id}"]
    assert not [name for name in made.manifest.members if "step-8" in name]


def test_what_is_deleted_while_it_is_copied_is_archived_whole(used: Used, tmp_path: Path) -> None:
    """A large archive takes its time."""
    before = content(used.data)

    def delete(what: str, done: int, total: int) -> None:
        if what == "copying" and done:
            for name in FOLDERS:
                shutil.rmtree(used.data.path / name, ignore_errors=True)

    made = make_backup(used.data, url_of(used.data), tmp_path / "a.tar", delete)
    assert not used.data.files.exists()
    target = Workspace(tmp_path / "restored")
    restore_into(target, made.path)
    assert backups.missing(target) == []
    assert {name: before[name] for name in made.manifest.members if name != DATABASE} == bytes_in(
        target.path, *FOLDERS
    )


def test_a_service_that_starts_meanwhile_does_not_spoil_a_backup(used: Used, tmp_path: Path) -> None:
    """It empties the folder of unfinished things, where a backup gathers what it copies."""
    emptied = []

    def start(what: str, done: int, total: int) -> None:
        if what == "copying" and not emptied:
            emptied.append(used.data.clear_unfinished())

    made = make_backup(used.data, url_of(used.data), tmp_path / "a.tar", start)
    assert made.manifest.counts == {"files": 2, "artifacts": 1, "jobs": 2, "checkpoints": 2}


def test_where_there_are_no_hard_links_it_is_copied(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(create.os, "link", refuse)
    made = backup_of(used.data, tmp_path / "a.tar")
    monkeypatch.undo()
    assert set(made.manifest.members) == set(backup_of(used.data, tmp_path / "b.tar").manifest.members)


def around_snapshot(
    monkeypatch: pytest.MonkeyPatch, after: Callable[[], object], before: Callable[[], object] = bool
) -> list[int]:
    """Has both done around the first snapshot; returns a list that counts snapshots."""
    snapshot, count = create.snapshot, [0]

    def wrapped(source: str, target: Path) -> None:
        count[0] += 1
        if count[0] == 1:
            before()
        snapshot(source, target)
        if count[0] == 1:
            after()

    monkeypatch.setattr(create, "snapshot", wrapped)
    return count


def delete_file(used: Used, id: str) -> None:
    used.store.files.delete(id)
    used.data.file(id).unlink()


def delete_model(used: Used) -> None:
    model = used.store.models.get("ft:missing::1")
    assert model is not None
    used.store.models.delete(model)
    shutil.rmtree(used.data.artifacts.local(used.sha256))


@pytest.mark.parametrize("what", ["file", "artifact"])
def test_what_is_deleted_after_the_snapshot_is_archived(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    add_file(used.data, used.store, "file-2", b"doomed")
    delete = (lambda: delete_file(used, "file-2")) if what == "file" else (lambda: delete_model(used))
    snapshots = around_snapshot(monkeypatch, delete)
    made = backup_of(used.data, tmp_path / "a.tar")
    assert (snapshots, made.manifest.counts["files"], made.manifest.counts["artifacts"]) == ([1], 3, 1)
    restored = Workspace(tmp_path / "restored")
    restore_into(restored, made.path)
    assert backups.missing(restored) == []


def test_what_is_deleted_before_the_snapshot_is_not_archived(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file(used.data, used.store, "file-2", b"doomed")
    around_snapshot(monkeypatch, after=bool, before=lambda: (delete_file(used, "file-2"), delete_model(used)))
    made = backup_of(used.data, tmp_path / "a.tar")
    assert (made.manifest.counts["files"], made.manifest.counts["artifacts"]) == (2, 0)
    assert not [name for name in made.manifest.members if used.sha256 in name or "file-2" in name]


def test_what_came_and_went_around_the_snapshot_is_not_in_the_next(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = around_snapshot(
        monkeypatch,
        before=lambda: add_file(used.data, used.store, "file-2", b"doomed"),
        after=lambda: delete_file(used, "file-2"),
    )
    made = backup_of(used.data, tmp_path / "a.tar")
    assert (snapshots, made.manifest.counts["files"]) == ([2], 2)


def test_events_are_archived_as_far_as_they_were_taken_in(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer continues to write events: those that the snapshot has must be in the archive."""
    path = used.data.job(used.running.id) / "events.jsonl"

    def tell() -> None:
        with path.open("a") as file:
            file.write(backups.EVENT * 3)
        size = path.stat().st_size
        assert used.running.events_offset == 0
        used.store.jobs.take_in(used.running, new_offset=size, events=[], progress=None, last_step=0)

    around_snapshot(monkeypatch, after=bool, before=tell)
    made = backup_of(used.data, tmp_path / "a.tar")
    assert made.manifest.members[f"jobs/{used.running.id}/events.jsonl"].bytes == 5 * len(backups.EVENT)
    restored = Workspace(tmp_path / "restored")
    restore_into(restored, made.path)
    assert backups.missing(restored) == []


def test_a_job_that_ends_meanwhile_is_archived_as_ended(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is emptied then: half of it must not be taken for an unfinished job."""
    folder = used.data.job(used.running.id)
    write(folder / "result.json", '{"status": "succeeded"}')

    def end() -> None:
        publish_adapter(used.data, used.store, used.running, "ft:missing::2", b"other weights")
        for name in ("checkpoints", "adapter", "work"):
            shutil.rmtree(folder / name)

    when_taken(monkeypatch, f"{used.running.id}/result.json", end)
    made = backup_of(used.data, tmp_path / "a.tar")
    assert made.manifest.counts == {"files": 3, "artifacts": 2, "jobs": 2, "checkpoints": 0}
    restored = Workspace(tmp_path / "restored")
    restore_into(restored, made.path)
    assert {job["state"] for job in rows_of(restored.path / DATABASE)["jobs"]} == {JobState.SUCCEEDED}


def test_a_result_that_comes_meanwhile_is_not_archived_without_its_product(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored so, the job would have a result and nothing to publish; without it, it trains its last steps again."""
    folder = used.data.job(used.running.id)
    when_taken(monkeypatch, "step-4/optimizer.pt", lambda: write(folder / "result.json", "{}"))
    made = backup_of(used.data, tmp_path / "a.tar")
    names = {name.split("/")[2] for name in made.manifest.members if used.running.id in name.split("/")}
    assert names == {"spec.json", "events.jsonl", "trainer.log", "checkpoints"}


def test_jobs_that_always_end_meanwhile_do_not_hold_a_backup_up(
    used: Used, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive has them as unfinished, without the result whose product was removed."""
    write(used.data.job(used.running.id) / "result.json", '{"status": "succeeded"}')
    monkeypatch.setattr(create, "has_ended", lambda path, id: True)
    made = backup_of(used.data, tmp_path / "a.tar")
    names = {name.split("/")[2] for name in made.manifest.members if used.running.id in name.split("/")}
    assert names == {"spec.json", "events.jsonl", "trainer.log", "checkpoints"}


def test_backups_during_writes_are_consistent(used: Used, tmp_path: Path) -> None:
    """Uploads, deletions, trainers' events and products, from threads of their own."""
    stop = threading.Event()
    failures: list[BaseException] = []
    turns = {"uploads": 0, "events": 0, "products": 0}

    def uploads(number: int, store: Store) -> None:
        add_file(used.data, store, f"file-up-{number}", os.urandom(2000))
        if number >= 20:  # the row first, then the bytes
            store.files.delete(f"file-up-{number - 20}")
            used.data.file(f"file-up-{number - 20}").unlink()

    def events(number: int, store: Store) -> None:
        path = used.data.job(used.running.id) / "events.jsonl"
        with path.open("a") as file:
            file.write(backups.EVENT)
        job = store.jobs.get(used.running.id)
        assert job is not None
        size, step = path.stat().st_size, job.last_step
        store.jobs.take_in(job, new_offset=size, events=[], progress=None, last_step=step)

    def products(number: int, store: Store) -> None:
        job = new_job(store, JobState.RUNNING)
        job_folder(used.data, job)
        publish_adapter(used.data, store, job, f"ft:missing::p{number}", os.urandom(500))

    def keep_on(work: Callable[[int, Store], None]) -> None:
        store = Store.open(url_of(used.data))
        try:
            while not stop.is_set():
                work(turns[work.__name__], store)
                turns[work.__name__] += 1
                time.sleep(0.005)  # SQLite does not grant the lock to the writer that has waited longest
        except BaseException as error:
            failures.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=keep_on, args=(work,)) for work in (uploads, events, products)]
    for thread in threads:
        thread.start()
    made = []
    try:
        for number in range(6):
            backups.until(lambda: min(turns.values()) > 2 * number)  # noqa: B023
            made.append(backup_of(used.data, tmp_path / f"{number}.tar"))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert turns["uploads"] > 20
    for number, one in enumerate(made):
        restored = Workspace(tmp_path / f"restored-{number}")
        restore_into(restored, one.path)
        assert backups.missing(restored) == []


def test_what_a_killed_backup_left_goes_with_the_next(used: Used, tmp_path: Path) -> None:
    """Not the files of a restore that is running."""
    left = [used.data.tmp / "backup-killed", tmp_path / ".tunewright-backup-killed"]
    for folder in left:
        write(folder / "half", "")
        os.utime(folder, (1, 1))
    with scratch_folder(used.data.tmp, "backup-") as other:
        os.utime(other, (1, 1))
        assert not left[0].exists()
        backup_of(used.data, tmp_path / "a.tar")
        assert other.exists()
    assert not any(folder.exists() for folder in (*left, other))


def test_an_interrupted_backup_leaves_nothing(used: Used, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "copying":
            raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        make_backup(used.data, url_of(used.data), tmp_path / "a.tar", interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# restoring


def test_a_restored_folder_is_what_was_archived(used: Used, archive: Path, target: Workspace) -> None:
    done = restore_into(target, archive)
    assert (done.replaced, done.running) == (None, False)
    assert (target.path / DATABASE).read_bytes()[18:20] == b"\1\1", (
        "one file, without a log that may get lost"
    )
    kept = {
        name: data
        for name, data in bytes_in(used.data.path, *FOLDERS).items()
        if name in done.manifest.members
    }
    assert bytes_in(target.path, *FOLDERS) == kept
    assert len(kept) == len(done.manifest.members) - 1
    old, new = rows_of(used.data.path / DATABASE), rows_of(target.path / DATABASE)
    assert (old["files"], old["models"]) == (new["files"], new["models"])
    assert [job["id"] for job in old["jobs"]] == [job["id"] for job in new["jobs"]]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (target.path, *target.path.rglob("*")))
    for name in kept:
        assert int((target.path / name).stat().st_mtime) == int((used.data.path / name).stat().st_mtime)
    assert sorted(path.name for path in target.path.iterdir()) == sorted([*CONTENT, "run"])


def test_jobs_that_were_in_training_wait_for_a_device(used: Used, tmp_path: Path, target: Workspace) -> None:
    """Their spec names paths of the old folder; it is written anew when they are given a device."""
    pausing = new_job(used.store, JobState.QUEUED)
    assert used.store.jobs.claim("cuda:0", ["missing"]) is not None
    used.store.jobs.pause(pausing.id)
    made = backup_of(used.data, tmp_path / "a.tar")
    restore_into(target, made.path)
    store = Store.open(url_of(target))
    jobs = {job.id: job for job in store.jobs.list(kind="fine_tuning", after=None, limit=100)[0]}
    assert (jobs[used.running.id].state, jobs[used.running.id].device) == (JobState.QUEUED, None)
    assert (jobs[pausing.id].state, jobs[pausing.id].device) == (JobState.PAUSED, None)
    assert jobs[used.finished.id].state is JobState.SUCCEEDED
    events = store.jobs.events(used.running.id, after=None, limit=1)[0]
    assert events[0].message.startswith("Restored from a backup; the job continues")
    assert store.engines.list() == [], "an engine that ran elsewhere is none of ours"
    ((deployment, engine),) = store.deployments.all()
    assert (deployment.model, deployment.asked, engine) == ("ft:other:full:1", {"max_loras": 2}, None)
    store.engines.declare(["missing"])
    ((_, engine),) = store.deployments.all()
    assert engine is not None, "the scheduler starts it here"
    assert (engine.state, engine.socket, engine.run) == (EngineState.STOPPED, None, 0)
    store.close()


def test_an_empty_folder_is_restored_into(archive: Path, target: Workspace) -> None:
    target.path.mkdir(parents=True)
    target.create()
    assert restore_into(target, archive).replaced is None


def test_data_is_not_replaced_unasked(used: Used, archive: Path) -> None:
    before = content(used.data)
    with pytest.raises(BackupError, match="has data already"):
        restore_into(used.data, archive)
    assert content(used.data) == before


def test_what_is_replaced_is_kept(used: Used, archive: Path) -> None:
    add_file(used.data, used.store, "file-new", b"made after the backup")
    used.store.close()
    before = content(used.data)
    done = restore_into(used.data, archive, replace=True)
    assert done.replaced is not None
    assert done.replaced.parent == used.data.path
    assert content(Workspace(done.replaced)) == before
    assert "file-new" not in {file["id"] for file in rows_of(used.data.path / DATABASE)["files"]}
    assert not used.data.file("file-new").exists()
    assert backups.missing(used.data) == []
    again = restore_into(used.data, archive, replace=True)
    assert again.replaced is not None
    assert again.replaced != done.replaced


def test_the_log_of_a_killed_service_goes_with_its_database(used: Used, archive: Path) -> None:
    """Beside the restored database it would be replayed into it."""
    add_file(used.data, used.store, "file-new", b"waits in the log")
    log = used.data.path / f"{DATABASE}-wal"
    kept = log.read_bytes()
    used.store.close()
    log.write_bytes(kept)
    done = restore_into(used.data, archive, replace=True)
    assert done.replaced is not None
    assert (done.replaced / log.name).read_bytes() == kept
    assert "file-new" not in {file["id"] for file in rows_of(used.data.path / DATABASE)["files"]}


def test_an_older_archive_is_upgraded(
    archive: Path, target: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future_migration(tmp_path, monkeypatch, known_revisions()[0])
    restore_into(target, archive)
    database = Database(url_of(target))
    assert database.revision() == "9999"
    database.close()


# what is refused


def untouched(archive: Path, target: Workspace, match: str) -> None:
    with pytest.raises(BackupError, match=match) as error:
        restore_into(target, archive)
    assert "\n" not in str(error.value)
    assert not target.path.parent.exists()


def test_a_newer_archive_is_refused(
    used: Used, target: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        future_migration(tmp_path, newer, known_revisions()[0])
        used.store.database.upgrade()
        archive = backup_of(used.data, tmp_path / "a.tar").path
    untouched(archive, target, "was made by a newer Tunewright")
    with pytest.raises(backups_unusable(), match="newer Tunewright"):
        backup_of(used.data, tmp_path / "b.tar")


def test_an_archive_of_a_newer_form_is_refused(
    used: Used, target: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module.Manifest.model_fields["format"], "default", archive_module.FORMAT + 1)
    archive_module.Manifest.model_rebuild(force=True)
    try:
        archive = backup_of(used.data, tmp_path / "a.tar").path
    finally:
        monkeypatch.undo()
        archive_module.Manifest.model_rebuild(force=True)
    untouched(archive, target, "was made by a newer Tunewright")


def test_no_byte_of_an_archive_can_change_unseen(archive: Path, tmp_path: Path) -> None:
    """An archive that is not refused is unpacked unchanged: the change was in unimportant fields of a tar header."""
    whole = archive.read_bytes()
    with open_archive(archive) as opened:
        opened.unpack(tmp_path / "whole", lambda _: None)
    expected = bytes_in(tmp_path / "whole", ".")
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    last = members[-1]
    places = {
        *range(0, last.offset_data + last.size, 4001),
        *range(members[0].offset, members[0].offset_data + 40, 3),
        *range(last.offset, last.offset_data + 160, 3),
        *range(last.offset_data, last.offset_data + last.size, 307),
    }
    refused, changed = 0, tmp_path / "changed.tar"
    for place in sorted(places):
        changed.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        out = tmp_path / "out"
        try:
            with open_archive(changed) as opened:
                opened.verify(lambda _: None)
                opened.unpack(out, lambda _: None)
        except BackupError:
            refused += 1
        else:
            assert bytes_in(out, ".") == expected, f"byte {place}"
            assert not last.offset_data <= place < last.offset_data + last.size, (
                "the manifest has no such byte"
            )
        shutil.rmtree(out, ignore_errors=True)
    assert refused > len(places) / 2


def test_a_changed_byte_is_found_before_anything_is_made(archive: Path, target: Workspace) -> None:
    whole = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        place = tar.getmember("files/file-1").offset_data
    whole[place] ^= 1
    archive.write_bytes(whole)
    untouched(archive, target, "is damaged: files/file-1 is not what was archived")


def test_an_archive_that_was_cut_off_is_refused(archive: Path, target: Workspace) -> None:
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        end = (last := tar.getmembers()[-1]).offset_data + last.size
    for length in (0, 1, 511, 512, 5000, end // 2, last.offset, last.offset + 512, end - 1):
        archive.write_bytes(whole[:length])
        untouched(archive, target, "is not a whole backup|is damaged")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/cron.d/evil", "../evil", "files/../../evil", "files/..", "artifacts/./x", "files//evil", "jobs/x/../../y",
        "run/lock", "tmp/x", "files/a/b", "jobs/x", "artifacts/x", "tunewright.db-wal", "files", "evil", "backups/x.db",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(archive: Path, target: Workspace, name: str) -> None:
    rewrite(archive, lambda members: [*members, (tarfile.TarInfo(name), b"evil")])
    untouched(archive, target, "is refused")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
        tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE,
    ],
)  # fmt: skip
def test_what_is_no_plain_file_is_refused(archive: Path, target: Workspace, kind: bytes) -> None:
    info = tarfile.TarInfo("files/evil")
    info.type, info.linkname = kind, "/etc/passwd"
    rewrite(archive, lambda members: [*members, (info, b"")])
    untouched(archive, target, "is not a plain file|is not a whole backup")


def test_a_name_that_comes_twice_is_refused(archive: Path, target: Workspace) -> None:
    rewrite(archive, lambda members: [*members, (tarfile.TarInfo("files/file-1"), b"evil")])
    untouched(archive, target, "two members named 'files/file-1'")


def test_a_file_that_would_have_to_be_a_folder_is_refused(archive: Path, target: Workspace) -> None:
    more = [(tarfile.TarInfo(name), b"x") for name in ("jobs/j/a", "jobs/j/a/b")]
    rewrite(archive, lambda members: [*members, *more])
    with pytest.raises(OSError, match="jobs/j/a"):
        restore_into(target, archive)
    assert [path.name for path in target.path.iterdir()] == ["run"]


def test_what_the_manifest_does_not_know_is_refused(archive: Path, target: Workspace) -> None:
    rewrite(archive, lambda members: [*members, (tarfile.TarInfo("files/file-2"), b"x")], renew=False)
    untouched(archive, target, "files/file-2 is not in its manifest")


def test_what_the_manifest_has_must_be_there(archive: Path, target: Workspace) -> None:
    rewrite(archive, lambda members: [m for m in members if m[0].name != "files/file-1"], renew=False)
    untouched(archive, target, "files/file-1 is missing")


def test_what_is_no_archive_is_refused(target: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello " * 5000)
    untouched(tmp_path / "x.tar", target, "is not a whole backup")


def test_a_full_disk_is_told_before_it_is_filled(
    archive: Path, target: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(BackupError, match=r"there is no room in .* 10 are free"):
        restore_into(target, archive)
    assert [path.name for path in target.path.iterdir()] == ["run"]


def test_a_link_is_not_moved_away(used: Used, archive: Path, tmp_path: Path) -> None:
    artifacts = used.data.path / "artifacts"
    artifacts.rename(tmp_path / "large-disk")
    artifacts.symlink_to(tmp_path / "large-disk")
    with pytest.raises(BackupError, match="artifacts is a link or a mount of its own"):
        restore_into(used.data, archive, replace=True)
    assert backups.missing(used.data) == []


def test_a_database_elsewhere_is_not_restored(used: Used, archive: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(BackupError, match=r"names .*other.db: restore without it"):
        restore_archive(used.data, url, archive, replace=True, on_progress=silent)


def rewrite(
    archive: Path,
    change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], list[tuple[tarfile.TarInfo, bytes]]],
    *,
    renew: bool = True,
) -> None:
    """Change an archive's members; with `renew` its manifest agrees with them, as an attacker would make it."""
    with tarfile.open(archive) as tar:
        members = []
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file is not None
            members.append((info, file.read()))
    (manifest_info, text) = members.pop()
    members = change(members)
    values = json.loads(text)
    values.pop("sha256")
    if renew:
        values["members"] = {
            info.name: {"bytes": len(data), "sha256": archive_module.hashlib.sha256(data).hexdigest()}
            for info, data in members
        }
    text = json.dumps({**values, "sha256": archive_module._digest(values)}).encode()
    with tarfile.open(archive, "w") as tar:
        for info, data in [*members, (manifest_info, text)]:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# one at a time, and kill -9


def test_two_restores_at_once_make_one_of_them(used: Used, archive: Path, target: Workspace) -> None:
    barrier = threading.Barrier(2)
    outcomes: list[object] = []

    def run() -> None:
        waited: list[bool] = []

        def together(what: str, done: int, total: int) -> None:
            if not waited:
                waited.append(True)
                barrier.wait(10)

        try:
            outcomes.append(
                restore_archive(target, url_of(target), archive, replace=False, on_progress=together)
            )
        except BackupError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(refused) == 1
    assert "another restore is running" in refused[0] or "has data already" in refused[0]
    assert backups.missing(target) == []
    assert sorted(path.name for path in target.path.iterdir()) == sorted([*CONTENT, "run"])


def test_neither_a_backup_nor_a_restore_disturbs_a_restore(used: Used, archive: Path, tmp_path: Path) -> None:
    with held(archive_lock(used.data)) as ours:
        assert ours
        with pytest.raises(BackupError, match="another restore is running"):
            restore_into(used.data, archive, replace=True)
        with pytest.raises(BackupError, match=r"a restore into .* is under way"):
            backup_of(used.data, tmp_path / "b.tar")
    with held(archive_lock(used.data), shared=True) as ours:
        assert ours
        backup_of(used.data, tmp_path / "b.tar")
        with pytest.raises(BackupError, match="a backup or another restore is running"):
            restore_into(used.data, archive, replace=True)
    write_atomically(swap._asked(used.data), "{}")
    with pytest.raises(BackupError, match=r"a restore into .* is under way"):
        backup_of(used.data, tmp_path / "c.tar")


CHANGES = ("replace", "rename", "unlink", "rmdir")


@pytest.mark.parametrize(("finisher", "after"), [("service", False), ("service", True), ("restore", True)])
def test_a_restore_killed_at_any_step_is_done_or_not_begun(
    used: Used, archive: Path, tmp_path: Path, after: bool, finisher: str
) -> None:
    """kill -9 at each change of a folder in turn; then the service starts, or the restore is run again."""
    add_file(used.data, used.store, "file-new", b"made after the backup")
    used.store.close()
    old = content(used.data)
    fresh = Workspace(tmp_path / "fresh")
    restore_into(fresh, archive)
    new = {**bytes_in(fresh.path, *FOLDERS), DATABASE: rows_of(fresh.path / DATABASE)["files"]}
    ends = {"old": 0, "new": 0}
    for number in range(1, 100):
        data = Workspace(tmp_path / "killed")
        shutil.copytree(used.data.path, data.path)
        survived = _restore_in_a_child(data, archive, number, after=after)
        if finisher == "restore":
            assert restore_into(data, archive, replace=True).manifest
        else:
            finish_restore(data, url_of(data))
            clear_abandoned(data)
        now = content(data)
        if now == old:
            assert not survived
            assert finisher == "service"
            assert not list(data.path.glob("replaced-*"))
            ends["old"] += 1
        else:
            assert {**now, DATABASE: now[DATABASE]["files"]} == new
            (first, *_) = sorted(data.path.glob("replaced-*"))
            assert content(Workspace(first)) == old, "the old is kept whole"
            ends["new"] += 1
        assert not is_restore_pending(data)
        assert not list(data.path.glob("restore-*"))
        shutil.rmtree(data.path)
        if survived:
            break
    assert survived
    assert ends["new"] > 10


@pytest.mark.parametrize("number", [1, 4, 20])
def test_a_restore_killed_while_it_unpacks_changed_nothing(used: Used, archive: Path, number: int) -> None:
    used.store.close()
    before = content(used.data)
    assert not _restore_in_a_child(used.data, archive, number, after=True, names=("fsync",))
    assert list(used.data.path.glob("restore-*"))
    assert not is_restore_pending(used.data)
    assert content(used.data) == before
    with held(archive_lock(used.data)) as ours:
        assert ours
        clear_abandoned(used.data)
    assert not list(used.data.path.glob("restore-*"))


def _restore_in_a_child(
    data: Workspace, archive: Path, number: int, *, after: bool, names: tuple[str, ...] = CHANGES
) -> bool:
    """Whether it finished before its `number`-th call of one of these functions killed it."""
    child = os.fork()
    if child == 0:
        try:
            backups.Deadly(number, *names, after=after)
            restore_into(data, archive, replace=True)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def test_a_restore_that_cannot_be_finished_waits_until_it_can(
    used: Used, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used.store.close()
    before = content(used.data)
    with monkeypatch.context() as patch:
        patch.setattr(restore, "finish_restore", lambda data, url: None)  # it was killed here
        restore_into(used.data, archive, replace=True)
    (plan,) = [json.loads((used.data.run / "restore.json").read_text())]
    in_the_way = used.data.path / plan["replaced"] / DATABASE
    write(in_the_way, "who knows how it came there")
    for _ in range(2):
        with pytest.raises(BackupError, match=r"has begun and could not be finished: .*moved before"):
            finish_restore(used.data, url_of(used.data))
        assert is_restore_pending(used.data)
    in_the_way.unlink()
    finish_restore(used.data, url_of(used.data))
    assert content(Workspace(in_the_way.parent)) == before
    assert backups.missing(used.data) == []


def test_what_is_left_of_a_killed_service_is_ended_first(used: Used, archive: Path) -> None:
    """A trainer that keeps running would write into the restored folder."""
    used.store.close()
    reading, writing = os.pipe()
    groups = [
        ProcessGroup.start(
            ["/bin/sh", "-c", "trap '' TERM; sleep 60"], record_path=record, environment={}, lifeline=reading
        )
        for record in (
            used.data.job(used.running.id) / "process.json",
            used.data.engine("missing") / "process.json",
            used.data.run / "api.json",
        )
    ]
    try:
        assert all(group.is_alive() for group in groups)
        restore_into(used.data, archive, replace=True)
        assert not any(group.is_alive() for group in groups)
    finally:
        for group in groups:
            group.end()
        os.close(reading)
        os.close(writing)


def test_what_a_killed_restore_unpacked_is_removed_by_the_next(archive: Path, target: Workspace) -> None:
    target.create()
    write(target.path / "restore-20260101T000000Zx1" / "files" / "half", "")
    restore_into(target, archive)
    assert not list(target.path.glob("restore-*"))


# under a service


@pytest.fixture
def service(used: Used, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceRecord]:
    """A process that holds the data folder's lock, and does nothing else."""
    monkeypatch.setattr(restore, "_SERVICE_TIMEOUT", 0.3)
    record = ServiceRecord(known_revisions()[0], str(used.data.path / DATABASE))
    with held(service_lock(used.data)) as ours:
        assert ours
        record.write(used.data)
        yield record


def refused_under_a_service(used: Used, archive: Path, match: str) -> None:
    before = content(used.data)
    with pytest.raises(BackupError, match=match):
        restore_into(used.data, archive, replace=True)
    assert content(used.data) == before
    assert not is_restore_pending(used.data)
    assert not list(used.data.path.glob("re[sp]*"))


def test_a_service_that_does_not_take_it_on_keeps_its_data(
    used: Used, archive: Path, service: ServiceRecord
) -> None:
    refused_under_a_service(used, archive, "did not begin the restore within .* Nothing was changed")


def test_a_service_of_another_version_is_left_alone(
    used: Used, archive: Path, service: ServiceRecord
) -> None:
    ServiceRecord("0000", service.database).write(used.data)
    refused_under_a_service(used, archive, "is of another version than this command")
    (used.data.run / "service.json").unlink()
    refused_under_a_service(used, archive, "is of another version than this command")


def test_a_service_with_its_database_elsewhere_is_left_alone(
    used: Used, archive: Path, service: ServiceRecord
) -> None:
    ServiceRecord(service.revision, "postgresql://host/db").write(used.data)
    refused_under_a_service(used, archive, "has its database elsewhere")


def test_a_service_that_dies_instead_is_stood_in_for(used: Used, archive: Path) -> None:
    """The service held the lock when it was asked, and released it afterwards."""
    ServiceRecord(known_revisions()[0], str(used.data.path / DATABASE)).write(used.data)
    used.store.close()
    lock = restore.held(service_lock(used.data))
    assert lock.__enter__()
    dies = threading.Thread(
        target=lambda: (backups.until(swap._asked(used.data).exists), lock.__exit__(None, None, None))
    )
    dies.start()
    done = restore_into(used.data, archive, replace=True)
    dies.join()
    assert (done.running, done.replaced is not None) == (False, True)
    assert backups.missing(used.data) == []


# the command line

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return command


def test_backup_and_restore_at_the_command_line(
    used: Used, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_DATA_DIR", str(used.data.path))
    monkeypatch.chdir(tmp_path)
    code, out, err = run("backup", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert (printed["files"], printed["artifacts"], printed["jobs"], printed["checkpoints"]) == (2, 1, 2, 2)
    (archive,) = tmp_path.glob("tunewright-backup-2*Z.tar")
    assert (printed["archive"], printed["bytes"]) == (archive.name, archive.stat().st_size)
    assert "copying: " in err

    code, out, err = run("restore", archive)
    assert (code, out) == (1, "")
    assert "has data already" in err
    code, out, err = run("restore", archive, "--replace")
    assert code == 0, err
    assert "before\tkept in " in out
    assert err.endswith("Start the service to continue with it.\n")
    other = tmp_path / "other"
    assert run("restore", archive, "--data-dir", other)[0] == 0
    assert backups.missing(Workspace(other)) == []

    (tmp_path / "folder").mkdir()
    assert run("backup", "folder", "--data-dir", other)[0] == 0
    assert len(list((tmp_path / "folder").iterdir())) == 1


def test_the_command_line_takes_the_services_database_url(
    used: Used, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    used.store.close()
    (used.data.path / DATABASE).rename(tmp_path / "other.db")
    assert run("backup", tmp_path / "a.tar", "--data-dir", used.data.path)[0] == 1
    monkeypatch.setenv("TUNEWRIGHT_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert run("backup", tmp_path / "a.tar", "--data-dir", used.data.path)[0] == 0
    code, _, err = run("restore", tmp_path / "a.tar", "--data-dir", tmp_path / "new")
    assert code == 1
    assert "TUNEWRIGHT_DATABASE_URL names" in err
    monkeypatch.delenv("TUNEWRIGHT_DATABASE_URL")
    assert run("restore", tmp_path / "a.tar", "--data-dir", tmp_path / "new")[0] == 0


def test_a_full_disk_leaves_nothing_of_an_archive(
    used: Used, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive_module.tarfile.TarFile, "addfile", full)
    code, _, err = run("backup", tmp_path / "a.tar", "--data-dir", used.data.path)
    assert code == 1
    assert err.endswith("error: the disk is full. Nothing is left of it, and nothing was changed\n")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_failures_are_one_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "x.tar").write_bytes(b"x")
    for argv in (("backup",), ("backup", "--database-url", "nonsense"), ("restore", tmp_path / "x.tar")):
        code, out, err = run(*argv, "--data-dir", tmp_path / "data")
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_process_that_only_restores_can_read_jobs(archive: Path, tmp_path: Path) -> None:
    """Their kinds are registered there too, not only where the API or the scheduler has been imported."""
    command = [
        sys.executable,
        "-m",
        "tunewright",
        "restore",
        str(archive),
        "--data-dir",
        str(tmp_path / "new"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
