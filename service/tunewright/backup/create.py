"""`tunewright backup`: one archive of the database and of what it refers to, also while the service runs.

The database is copied as a snapshot. What it refers to exists by then, since bytes are written before rows, and does
not change, but it may be deleted at any time. So it is collected as hard links in a separate folder, just before the
snapshot and again just after it, and copied into the archive from there. What both collections miss was deleted in
between or is lost: then a new snapshot is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tunewright import __version__
from tunewright.atomic import sync_folder
from tunewright.backup.archive import DATABASE, ArchiveWriter, Manifest, Opened
from tunewright.backup.errors import BackupError
from tunewright.backup.locks import archive_lock, held, require_its_user
from tunewright.backup.swap import is_restore_pending
from tunewright.ids import utc_stamp
from tunewright.jobs.folder import JobFolder
from tunewright.registry.scratch import scratch_folder
from tunewright.registry.workspace import Workspace
from tunewright.store.copies import snapshot
from tunewright.store.database import Database
from tunewright.store.references import References, has_ended, references
from tunewright.store.sqlite_file import sqlite_path

ATTEMPTS = 3
_OF_A_RUN = {"process.json", "lock", "heartbeat"}
"""Names in a job's folder that only concern its running processes."""

OnProgress = Callable[[str, int, int], None]
"""Called with the current activity, the number of bytes that are done, and their total number."""


@dataclass
class Backup:
    """A backup that was made."""

    path: Path
    bytes: int
    manifest: Manifest
    left_out: list[str]
    """Checkpoints that were removed meanwhile or incomplete: older ones, which a running trainer removes."""
    changed: list[str]
    """Ids of files whose bytes are no longer those that were uploaded."""


def default_name() -> str:
    return f"tunewright-backup-{utc_stamp()}.tar"


def make_backup(workspace: Workspace, database_url: str, archive: Path, on_progress: OnProgress) -> Backup:
    """Write `archive`, which must not exist, and appears only when it is complete and synced to disk.

    What is in a bucket is fetched, and is in the archive too. Raises BackupError, DatabaseUnusable, OSError,
    ArtifactsUnavailable and StorageFull; then nothing is left of it.
    """
    database = sqlite_path(database_url)
    if database is not None and not database.is_file():
        raise BackupError(f"there is no database {database}: is --data-dir right?")
    if not archive.parent.is_dir():
        raise BackupError(f"there is no folder {archive.parent} to put an archive in")
    if archive.exists():
        raise BackupError(f"{archive} exists already: give another name, or remove it")
    require_its_user(workspace)
    with ExitStack() as stack:
        ours = stack.enter_context(held(archive_lock(workspace), shared=True))
        if not ours or is_restore_pending(workspace):
            raise BackupError(f"a restore into {workspace.path} is under way: try again when it is done")
        temporary = stack.enter_context(scratch_folder(archive.parent, ".tunewright-backup-"))
        for number in range(1, ATTEMPTS + 1):
            try:
                backup = _attempt(
                    workspace,
                    database_url,
                    temporary / f"{number}.tar",
                    on_progress,
                    is_last=number == ATTEMPTS,
                )
                break
            except _Gone as gone:
                if number == ATTEMPTS:
                    raise BackupError(
                        f"{gone}, in {ATTEMPTS} attempts. If it was not deleted just now, it is lost: put it back "
                        "from an earlier backup, or delete its entry (tunewright files delete, or models delete)"
                        + ("" if workspace.remote else ". Weights that are in a bucket need --artifacts")
                    ) from gone
        if archive.exists():
            raise BackupError(f"{archive} was made by another process meanwhile: give another name")
        os.replace(backup.path, archive)
        sync_folder(archive.parent)
    backup.path = archive
    return backup


class _Gone(Exception):
    """Something that the snapshot refers to does not exist any more, or has changed since."""


