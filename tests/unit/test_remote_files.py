"""Files in a bucket: there before their row and gone after it, whole after kills, in a cache of limited size."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from test_api import BASE, ROW, api, built, make, upload, worker  # noqa: F401 (fixtures)

from backups import url_of
from rows import FILE, create_job
from s3 import S3
from tunewright.backup.create import make_backup
from tunewright.backup.restore import restore_archive
from tunewright.config import RetentionOptions, StorageOptions
from tunewright.errors import ArtifactsUnavailable
from tunewright.kinds.products import place_file
from tunewright.kinds.rows import sources_of
from tunewright.registry.bucket import Bucket
from tunewright.registry.remote_files import RemoteFiles
from tunewright.registry.workspace import Workspace
from tunewright.rows.reading import Reading
from tunewright.scheduler.bucket import BucketKeeper
from tunewright.scheduler.inputs import InputFiles, fetch_inputs
from tunewright.scheduler.retention import Retention
from tunewright.store.states import FileStatus, JobState
from tunewright.store.store import Store

DAY = 86_400.0


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped is not asked again and again."""
    monkeypatch.setattr("tunewright.registry.bucket._ATTEMPTS", 1)
    monkeypatch.setattr("tunewright.registry.bucket._ATTEMPTS_OF_A_STREAM", 1)


@pytest.fixture
def options(tmp_path: Path, s3: S3) -> StorageOptions:
    return StorageOptions(
        data_dir=tmp_path / "data",
        artifacts=s3.bucket(),
        artifacts_endpoint=s3.endpoint,
        files_in_bucket=True,
    )


@pytest.fixture
def data(options: StorageOptions) -> Workspace:
    folder = Workspace.of(options)
    folder.create()
    return folder


@pytest.fixture
def files(data: Workspace) -> RemoteFiles:
    assert data.remote_files is not None
    return data.remote_files


def lose_cache(data: Workspace) -> None:
    for path in data.files.iterdir():
        path.unlink()


def rests(data: Workspace, id: str, seconds: float = 3600.0) -> None:
    """The file was last used so long ago."""
    os.utime(data.file(id), (time.time() - seconds,) * 2)


def retain(store: Store, data: Workspace, later: float = 0.0) -> None:
    """A round of the retention so much later."""
    Retention(RetentionOptions(), store, data, lambda: time.time() + later)._unlisted_files()


def test_the_api_works_with_what_is_in_the_bucket_alone(
    api: TestClient,  # noqa: F811
    data: Workspace,
    store: Store,
    files: RemoteFiles,
    s3: S3,
) -> None:
    id = upload(api)
    lose_cache(data)
    assert api.get(f"/v1/files/{id}/content").content == ROW
    lose_cache(data)
    asked = {
        "model": BASE,
        "training_file": id,
        "data": {"columns": {"prompt": "prompt", "completion": "completion"}},
    }
    assert api.post("/v1/fine_tuning/jobs", json=asked).status_code in (200, 400), "its rows were read"
    assert data.file(id).read_bytes() == ROW
    other = upload(api, b'{"prompt": "a", "completion": "b"}\n')
    lose_cache(data)
    s3.stop()
    try:
        refused = api.post("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "artifacts_unavailable")
        assert api.get(f"/v1/files/{other}/content").status_code == 503
        assert api.delete(f"/v1/files/{other}").status_code == 200
        assert api.get(f"/v1/files/{other}").status_code == 404
    finally:
        s3.start_again()
    assert other in files.stored(), "its bytes go later"
    retain(store, data)
    assert other in files.stored(), "it might be an upload that has no row yet"
    retain(store, data, 2 * DAY)
    assert other not in files.stored()
    assert list(data.tmp.iterdir()) == []


def test_what_one_machine_stores_another_fetches_and_damage_is_found(
    tmp_path: Path, data: Workspace, files: RemoteFiles, options: StorageOptions
) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"rows\n")
    with data.keeping("file-1"):
        place_file(data, made, "file-1")
        place_file(data, made, "file-1")  # again, after a crash
    there = Workspace.of(options.model_copy(update={"data_dir": tmp_path / "there"}))
    there.create()
    assert there.fetch_file("file-1").read_bytes() == b"rows\n"
    assert not there.fetch_file("file-2").exists(), "opening it says that it is missing"
    (name,) = files._objects("file-1")
    assert name.endswith(hashlib.sha256(b"rows\n").hexdigest())
    lose_cache(there)
    files._bucket.write(name, b"other")
    with pytest.raises(ArtifactsUnavailable, match=r"file-1 in .* is damaged"):
        there.fetch_file("file-1")
    assert list(there.files.iterdir()) == list(there.tmp.iterdir()) == []
    assert not data.remove_file("file-1", lambda: True)
    assert data.remove_file("file-1", lambda: False)
    assert (files.stored(), data.file("file-1").exists()) == ({}, False)
    assert not data.remove_file("file-1", lambda: False)


class Killed(BaseException):
    pass


