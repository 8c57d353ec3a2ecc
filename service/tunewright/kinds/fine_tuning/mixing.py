"""The training files of a job, with their weights: checked when the job is validated, beside the files that it is
measured on, and as its trainer gets them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.kinds.data import check_data, check_held_out, describe
from tunewright.kinds.fine_tuning.evaluated import EVALUATED_FILE, OF_DATA
from tunewright.kinds.fine_tuning.models import TRAINING_FILE, VALIDATION_FILE, FineTuningRequest
from tunewright.kinds.grading import missing_item
from tunewright.kinds.kind import JobRefused, Service
from tunewright.plan.mixing import distinct
from tunewright.registry.workspace import Workspace
from tunewright.rows.formats import FileReport
from tunewright.rows.overlap import shared_rows
from tunewright.rows.reading import Reading
from tunewright.store.records import Job
from tunewright.store.store import Store

_SECONDS = 120
"""Processor time in which the rows of files are compared, beside a second for so many bytes."""
_BYTES_PER_SECOND = 2**21


@dataclass(frozen=True)
class CheckedFiles:
    """The files of a job, without faults."""

    rows: int
    """Different rows of an epoch."""
    summary: str
    warnings: tuple[tuple[str, str], ...] = ()
    """(code, text)"""
    labels: frozenset[bool] = frozenset()
    """Of labelled rows: those of the rows that are held out."""


def weights_of(job: Job, request: FineTuningRequest) -> dict[str, float]:
    """The weight of each training file by its id, that of the request first."""
    first = job.file(TRAINING_FILE)
    assert first is not None, "every job has a training file"
    return request.data.weights(first)


def check_files(
    service: Service, job: Job, request: FineTuningRequest, template: str | None, base: str
) -> CheckedFiles:
    """Check the training files and the validation file, and compare them with the rows of evaluations. Raises
    JobRefused."""
    weights = weights_of(job, request)
    first, *others = weights
    files = service.workspace
    report = check_data(files.file(first), TRAINING_FILE, template, base, request.data, request.method)
    reports = {first: report}
    for id in others:
        try:
            reports[id] = check_data(
                files.file(id), TRAINING_FILE, template, base, request.data, request.method
            )
        except JobRefused as refusal:
            raise JobRefused(refusal.code, f"{id}: {refusal}", "data.mix") from refusal
    measured = list(reports.values()) if request.data.validation_share else []
    if (validation := job.file(VALIDATION_FILE)) is not None:
        measured = [
            check_data(files.file(validation), VALIDATION_FILE, template, base, request.data, request.method)
        ]
    labels = frozenset[bool]().union(*(one.labels for one in measured))
    _check_items(files, [*weights, *([validation] if validation else [])], request, bool(template))
    if request.data.validation_share:
        check_held_out(report, request.data.validation_share)
        _refuse_without_training_rows(reports)
    rows = sum(distinct(weights[id], one.rows - one.held_out) for id, one in reports.items())
    evaluated = job.file(EVALUATED_FILE)
    warnings = (
        _shared(files, [*weights], validation, evaluated, request, bool(template))
        if others or evaluated
        else ()
    )
    if not others:
        return CheckedFiles(rows, describe(report), warnings, labels)
    summary = "; ".join(f"{id} (weight {weights[id]:g}): {describe(one)}" for id, one in reports.items())
    return CheckedFiles(rows, summary, warnings, labels)


def _check_items(
    workspace: Workspace, ids: list[str], request: FineTuningRequest, has_template: bool
) -> None:
    """Raises JobRefused where a row lacks what the grader refers to."""
    if request.grader is None:
        return
    for id in ids:
        missing = missing_item(workspace.file(id), request.data.reading(has_template), request.grader)
        if missing is not None:
            raise JobRefused("invalid_grader", f"{id}, {missing}", "method.reinforcement.grader")


def _refuse_without_training_rows(reports: dict[str, FileReport]) -> None:
    for id, report in reports.items():
        if report.held_out == report.rows:
            raise JobRefused(
                "invalid_training_file",
                f"of the {report.rows} rows of {id} all would be held out, and none is left to train on: lower "
                "data.validation_share, or leave the file out",
                "data.mix",
            )


def _shared(
    workspace: Workspace,
    training: list[str],
    validation: str | None,
    evaluated: str | None,
    request: FineTuningRequest,
    has_template: bool,
) -> tuple[tuple[str, str], ...]:
    """Warnings of rows that are in several of the files. What is held out of them is never trained on: a copy of a row
    is in the same part as the row."""
    reading = request.data.reading(has_template).model_copy(update={"part": "all", "held_out_share": 0.0})
    measured = [(validation, "validation", reading)] if validation else []
    if evaluated:
        measured.append((evaluated, "evaluate.data", _reading_of_evaluations(request, has_template)))
    files = [*((id, "training", reading) for id in training), *measured]
    try:
        found = _rows_in_several([(workspace.file(id), reading) for id, _, reading in files])
    except (CutOff, OutOfMemory):
        return (_not_compared("comparing them took too long"),)
    except OSError as error:
        return (_not_compared(f"one cannot be read ({error.strerror})"),)
    warnings = []
    for one, other, count in found:
        (id, role, _), (other_id, other_role, _) = files[one], files[other]
        if role == other_role:
            warnings.append(_copied(id, other_id, count))
        elif role == "training":
            warnings.append(_leaked(other_role, id, count))
    return tuple(warnings)


def _rows_in_several(files: Sequence[tuple[Path, Reading]]) -> list[tuple[int, int, int]]:
    """`shared_rows`. Raises CutOff and OutOfMemory."""
    seconds = _SECONDS + sum(path.stat().st_size for path, _ in files) // _BYTES_PER_SECOND
    with ExitStack() as opened:
        streams = [opened.enter_context(path.open("rb")) for path, _ in files]
        return call_apart(shared_rows, streams, [reading for _, reading in files], seconds=seconds)


def _reading_of_evaluations(request: FineTuningRequest, has_template: bool) -> Reading:
    """How the rows are read on which the job has asked for evaluations."""
    assert request.evaluate is not None, "it has a file for them"
    measure = next(one for one in request.evaluate.measures if one.name == OF_DATA)
    return measure.request.reading.reading(has_template)


def _not_compared(why: str) -> tuple[str, str]:
    return "not_compared", f"Whether the files share rows is not known: {why}."


def _leaked(role: str, training: str, count: int) -> tuple[str, str]:
    what, shown = {
        "validation": ("the validation file", "its loss looks better than it is"),
        "evaluate.data": ("evaluate.data", "its figures look better than they are"),
    }[role]
    return (
        "leaked_rows",
        f"{count} rows of {what} are in {training} too, so that {shown}: "
        "remove them from either, for example with the step leaks of POST /v1/cleanings.",
    )


def _copied(one: str, other: str, count: int) -> tuple[str, str]:
    return (
        "duplicate_rows",
        f"{count} rows of {other} are in {one} too, and are trained on as often as both weights say together: "
        "remove them from either, unless that is meant.",
    )


def mix_of_lineage(
    store: Store, weights: dict[str, float], examples: Sequence[int]
) -> list[dict[str, object]] | None:
    """What a model's lineage says of several training files, of which an epoch has so many examples each; None for a
    single one as it is."""
    if all(weight == 1 for weight in weights.values()) and len(weights) == 1:
        return None
    found = {id: store.files.get(id) for id in weights}
    numbers = dict(zip(weights, examples, strict=False))  # none in results of earlier versions
    return [
        {
            "file": id,
            "sha256": record.sha256 if record else None,
            "weight": weights[id],
            "examples": numbers.get(id),
        }
        for id, record in found.items()
    ]
