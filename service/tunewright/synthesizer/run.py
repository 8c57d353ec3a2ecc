"""One synthesis, from spec to result: draw the rows, ask the teacher, make rows of the answers, remove copies."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
from importlib import import_module
from pathlib import Path

from tunewright.apart import limit_memory
from tunewright.atomic import write_atomically
from tunewright.jobs.asking import Stopped
from tunewright.jobs.failure import explain
from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder
from tunewright.jobs.process import leave
from tunewright.jobs.products import product_at
from tunewright.jobs.progress import AnswersProgress
from tunewright.logs import limit_records
from tunewright.rows.drawing import drawn
from tunewright.rows.faults import InvalidData
from tunewright.rows.formats import inspect, read_rows
from tunewright.synthesizer.answers import Answers
from tunewright.synthesizer.asking import AnswersFile, ask
from tunewright.synthesizer.folder import (
    MadeRows,
    SynthesisSpec,
    Synthesized,
    answers_file,
    dropped_file,
    made_file,
)
from tunewright.synthesizer.new_rows import NewRows
from tunewright.synthesizer.paraphrases import Paraphrases
from tunewright.synthesizer.product import Made, Maker, nothing_made
from tunewright.synthesizer.questions import Asker, SourceRow
from tunewright.synthesizer.report import SynthesisReport
from tunewright.synthesizer.tasks import AnswersTask, ParaphrasesTask

log = logging.getLogger("tunewright.synthesizer")

_NICENESS = 10
"""The processes that answer, serve and train come first."""
_BEAT = 5.0
_MOST_ROUNDS = 12
"""How often it is asked for, at most: after each round all rows are made again, from the first request on."""
_FIRST_ROWS = 100
"""Rows of the product that are looked at: each was checked when it was made."""
_ADVICE = "Draw fewer rows with `rows`, or ask for fewer with `count`."


def run_synthesis(folder: JobFolder, spec: SynthesisSpec) -> int:
    """Make the rows, and write `result.json`; returns the exit code."""
    faulthandler.enable()  # SIGABRT, sent to a process that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.nice(_NICENESS)
    import_module("numpy")  # so that it does not count
    limit_memory(spec.memory_bytes)
    try:
        return leave(folder, synthesize(folder, spec))
    except Stopped:
        return STOPPED_RESUMABLE


def synthesize(folder: JobFolder, spec: SynthesisSpec) -> Synthesized:
    """Make the rows, in the main thread. Raises Stopped, and what is a fault of the program."""
    try:
        return asyncio.run(_Synthesis(folder, spec).run())
    except Stopped:
        raise
    except InvalidData as error:
        return _failed("invalid_file", str(error))
    except Exception as error:
        failure = explain(error, folder.path, process="synthesizer", advice=_ADVICE)
        if failure is None:
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        return _failed(failure.code, str(failure))


def _failed(code: str, message: str, report: SynthesisReport | None = None) -> Synthesized:
    told = report.model_dump(mode="json") if report is not None else None
    return Synthesized(status="failed", error_code=code, error_message=message, report=told)


class _Synthesis:
    def __init__(self, folder: JobFolder, spec: SynthesisSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._events = EventLog(folder)
        self._is_making = False
        """Whether the thread that makes rows is at work."""

    async def run(self) -> Synthesized:
        self._stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stopped.set)
        self._folder.work.mkdir(exist_ok=True)
        beating = asyncio.create_task(self._beat())
        try:
            asker = await asyncio.to_thread(_asker, self._spec)
            self._tell(
                f"{self._spec.teacher.name} makes {self._spec.task.type} of {len(asker.rows)} rows, with "
                f"{asker.wanted} requests"
            )
            with contextlib.closing(AnswersFile(answers_file(self._folder))) as answers:
                return await self._made(asker, answers)
        finally:
            beating.cancel()

    async def _made(self, asker: Asker, answers: AnswersFile) -> Synthesized:
        maker = Maker(self._spec, asker, self._go_on)
        # with the requests in which there is nothing to ask
        progress = AnswersProgress(self._folder, self._events, lambda: len(answers.kept) + answers.not_asked)
        if progress.before:
            self._tell(f"{progress.before} answers are there already")
        requests, before = asker.wanted, 0
        for round in range(1, _MOST_ROUNDS + 1):
            progress.total = requests
            await ask(self._spec, asker, range(before, requests), answers, progress.tell, self._stopped)
            progress.tell(is_last=True)
            self._is_making = True
            made = await asyncio.to_thread(maker.make, answers.kept, requests)
            self._is_making = False
            missing = asker.wanted - len(made.rows)
            if round == _MOST_ROUNDS or missing == 0 or requests == asker.most:
                break
            before, requests = requests, min(asker.most, requests + missing)
            self._tell(f"{missing} rows are missing, and are asked for again")
        report = maker.report(made, answers.kept, requests, len(asker.rows))
        for line in report.told():
            self._tell(line)
        lines = maker.dropped_lines(made, answers.kept)
        return await asyncio.to_thread(self._product, made, report, lines)

    def _product(self, made: Made, report: SynthesisReport, dropped: list[str]) -> Synthesized:
        if not made.rows:
            error = nothing_made(report)
            return _failed(error.code, str(error), report)
        target, others = made_file(self._folder), dropped_file(self._folder)
        write_atomically(
            target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows.values())
        )
        with target.open("rb") as file:
            check = inspect(file, most_rows=_FIRST_ROWS)
        check.rows = len(made.rows)
        if dropped:
            write_atomically(others, "".join(dropped))
        return Synthesized(
            status="succeeded",
            made=MadeRows(**dict(product_at(target)), check=check.as_json()),
            dropped=product_at(others) if dropped else None,
            report=report.model_dump(mode="json"),
        )

    def _go_on(self) -> None:
        """Called by the thread that makes rows. Raises Stopped."""
        self._folder.beat()
        if self._stopped.is_set():
            raise Stopped

    async def _beat(self) -> None:
        """An answer may take as long as a generation may: longer than a step of a job. While rows are made, `_go_on`
        beats alone, so that it is seen if that hangs."""
        while True:
            if not self._is_making:
                try:
                    self._folder.beat()
                except OSError:
                    log.exception("the heartbeat could not be written")
            await asyncio.sleep(_BEAT)

    def _tell(self, text: str) -> None:
        """Say it in the events and in the log."""
        log.info("%s", text)
        self._events.message(text)


def _asker(spec: SynthesisSpec) -> Asker:
    """The task on the drawn rows. Raises InvalidData and TrainingFailed."""
    numbers = drawn(spec.rows_in_file, spec.rows, spec.seed)
    rows = [
        SourceRow(place, row)
        for number, (place, row) in enumerate(read_rows(Path(spec.file), spec.reading))
        if number in numbers
    ]
    task = spec.task
    if isinstance(task, AnswersTask):
        return Answers(spec, rows, task)
    if isinstance(task, ParaphrasesTask):
        return Paraphrases(spec, rows, task)
    return NewRows(spec, rows, task)
