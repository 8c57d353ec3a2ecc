"""Evaluations that have ended, as rows of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update

from rows import FILE
from tunewright.evaluator.report import (
    Changed,
    ChangedRow,
    Comparison,
    EvaluationReport,
    Figure,
    ModelFigures,
)
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds.evaluation.models import DATA_FILE, EvaluatedModel, EvaluationRequest
from tunewright.store.records import JobInput, NewJob
from tunewright.store.states import JobState
from tunewright.store.store import Store
from tunewright.store.tables import jobs

Range = tuple[float, float, float]
"""A figure or a difference, with its interval."""


def report_of(
    model: str,
    figure: Range = (0.9, 0.85, 0.94),
    *,
    metric: str = "accuracy",
    rows: int = 120,
    against: Mapping[str, Range] | None = None,
) -> EvaluationReport:
    def figures(name: str, of: Range) -> ModelFigures:
        value, low, high = of
        return ModelFigures(
            model=name, unanswered=0, first_error=None, cut=0, confusion=None, fields=None,
            figures=[Figure(metric=metric, value=value, low=low, high=high, interval="wilson")],
        )  # fmt: skip

    row = ChangedRow(
        row=17, asked="<b>1 + 1?</b>", expected="2", answer="2", other_answer="3", value=1.0, other_value=0.0
    )
    return EvaluationReport(
        rows=rows, rows_in_file=rows, skipped=0, metrics=[metric], why="as asked for", max_tokens=8, seed=0,
        models=[figures(model, figure), *(figures(name, figure) for name in against or {})],
        comparisons=[
            Comparison(
                against=name, metric=metric, difference=gap[0], low=gap[1], high=gap[2], p_value=0.5,
                test="mcnemar_exact", better_rows=1, worse_rows=0, conclusion="no_difference_seen",
            )
            for name, gap in (against or {}).items()
        ],
        changed=[
            Changed(against=name, metric=metric, better=[row], worse=[]) for name in against or {}
        ],
    )  # fmt: skip


def add_evaluation(
    store: Store,
    contents: Mapping[str, str],
    report: EvaluationReport,
    *,
    state: JobState = JobState.SUCCEEDED,
    **request: Any,
) -> str:
    """Add an evaluation with this report, of the models in it, whose contents are given; returns its id."""
    models = [
        EvaluatedModel(
            asked=one.model, name=one.model, engine="tiny", content=contents[one.model], has_weights=False
        )
        for one in report.models
    ]
    asked = EvaluationRequest(models=models, **{"filename": "a.jsonl", "sha256": FILE["sha256"], **request})
    inputs = (JobInput(DATA_FILE, file_id=FILE["id"]),)
    job = store.jobs.create(NewJob(kind="evaluation", base=NO_BASE, request=asked, seed=0, inputs=inputs))
    end_evaluation(store, job.id, report, state)
    return job.id


def end_evaluation(
    store: Store, id: str, report: EvaluationReport | None, state: JobState = JobState.SUCCEEDED
) -> None:
    """End an evaluation that was created just now, with this report."""
    found = report.model_dump(mode="json") if report is not None else None
    error = {"code": "no_answers", "message": "nothing was answered"} if state is JobState.FAILED else None
    values = {"report": found, "error": error, "result": {}, "finished_at": 1_795_337_521.0}
    with store.database.begin() as connection:
        for step in (JobState.QUEUED, JobState.RUNNING, state):  # the database refuses other moves
            connection.execute(update(jobs).where(jobs.c.id == id).values(state=step))
        connection.execute(update(jobs).where(jobs.c.id == id).values(**values))