def _attempt(
    workspace: Workspace, database: str, archive: Path, on_progress: OnProgress, *, is_last: bool
) -> Backup:
    """Write the archive from one snapshot. Raises _Gone."""
    workspace.tmp.mkdir(mode=0o700, exist_ok=True)
    with scratch_folder(workspace.tmp, "backup-") as gathered:
        on_progress("copying the database", 0, 0)
        gatherer = _Gatherer(workspace, database, gathered, is_last=is_last)
        gatherer.gather_ahead(references(database))
        created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        snapshot(database, gathered / DATABASE)
        copied = f"sqlite:///{gathered / DATABASE}"
        revision = Database(copied).revision()
        if revision is None:
            raise BackupError(f"the database {Database(database)} is empty: there is nothing to back up yet")
        refers_to = references(copied)
        gatherer.gather(refers_to)
        with archive.open("xb") as target:
            os.fchmod(target.fileno(), 0o600)
            writer = ArchiveWriter(target)
            try:
                _copy(gathered, writer, on_progress)
            except FileNotFoundError as error:
                # a service that starts empties the folder of temporary files
                raise _Gone(f"{error.filename} was removed") from error
            manifest = writer.finish(
                version=__version__, revision=revision, created_at=created_at, counts=gatherer.counts
            )
            target.flush()
            os.fsync(target.fileno())
    changed = [
        file.id for file in refers_to.files if manifest.members[f"files/{file.id}"].sha256 != file.sha256
    ]
    return Backup(archive, archive.stat().st_size, manifest, gatherer.left_out, changed)


def _copy(gathered: Path, writer: ArchiveWriter, on_progress: OnProgress) -> None:
    names = sorted(_names(gathered))
    total = sum((gathered / name).stat().st_size for name in names)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress("copying", done, max(done, total))

    for name in names:
        with (gathered / name).open("rb") as file:
            writer.add(Opened.of(file, name), on_bytes)


