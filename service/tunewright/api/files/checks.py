"""The checks of uploaded files: in the background, each in a process with limits (`kinds.data`).

Small files do not wait for large ones. What is not done when the api ends is done after its next start, since a file
whose check has no result has the status `uploaded`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress

from tunewright.errors import TunewrightError
from tunewright.kinds.data import inspect_apart
from tunewright.registry.workspace import Workspace
from tunewright.rows.reading import Reading
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

SMALL = 8 * 2**20
"""Bytes of a file whose check the answer to its upload waits for."""
_PATIENCE = 15.0
"""Seconds that it waits at most."""
_AT_ONCE = 2
"""Small files; of large ones, one."""
_AGAIN_AFTER = 30.0
"""Seconds until a check is tried again that could not be made, or not recorded."""

_Waiting = tuple[Store, Workspace, FileRecord, "Future[FileRecord]"]


class FileChecks:
    """Its threads are started with the first check, and end with the process without having to be done."""

    def __init__(self) -> None:
        self._small, self._large = (queue.SimpleQueue[_Waiting](), queue.SimpleQueue[_Waiting]())
        self._lock, self._is_running = threading.Lock(), False

    async def checked(self, store: Store, workspace: Workspace, record: FileRecord) -> FileRecord:
        """Check a file. Returns its record with the result where that comes soon, else as it is."""
        result = asyncio.wrap_future(self.start(store, workspace, record))
        if record.bytes <= SMALL:
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(result), _PATIENCE)
        return record

    def resume(self, store: Store, workspace: Workspace) -> None:
        """Check the files whose checks an earlier process has not finished."""
        for record in store.files.unchecked():
            self.start(store, workspace, record)

    def start(self, store: Store, workspace: Workspace, record: FileRecord) -> Future[FileRecord]:
        """The file's record once it is checked; as it was, where it was deleted meanwhile."""
        with self._lock:
            if not self._is_running:
                self._is_running = True
                for waiting in [self._large, *[self._small] * _AT_ONCE]:
                    threading.Thread(
                        target=self._run, args=(waiting,), name="file check", daemon=True
                    ).start()
        result: Future[FileRecord] = Future()
        (self._small if record.bytes <= SMALL else self._large).put((store, workspace, record, result))
        return result

    def _run(self, waiting: queue.SimpleQueue[_Waiting]) -> None:
        while True:
            store, workspace, record, result = waiting.get()
            while True:
                try:
                    checked = _check(store, workspace, record)
                    break
                except (TunewrightError, OSError) as error:
                    log.warning("checking %s: %s; trying again", record.id, error)
                except Exception:
                    log.exception("checking %s", record.id)
                time.sleep(_AGAIN_AFTER)
            if not result.cancelled():
                result.set_result(checked)


def _check(store: Store, workspace: Workspace, record: FileRecord) -> FileRecord:
    """Raises EngineUnavailable, StorageFull, Busy and OSError where it has to be tried again."""
    try:
        with workspace.fetch_file(record.id).open("rb") as file:
            report = inspect_apart(file, Reading())
    except FileNotFoundError:
        if store.files.get(record.id) is None:
            return record
        raise
    status = FileStatus.PROCESSED if report.problem is None else FileStatus.ERROR
    return store.files.finish_check(record.id, status, report.as_json()) or record
