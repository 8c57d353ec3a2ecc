"""One cleaning, from spec to result. Its memory is limited: nothing but the hashes of rows grows with the file."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import threading
import time
from importlib import import_module
from pathlib import Path

from tunewright.apart import limit_memory
from tunewright.cleaner.folder import Cleaned, CleaningSpec, cleaned_file
from tunewright.jobs.failure import explain
from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder
from tunewright.jobs.process import leave
from tunewright.jobs.products import product_at
from tunewright.logs import limit_records
from tunewright.rows.cleaning.clean import NothingLeft, clean_file
from tunewright.rows.cleaning.counts import CleaningReport
from tunewright.rows.cleaning.saved import Keeper, Stopped
from tunewright.rows.cleaning.step import InvalidSteps
from tunewright.rows.cleaning.steps.duplicates import InvalidValidation
from tunewright.rows.faults import InvalidData
from tunewright.rows.formats import inspect

log = logging.getLogger("tunewright.cleaner")

_NICENESS = 10
"""The processes that answer, serve and train come first."""
_INTERVAL, _SHARE = 1.0, 100
"""Seconds between two events about the progress, at least the hundredth part of what it took until then: a cleaning of
hours has some hundreds of them."""
_FIRST_ROWS = 100
"""Rows of the product that are looked at: each row was checked when it was read, and again where it was changed."""
_COUNTED = ("removed", "changed", "flagged")


def run_cleaning(folder: JobFolder, spec: CleaningSpec) -> int:
    """Clean, and write `result.json`; returns the exit code."""
    faulthandler.enable()  # SIGABRT, sent to a process that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    os.nice(_NICENESS)
    import_module("numpy")  # so that it does not count
    limit_memory(spec.memory_bytes)
    try:
        outcome = _cleaned(folder, spec, stop)
    except Stopped:
        return STOPPED_RESUMABLE
    except NothingLeft as nothing:
        outcome = _failed(
            "nothing_left", f"{nothing}; loosen the options of those that remove the most", nothing.report
        )
    except InvalidSteps as error:
        outcome = _failed("invalid_steps", str(error))
    except InvalidValidation as error:
        outcome = _failed("invalid_against", str(error))
    except InvalidData as error:
        outcome = _failed("invalid_file", str(error))
    except Exception as error:
        failure = explain(error, folder.path, process="cleaner", advice=_advice(spec))
        if failure is None:
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        outcome = _failed(failure.code, str(failure))
    return leave(folder, outcome)


def _cleaned(folder: JobFolder, spec: CleaningSpec, stop: threading.Event) -> Cleaned:
    events = EventLog(folder)
    target = cleaned_file(folder)
    target.parent.mkdir(exist_ok=True)
    names = [step.type for step in spec.steps]
    _tell(events, f"Cleaning {spec.rows} rows: {', '.join(names)}")
    report = clean_file(
        Path(spec.file),
        target,
        spec.steps,
        reading=spec.reading,
        validation=Path(spec.against) if spec.against else None,
        progress=_Progress(folder, events, spec.rows, stop).at,
        keeper=Keeper(is_stopped=stop.is_set),
    )
    _tell(events, _told(report))
    with target.open("rb") as file:
        check = inspect(file, most_rows=_FIRST_ROWS)
    check.rows = report.rows_after
    return Cleaned(
        status="succeeded",
        **dict(product_at(target)),
        check=check.as_json(),
        report=report.model_dump(mode="json"),
    )


def _tell(events: EventLog, text: str) -> None:
    """Say it in the events and in the log."""
    log.info("%s", text)
    events.message(text)


def _failed(code: str, message: str, report: CleaningReport | None = None) -> Cleaned:
    found = report.model_dump(mode="json") if report is not None else None
    return Cleaned(status="failed", error_code=code, error_message=message, report=found)


def _advice(spec: CleaningSpec) -> str:
    """What to do where the memory is too small."""
    limit = f"A cleaning may take {spec.memory_bytes / 2**30:.3g} GiB"
    return f"{limit}: leave out near_duplicates, which takes the most for each row, or split the file."


def _told(report: CleaningReport) -> str:
    """The result in one line."""
    counts = [(step.step, what, getattr(step, what)) for what in _COUNTED for step in report.steps]
    done = [f"{step} {what} {rows}" for step, what, rows in counts if rows]
    left = f"{report.rows_after} of {report.rows_before} rows are left, {report.changed} of them changed"
    return f"{left} ({', '.join(done)})" if done else left


class _Progress:
    """Writes the number of rows that were read as events, and beats."""

    def __init__(self, folder: JobFolder, events: EventLog, total: int, stop: threading.Event) -> None:
        self._folder = folder
        self._events = events
        self._total = total
        self._stop = stop
        self._told_at = self._began = self._started = time.monotonic()
        self._before: int | None = None
        """Rows that an earlier process has read."""

    def at(self, rows: int) -> None:
        """Raises Stopped while the rows of the other file are read, of which nothing is saved."""
        now = time.monotonic()
        if not rows and self._stop.is_set():
            raise Stopped
        if rows and self._before is None:
            self._before, self._began = rows - 1, now
            if self._before:
                _tell(self._events, f"Going on behind row {self._before}")
        interval = max(_INTERVAL, (now - self._started) / _SHARE)
        if now - self._told_at < interval and rows != self._total:
            return
        self._told_at = now
        self._folder.beat()
        if self._before is None:
            return
        total = max(self._total, rows)
        seconds_each = (now - self._began) / (rows - self._before)
        self._events.metrics(
            f"clean {rows}/{total}",
            {
                "step": rows,
                "total_steps": total,
                "phase": "clean",
                "eta_seconds": round(seconds_each * (total - rows), 1),
                "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            },
        )