class _Gatherer:
    """Links what a snapshot refers to into a folder, under its names in the archive."""

    def __init__(self, workspace: Workspace, database: str, folder: Path, *, is_last: bool) -> None:
        self._workspace = workspace
        self._database = database
        self._folder = folder
        self._is_last = is_last
        self.counts = {"files": 0, "artifacts": 0, "jobs": 0, "checkpoints": 0}
        self.left_out: list[str] = []

    def gather_ahead(self, refers_to: References) -> None:
        """Gather files and artifacts, which do not change. Some may be deleted before the snapshot is taken."""
        for file in refers_to.files:
            self._take_file(file.id)
        for sha256 in refers_to.artifacts:
            self._take_artifact(sha256)

    def gather(self, refers_to: References) -> None:
        """Gather everything, beginning with what may be removed soonest. Raises _Gone."""
        for id in refers_to.unfinished:
            self._unfinished_job(id)
        for file in refers_to.files:
            if not self._take_file(file.id):
                raise _Gone(
                    f"the file {file.id} is listed, but {self._workspace.file(file.id)} does not exist"
                )
        for sha256 in refers_to.artifacts:
            if not self._take_artifact(sha256):
                where = self._workspace.artifacts.local(sha256)
                raise _Gone(f"a model is listed, but its weights {where} do not exist")
        for (
            id
        ) in refers_to.finished:  # their folders may be removed: what the service needs is in the database
            self._records(self._workspace.job(id), self._folder / "jobs" / id, but=set())
        self._keep_only("files", {file.id for file in refers_to.files})
        self._keep_only("artifacts", refers_to.artifacts.keys())
        self.counts["files"] = len(refers_to.files)
        self.counts["artifacts"] = len(refers_to.artifacts)
        self.counts["jobs"] = len(refers_to.unfinished) + len(refers_to.finished)

    def _take_file(self, id: str) -> bool:
        """As `_take_artifact`."""
        target = self._folder / "files" / id
        if _take(self._workspace.file(id), target):
            return True
        if self._workspace.remote_files is None:
            return False
        try:
            self._workspace.remote_files.copy(id, target)
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                return False
            raise
        return True

    def _take_artifact(self, sha256: str) -> bool:
        """Take an artifact, from the bucket where it is not on this machine. False where it does not exist. Raises
        ArtifactsUnavailable and StorageFull."""
        target = self._folder / "artifacts" / sha256
        if _take_folder(self._workspace.artifacts.local(sha256), target):
            return True
        if self._workspace.remote is None:
            return False
        target.mkdir(parents=True)
        try:
            self._workspace.remote.copy(sha256, target)
        except BaseException as error:
            shutil.rmtree(target, ignore_errors=True)
            if isinstance(error, FileNotFoundError):
                return False
            raise
        return True

    def _unfinished_job(self, id: str) -> None:
        """Gather the folder of an unfinished job. Its process may write to it, and the scheduler empties it when the
        job has ended. Raises _Gone."""
        source, target = JobFolder(self._workspace.job(id)), JobFolder(self._folder / "jobs" / id)
        if _take(
            source.result_file, target.result_file
        ):  # written after the product, which is therefore complete
            _take_folder(source.adapter, target.adapter)
            _take_folder(source.model, target.model)
            _take_folder(source.work, target.work)  # where the product is a file
        for step, path in source.complete_checkpoints():
            if _take_checkpoint(path, target.checkpoints / path.name):
                self.counts["checkpoints"] += 1
            else:
                self.left_out.append(f"step {step} of {id}")
        self._records(source.path, target.path, but={source.result_file.name})
        if has_ended(self._database, id):  # so its folder is being emptied
            if not self._is_last:
                raise _Gone(f"job {id} has ended since")
            target.result_file.unlink(missing_ok=True)  # its product may be missing: the job will run again
            for product in (target.adapter, target.model, target.work):
                shutil.rmtree(product, ignore_errors=True)

    def _keep_only(self, kind: str, names: Set[str]) -> None:
        """Remove what was gathered ahead and is not in the snapshot, since it was deleted before."""
        folder = self._folder / kind
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @staticmethod
    def _records(source: Path, target: Path, *, but: set[str]) -> None:
        """Gather the files directly in a job's folder, the spec, the events, the log, and those of TensorBoard."""
        _take_folder(JobFolder(source).tensorboard, JobFolder(target).tensorboard)
        with suppress(FileNotFoundError):
            for entry in os.scandir(source):
                unwanted = entry.name in _OF_A_RUN | but or entry.name.startswith(".")
                if not unwanted and entry.is_file(follow_symlinks=False):
                    _take(source / entry.name, target / entry.name)


def _take(source: Path, target: Path) -> bool:
    """Link `source` to `target`, or copy it. False where it does not exist and was not taken before. Later writes to
    the file are visible in the link; its removal does not affect it."""
    if target.exists():
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:  # a filesystem without links, or another one
        try:
            shutil.copy2(source, target)
        except FileNotFoundError:
            return False
    return True


def _take_folder(source: Path, target: Path) -> bool:
    """Take all files of a folder. False, with nothing taken, where it is missing, empty, or loses files meanwhile."""
    if target.is_dir():
        return True
    try:
        names = list(_names(source))
    except FileNotFoundError:
        return False
    if names and all(_take(source / name, target / name) for name in names):
        return True
    shutil.rmtree(target, ignore_errors=True)
    return False


def _take_checkpoint(source: Path, target: Path) -> bool:
    """Take a checkpoint. False, with nothing taken, where it is incomplete: one that is being removed may still have
    its manifest, but not all files that this names."""
    if not _take_folder(source, target):
        return False
    try:
        files = json.loads((target / "complete.json").read_bytes())["files"]
        if all((target / name).is_file() for name in files):
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(target, ignore_errors=True)
    return False


def _names(folder: Path, prefix: str = "") -> Iterator[str]:
    """Relative names of the plain files in a folder and below. Raises FileNotFoundError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _names(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield prefix + entry.name