def kill_before(step: int, patched: pytest.MonkeyPatch, *steps: tuple[object, str]) -> None:
    """Raise Killed before the step of this number, from 0, of calls of `steps`."""
    left = [step]

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return method(*arguments, **named)

        return call

    for owner, name in steps:
        patched.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_upload_or_a_fetch_that_is_killed_leaves_nothing_half(
    data: Workspace, store: Store, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def stored() -> None:
        temporary = data.tmp / "file-7"
        temporary.write_bytes(b"{}\n")
        with data.keeping("file-7"):
            data.keep_file(temporary, "file-7")
            store.files.add(**{**FILE, "id": "file-7"})

    with monkeypatch.context() as patched:
        kill_before(step, patched, (Bucket, "upload"), (os, "replace"), (type(store.files), "add"))
        with pytest.raises(Killed):
            stored()
    assert store.files.get("file-7") is None
    retain(store, data, 2 * DAY)
    assert (files.stored(), data.file("file-7").exists()) == ({}, False)
    stored()
    lose_cache(data)
    if step < 2:
        with monkeypatch.context() as patched:
            kill_before(step, patched, (Bucket, "download"), (os, "replace"))
            with pytest.raises(Killed):
                data.fetch_file("file-7")
        assert not data.file("file-7").exists()
    assert data.fetch_file("file-7").read_bytes() == b"{}\n"


def test_a_removal_that_is_killed_is_finished_later(
    data: Workspace, store: Store, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.file("file-8").write_bytes(b"{}\n")
    files.upload(data.file("file-8"), "file-8")
    with monkeypatch.context() as patched:
        kill_before(0, patched, (Bucket, "remove"))
        with pytest.raises(Killed):  # its row was deleted before
            data.remove_file("file-8", lambda: False)
    retain(store, data, 2 * DAY)
    assert (files.stored(), data.file("file-8").exists()) == ({}, False)


def test_the_cache_keeps_to_its_size(data: Workspace, files: RemoteFiles) -> None:
    for number in range(1, 6):
        data.file(f"file-{number}").write_bytes(b"x" * 100)
        if number != 5:
            files.upload(data.file(f"file-{number}"), f"file-{number}")
        rests(data, f"file-{number}", 3600.0 - number)
    data.fetch_file("file-1")
    with data.keeping("file-2"):
        assert files.shrink_cache(500, list) == 500
        assert files.shrink_cache(0, lambda: {"file-3"}) == 400
    there = sorted(path.name for path in data.files.iterdir())
    assert there == ["file-1", "file-2", "file-3", "file-5"], "used now, held, in use, in no bucket: kept"
    lost = sources_of(
        {"file-1": 1.0, "file-9": 1.0, "file-4": 0.5}, data, Reading(), {"file-1", "file-4"}.__contains__
    )
    assert [source.id for source in lost] == ["file-1", "file-4"], "also what is fetched first"
    assert data.fetch_file("file-4").stat().st_size == 100
    assert files.upload_missing({"file-4", "file-5", "file-6"}) == 1
    assert files.stored().keys() == {f"file-{number}" for number in range(1, 6)}


@pytest.mark.each_database
def test_what_is_at_work_stays_in_the_cache(store: Store) -> None:
    for id in ("read", "checked", "idle", "ended", "unchecked"):
        status = FileStatus.UPLOADED if id == "unchecked" else FileStatus.PROCESSED
        store.files.add(**{**FILE, "id": f"file-{id}"}, status=status)
    create_job(store, state=JobState.PAUSED, training_file="file-read", validation_file="file-checked")
    create_job(store, state=JobState.FAILED, training_file="file-ended")
    assert store.files.at_work() == {"file-read", "file-checked", "file-unchecked"}
    assert {"file-idle", "file-ended"} < store.files.ids()


def fetched(inputs: InputFiles) -> None:
    """Wait until its one thread has done what it was asked."""
    inputs._threads.submit(lambda: None).result()


def test_jobs_wait_for_their_files(data: Workspace, store: Store, files: RemoteFiles, s3: S3) -> None:
    id = FILE["id"]
    data.file(id).write_bytes(b"{}\n")
    files.upload(data.file(id), id)
    job = create_job(store, state=JobState.QUEUED, training_file=id)
    inputs = InputFiles(data)
    assert inputs.of(job)
    lose_cache(data)
    s3.stop()
    try:
        with pytest.raises(ArtifactsUnavailable):
            fetch_inputs(data, job)
        assert not inputs.of(job)
        fetched(inputs)
        assert not inputs.of(job)
        assert not inputs.of(job), "it is tried again later"
        assert not inputs._fetches
    finally:
        s3.start_again()
    inputs._not_before.clear()
    assert not inputs.of(job)
    fetched(inputs)
    assert inputs.of(job)
    assert data.file(id).exists()
    assert not inputs.are_here("file-nowhere")
    fetched(inputs)
    assert inputs.are_here("file-nowhere")
    assert inputs.are_here("file-nowhere"), "who opens it says that it is missing"
    lose_cache(data)
    fetch_inputs(data, job)
    assert data.file(id).exists()


def test_a_backup_has_what_is_in_the_bucket_alone_and_a_restore_is_uploaded(
    tmp_path: Path, data: Workspace, store: Store, files: RemoteFiles, options: StorageOptions
) -> None:
    content = b"{}\n"
    store.files.delete(FILE["id"])
    store.files.add(**{**FILE, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    data.file(FILE["id"]).write_bytes(content)
    BucketKeeper(options, store, data).round(data.remote)  # type: ignore[arg-type]
    assert files.stored().keys() == {FILE["id"]}, "from before it had a bucket"
    lose_cache(data)
    archive = tmp_path / "a.tar"
    made = make_backup(data, url_of(data), archive, lambda *_: None)
    assert (made.manifest.counts["files"], made.changed) == (1, [])
    shutil.rmtree(data.files)
    there = Workspace(tmp_path / "there")
    restore_archive(there, url_of(there), archive, replace=False, on_progress=lambda *_: None)
    assert there.file(FILE["id"]).read_bytes() == content
