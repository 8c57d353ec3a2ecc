"""One evaluation, from spec to result: draw the rows, ask every model, measure, compare."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from tunewright.apart import limit_memory
from tunewright.atomic import write_atomically
from tunewright.evaluator.asking import AnswersFile, Asking, Kept, Task
from tunewright.evaluator.cached import keep_cached, take_cached
from tunewright.evaluator.folder import (
    AskedJudge,
    Evaluated,
    EvaluationSpec,
    Loads,
    answers_file,
    judgements_file,
    results_file,
)
from tunewright.evaluator.grading import Graded, graded
from tunewright.evaluator.judging import Judgements, Judging, labelled_pairs
from tunewright.evaluator.latency import Loading
from tunewright.evaluator.measuring import Answered, Plan, measure, plan
from tunewright.evaluator.pairs import Pair
from tunewright.evaluator.questions import Question, questions
from tunewright.evaluator.report import EvaluationReport
from tunewright.evaluator.suites import SUITES
from tunewright.jobs.asking import Stopped
from tunewright.jobs.failure import TrainingFailed, explain
from tunewright.jobs.folder import STOPPED_RESUMABLE, EventLog, JobFolder
from tunewright.jobs.process import leave
from tunewright.jobs.products import product_at
from tunewright.jobs.progress import AnswersProgress
from tunewright.logs import limit_records
from tunewright.rows.drawing import drawn
from tunewright.rows.faults import InvalidData

log = logging.getLogger("tunewright.evaluator")

_NICENESS = 10
"""The processes that answer, serve and train come first."""
_BEAT = 5.0
_ADVICE = "Evaluate on fewer rows, with `rows`."


def run_evaluation(folder: JobFolder, spec: EvaluationSpec) -> int:
    """Evaluate, and write `result.json`; returns the exit code."""
    faulthandler.enable()  # SIGABRT, sent to a process that hangs, writes its stack to the log
    limit_records()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if spec.loads is None:  # else what waits for the processor here would count as the model's time
        os.nice(_NICENESS)
    import_module("numpy")  # so that it does not count
    limit_memory(spec.memory_bytes)
    try:
        return leave(folder, evaluate(folder, spec))
    except Stopped:
        return STOPPED_RESUMABLE


def evaluate(folder: JobFolder, spec: EvaluationSpec) -> Evaluated:
    """Evaluate, in the main thread. Raises Stopped, and what is a fault of the program."""
    try:
        return asyncio.run(_evaluated(folder, spec))
    except Stopped:
        raise
    except InvalidData as error:
        return _failed("invalid_data", str(error))
    except Exception as error:
        failure = explain(error, folder.path, process="evaluator", advice=_ADVICE)
        if failure is None:
            raise
        log.error("%s: %s", failure.code, failure, exc_info=error if failure is not error else None)
        return _failed(failure.code, str(failure))


def _failed(code: str, message: str) -> Evaluated:
    return Evaluated(status="failed", error_code=code, error_message=message)


async def _evaluated(folder: JobFolder, spec: EvaluationSpec) -> Evaluated:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    events = EventLog(folder)
    folder.work.mkdir(exist_ok=True)
    beating = asyncio.create_task(_beat(folder))
    try:
        if spec.loads is not None:
            return await _of_loads(folder, spec, spec.loads, stopped, events)
        rows, skipped, in_file = await asyncio.to_thread(_read, spec)
        spec = spec.model_copy(update={"rows_in_file": in_file})
        what = await asyncio.to_thread(plan, spec, [row.expected for row in rows])
        answers = AnswersFile(answers_file(folder))
        with contextlib.closing(answers):
            take_cached(spec, rows, what.tasks, answers)
            names = " against ".join([spec.models[0].name, *(["others"] if len(spec.models) > 1 else [])])
            _tell(events, f"Evaluating {names} on {len(rows)} rows: {', '.join(what.metrics)} ({what.why})")
            total = len(rows) * len(what.tasks) * len(spec.models)
            progress = _progress(folder, events, total, lambda: len(answers.kept))
            await Asking(spec, rows, what.tasks, answers, progress.tell).run(stopped)
            keep_cached(spec, rows, what.tasks, answers)
            progress.tell(is_last=True)
        judgements = None
        if spec.judge is not None:
            judgements = await _judged(folder, spec, spec.judge, rows, what, answers, events, stopped)
        return await asyncio.to_thread(
            _measured, folder, spec, rows, skipped, what, answers, events, judgements
        )
    finally:
        beating.cancel()


async def _judged(
    folder: JobFolder,
    spec: EvaluationSpec,
    judge: AskedJudge,
    rows: Sequence[Question],
    what: Plan,
    answers: AnswersFile,
    events: EventLog,
    stopped: asyncio.Event,
) -> Judgements:
    said = [_of_model(number, rows, what.tasks, answers).answers() for number in range(len(spec.models))]
    pairs = [
        [Pair(row, ours, theirs) for row, ours, theirs in zip(rows, said[0], others, strict=True)]
        for others in said[1:]
    ]
    labelled: list[Pair] = []
    if judge.calibrate:
        labelled = await asyncio.to_thread(labelled_pairs, spec, judge.calibrate)
        if not labelled:
            raise TrainingFailed(
                "invalid_data",
                "judge.calibrate needs rows with a better and a worse answer: the file has none",
            )
    judging = Judging(spec, judge, pairs, labelled)
    found = AnswersFile(judgements_file(folder))
    with contextlib.closing(found):
        count = sum(map(len, pairs)) + len(labelled)
        _tell(events, f"{judge.name} judges {count} pairs of answers, those that differ in both orders")
        total = len(answers.kept) + len(judging.questions)
        progress = _progress(
            folder, events, total, lambda: len(answers.kept) + len(found.kept), phase="judge"
        )
        await judging.ask(found, progress.tell, stopped)
        progress.tell(is_last=True)
    return judging.judged(found)


async def _of_loads(
    folder: JobFolder, spec: EvaluationSpec, loads: Loads, stopped: asyncio.Event, events: EventLog
) -> Evaluated:
    """Latency, in the place of answers."""
    names = ", ".join(model.name for model in spec.models)
    at_once = ", ".join(map(str, loads.at_once))
    _tell(
        events,
        f"Measuring {names} with {at_once} requests at once: {loads.requests} requests of {loads.prompt_tokens} tokens "
        f"for each load, and answers of {loads.answer_tokens}",
    )
    answered = 0

    def on_answer() -> None:
        nonlocal answered
        answered += 1
        progress.tell()

    loading = Loading(folder, spec, on_answer)
    before = len(loading.measured) * loads.requests
    progress = _progress(folder, events, loading.total, lambda: before + answered)
    await loading.run(stopped)
    progress.tell(is_last=True)
    return _product(folder, await asyncio.to_thread(loading.report), loading.lines(), events)


async def _beat(folder: JobFolder) -> None:
    """An answer may take as long as a generation may: longer than a step of a job."""
    while True:
        folder.beat()
        await asyncio.sleep(_BEAT)


def _read(spec: EvaluationSpec) -> tuple[list[Question], int, int]:
    """The questions, the number of drawn rows that have none, and that of all rows."""
    if spec.suite is not None:
        every = SUITES[spec.suite.name].questions(Path(spec.suite.data), spec.suite.shots)
        numbers = sorted(drawn(len(every), spec.rows, spec.seed))
        return [every[number] for number in numbers], 0, len(every)
    assert spec.file is not None, "it has a file or a suite"
    found = list(questions(Path(spec.file), spec.reading, drawn(spec.rows_in_file, spec.rows, spec.seed)))
    rows = [row for row in found if row is not None]
    if not rows:
        raise TrainingFailed(
            "invalid_data",
            "no row has an answer in words with something asked before it: there is nothing to compare",
        )
    return rows, len(found) - len(rows), spec.rows_in_file


def _measured(
    folder: JobFolder,
    spec: EvaluationSpec,
    rows: Sequence[Question],
    skipped: int,
    what: Plan,
    answers: AnswersFile,
    events: EventLog,
    judgements: Judgements | None,
) -> Evaluated:
    answered = [_of_model(number, rows, what.tasks, answers) for number in range(len(spec.models))]
    for model, found in zip(spec.models, answered, strict=True):
        if not any(one.error is None for one in found.of_task(what.tasks[0])):
            first = found.of_task(what.tasks[0])[0].error
            raise TrainingFailed(
                "no_answers", f"{model.name} has answered no row, the first one since: {first}"
            )
    _tell(events, f"Measuring {len(rows)} rows")
    rewards: list[Graded] = []
    if spec.grader is not None:
        _tell(events, f"Grading the answers with {spec.grader.grader.name}")
        rewards = [graded(spec.grader, rows, one.answers(), folder.beat) for one in answered]
    report, row_figures = measure(spec, rows, skipped, what, answered, judgements, rewards)
    lines = [
        json.dumps(_result(spec, row, number, answered, row_figures)) + "\n"
        for number, row in enumerate(rows)
    ]
    return _product(folder, report, lines, events)


def _product(
    folder: JobFolder, report: EvaluationReport, lines: Sequence[str], events: EventLog
) -> Evaluated:
    """Write the product, and tell the figures."""
    target = results_file(folder)
    write_atomically(target, "".join(lines))
    for line in report.told():
        _tell(events, line)
    return Evaluated(status="succeeded", **dict(product_at(target)), report=report.model_dump(mode="json"))


def _of_model(number: int, rows: Sequence[Question], tasks: Sequence[Task], answers: AnswersFile) -> Answered:
    return Answered({task: [answers.kept[number, row, task] for row in range(len(rows))] for task in tasks})


def _result(
    spec: EvaluationSpec,
    row: Question,
    number: int,
    answered: Sequence[Answered],
    figures: Sequence[dict[str, list[float | None]]],
) -> dict[str, object]:
    """A line of the product."""
    found = []
    for model, one, values in zip(spec.models, answered, figures, strict=True):
        kept = {task: kept[number] for task, kept in one.kept.items()}
        entry: dict[str, object] = {"model": model.name}
        for one_kept in kept.values():
            entry |= _shown(one_kept)
        entry["figures"] = {metric: column[number] for metric, column in values.items()}
        found.append(entry)
    return {"row": row.place, **row.asked(), "expected": row.expected, "answers": found}


def _shown(kept: Kept) -> dict[str, object]:
    shown = kept.as_json()
    if (scores := shown.pop("scores", None)) is not None:
        shown["scores"] = scores._asdict()
    return shown


def _tell(events: EventLog, text: str) -> None:
    """Say it in the events and in the log."""
    log.info("%s", text)
    events.message(text)


def _progress(
    folder: JobFolder, events: EventLog, total: int, done: Callable[[], int], phase: str = "answers"
) -> AnswersProgress:
    progress = AnswersProgress(folder, events, done, total, phase)
    if progress.before:
        _tell(events, f"{progress.before} of {total} answers are there already")
    return progress
