"""What requests for suites must meet before an evaluation is queued."""

from __future__ import annotations

from tunewright.api.evaluations.schemas import CreateEvaluation, SuiteBody
from tunewright.config import Settings
from tunewright.errors import InvalidRequest
from tunewright.evaluator.suites import SUITES
from tunewright.kinds.evaluation.suites import NO_EVAL_DATA
from tunewright.rows.faults import InvalidData


def check_suite(settings: Settings, body: CreateEvaluation, asked: SuiteBody) -> None:
    """Raises InvalidRequest."""
    suite, data = SUITES[asked.name], settings.jobs.eval_data
    for name, value in (
        ("reading", body.reading),
        ("json_schema", body.json_schema),
        ("grader", body.grader),
        ("judge", body.judge),
        ("metrics", None if body.metrics == "auto" else body.metrics),
        ("extract", None if body.extract == "whole" else body.extract),
    ):
        if value is not None:
            raise InvalidRequest(f"`{name}` is of `data`: a suite has its own.", param=name)
    if data is None:
        raise InvalidRequest(f"No suite can be asked: {NO_EVAL_DATA}.", param="suite", code="no_eval_data")
    try:
        suite.files(data)
    except InvalidData as error:
        raise InvalidRequest(
            f"{asked.name} cannot be asked: {error}.", param="suite.name", code="no_eval_data"
        ) from error
    if asked.name != "humaneval":
        if asked.samples > 1:
            raise InvalidRequest("Only humaneval has several samples.", param="suite.samples")
        return
    if settings.jobs.python_graders == "off":
        raise InvalidRequest(
            "humaneval runs programs that models have written, which the operator of this service does not allow "
            "(--python-graders).",
            param="suite.name",
            code="python_graders_off",
        )
    if asked.samples > 1 and not body.temperature:
        raise InvalidRequest(
            "At temperature 0 all samples are the same program: set `temperature`, such as 0.8.",
            param="temperature",
        )
