"""One batch, from spec to result: ask for what has no result yet, until all have one or the batch is to end."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import time
from pathlib import Path

from tunewright.apart import limit_memory
from tunewright.atomic import is_disk_full
from tunewright.batcher.asking import FULL_DISK_WAIT, Asking, keep, seconds_left
from tunewright.batcher.folder import Batched, BatchSpec, Ending, end_file
from tunewright.batcher.requests import Request, requests_of
from tunewright.batcher.results import Results
from tunewright.jobs.failure import explain
from tunewright.jobs.folder import DISK_FULL, STOPPED_RESUMABLE, EventLog, JobFolder
from tunewright.jobs.process import leave
from tunewright.logs import limit_records

log = logging.getLogger("tunewright.batcher")

_NICENESS = 10
"""The processes that answer, serve and train come first."""
_INTERVAL, _SHARE = 1.0, 1000
"""Seconds between two events about the progress, at least the thousandth part of what it took until then."""
_BEAT = 5.0
_LOOK = 0.25
"""Seconds between two looks for the file that asks the batch to end."""
_ADVICE = "Split the file."
_CODES = {
    Ending.EXPIRED: (
        "batch_expired",
        "The completion window of the batch was over before this request was answered.",
    ),
    Ending.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was answered."),
}


class Stopped(Exception):
    """The process was asked to stop."""


def run_batch(folder: JobFolder, spec: BatchSpec) -> int:
    """Answer, and write `result.json`; returns the exit code."""
    faulthandler.enable()  # SIGABRT, sent to a process that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.nice(_NICENESS)
    limit_memory(spec.memory_bytes)
    while True:
        try:
            code = leave(folder, _outcome(folder, spec))
        except Stopped:
            return STOPPED_RESUMABLE
        except OSError as error:
            if not is_disk_full(error):
                raise
            code = DISK_FULL
        if code != DISK_FULL:
            return code
        log.warning(
            "the disk is full; going on in %.0f s", FULL_DISK_WAIT
        )  # what was answered must not be lost
        folder.beat()
        time.sleep(FULL_DISK_WAIT)


def _outcome(folder: JobFolder, spec: BatchSpec) -> Batched:
    """Raises Stopped, OSError where the disk is full, and what is a fault of the program."""
    try:
        return asyncio.run(_batched(folder, spec))
    except Stopped:
        raise
    except Exception as error:
        failure = explain(error, folder.path, process="batcher", advice=_ADVICE)
        if failure is None or is_disk_full(error):
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        return Batched(status="failed", error_code=failure.code, error_message=str(failure))


async def _batched(folder: JobFolder, spec: BatchSpec) -> Batched:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    beating = asyncio.create_task(_beat(folder))
    try:
        with Path(spec.file).open("rb") as file, contextlib.closing(Results(folder, spec.job_id)) as results:
            requests = await asyncio.to_thread(lambda: list(requests_of(file)))
            missing = [request for request in requests if request.custom_id not in results.known]
            progress = _Progress(folder, results, len(requests))
            if results.known:
                progress.say(f"{len(results.known)} of {len(requests)} requests have a result already")
            asking = Asking(spec, missing, file, results, progress.tell)
            ending = await _until(asking, folder, spec, stopped)
            if ending is not Ending.COMPLETED:
                await _end(missing, results, *_CODES[ending])
            progress.tell(is_last=True)
            output, errors = await asyncio.to_thread(results.products)
            return Batched(
                status="succeeded",
                ending=ending,
                completed=results.completed,
                failed=results.failed,
                output=output,
                errors=errors,
                ended_at=time.time(),
            )
    finally:
        beating.cancel()


async def _until(asking: Asking, folder: JobFolder, spec: BatchSpec, stopped: asyncio.Event) -> Ending:
    """Ask, until all requests have a result or the batch is to end; why it has ended. Raises Stopped."""
    tasks = {
        asyncio.create_task(asking.run()): Ending.COMPLETED,
        asyncio.create_task(_asked_to_end(folder)): Ending.CANCELLED,
        asyncio.create_task(asyncio.sleep(max(0.0, seconds_left(spec)))): Ending.EXPIRED,
        asyncio.create_task(stopped.wait()): None,
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        ending = next(tasks[task] for task in tasks if task in done)  # in this order
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if ending is None:
        raise Stopped
    return ending


async def _asked_to_end(folder: JobFolder) -> None:
    while not end_file(folder).exists():
        await asyncio.sleep(_LOOK)


async def _end(requests: list[Request], results: Results, code: str, message: str) -> None:
    """Give a result to the requests that have none."""
    for number, request in enumerate(requests):
        if request.custom_id not in results.known:
            await keep(results.fail, request.custom_id, code, message)
        if number % 1000 == 0:
            await asyncio.sleep(0)  # the process beats in between


async def _beat(folder: JobFolder) -> None:
    """An answer may take as long as a generation may, and wait for live traffic: longer than a step of a job."""
    while True:
        folder.beat()
        await asyncio.sleep(_BEAT)


class _Progress:
    """Writes the number of requests that have a result as events."""

    def __init__(self, folder: JobFolder, results: Results, total: int) -> None:
        self._events = EventLog(folder)
        self._results = results
        self._total = total
        self._before = len(results.known)
        self._began = self._told_at = time.monotonic()

    def say(self, text: str) -> None:
        log.info("%s", text)
        with contextlib.suppress(OSError):
            self._events.message(text)

    def tell(self, *, is_last: bool = False) -> None:
        now = time.monotonic()
        interval = max(_INTERVAL, (now - self._began) / _SHARE)
        if not is_last and now - self._told_at < interval:
            return
        self._told_at = now
        done = len(self._results.known)
        each = (now - self._began) / max(1, done - self._before)
        data = {
            "step": done,
            "total_steps": self._total,
            "phase": "answer",
            "failed": self._results.failed,
            "eta_seconds": round(each * (self._total - done), 1),
        }
        try:
            self._events.metrics(f"answer {done}/{self._total}", data)
        except OSError as error:  # the results are what must not be lost
            if not is_disk_full(error):
                raise
