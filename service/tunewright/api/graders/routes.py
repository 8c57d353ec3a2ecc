"""`/v1/fine_tuning/alpha/graders`: OpenAI's routes that run a grader on an answer, and check one."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter

from tunewright.api.gateway.rates import Admitted
from tunewright.api.gateway.usage import usage_of
from tunewright.api.graders.schemas import GraderRun, RunGrader, ValidatedGrader, ValidateGrader
from tunewright.api.http.context import Context, SentBy, ServiceContext
from tunewright.api.http.errors import responses
from tunewright.errors import TunewrightError
from tunewright.graders import score_model
from tunewright.graders.calling import check_grader, grade_apart, requests_to_models
from tunewright.graders.models import ScoreModelGrader, SingleGrader, singles
from tunewright.graders.outcome import Outcome, failed
from tunewright.graders.templates import Sample

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["Fine-tuning"])


@router.post("/run", summary="Run a grader on an answer", responses=responses(400, 404, 429))
async def run(context: Context, body: RunGrader, sender: SentBy) -> GraderRun:
    """The reward that a grader gives to an answer. What goes wrong with this answer is told in `metadata.errors`. Where
    models grade, it counts as one generation of the project and the key, with the tokens of all."""
    began = time.monotonic()
    mode = context.settings.jobs.python_graders
    item = body.item or {}
    sample = Sample(body.model_sample)
    await context.grading.run(check_grader, body.grader, "grader", mode)
    asked = await context.grading.run(requests_to_models, body.grader, sample, item)
    graders = singles(body.grader)
    are_asked = any(not isinstance(one, Outcome) for one in asked.values())
    with context.rates.admit(sender.limited if are_asked else ()) as admitted:
        answers = await asyncio.gather(
            *(_answered(context, graders[name], one, admitted) for name, one in asked.items())
        )
    answered = dict(zip(asked, answers, strict=True))
    outcome = await context.grading.run(grade_apart, body.grader, sample, item, answered, mode)
    return GraderRun.of(body.grader, outcome, time.monotonic() - began)


@router.post("/validate", summary="Check a grader", responses=responses(400, 429))
async def validate(context: Context, body: ValidateGrader) -> ValidatedGrader:
    """The grader, if it can work here. Whether a model that grades is served is only known when it is asked."""
    await context.grading.run(check_grader, body.grader, "grader", context.settings.jobs.python_graders)
    return ValidatedGrader(grader=body.grader)


async def _answered(
    context: ServiceContext, grader: SingleGrader, asked: dict[str, object] | Outcome, admitted: Admitted
) -> Outcome:
    """The outcome of a grader that asks a model. Raises NotFound where there is no such model."""
    if isinstance(asked, Outcome):
        return asked
    assert isinstance(grader, ScoreModelGrader)
    try:
        status, answer = await context.ask(asked)
    except TunewrightError as error:
        if error.status == 404:
            raise
        return failed("model_grader_server_error", error.message)
    except TimeoutError:
        return failed("model_grader_server_error", f"{grader.model} took too long")
    if status >= 400:
        return failed("model_grader_server_error", answer.decode("utf-8", "replace")[:500])
    admitted.used(sum(usage_of(answer) or ()))
    return score_model.outcome(grader, answer)
