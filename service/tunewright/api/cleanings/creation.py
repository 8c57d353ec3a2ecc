"""Creates cleanings from requests. A request that cannot succeed is refused here, before the cleaning is queued."""

from __future__ import annotations

from tunewright.api.cleanings.schemas import CreateCleaning
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import check_data_file, create_once
from tunewright.errors import InvalidRequest
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds import CLEANING
from tunewright.kinds.cleaning.models import AGAINST, SOURCE_FILE, CleaningRequest, LeaksAgainst
from tunewright.kinds.data import DataOptions
from tunewright.rows.cleaning.options import check_steps
from tunewright.store.records import Job, JobInput, NewJob


def create_cleaning(context: ServiceContext, body: CreateCleaning, idempotency_key: str | None) -> Job:
    """Create a cleaning, or return the one that the same key created before.

    Raises InvalidRequest and TooManyRequests.
    """
    return create_once(context, body, idempotency_key, lambda: _checked(context, body))


def _checked(context: ServiceContext, body: CreateCleaning) -> NewJob:
    data = DataOptions(**body.data.model_dump()) if body.data else DataOptions()
    source, _ = check_data_file(context, "file", body.file, data)
    inputs = [JobInput(SOURCE_FILE, file_id=source.id)]
    for number, step in enumerate(body.steps):
        if isinstance(step, LeaksAgainst):
            param = f"steps.{number}.against"
            if step.against == source.id:
                raise InvalidRequest(
                    f"The step leaks would remove every row of {source.id}, which is compared with itself: name the "
                    "file of the validation rows.",
                    param=param,
                )
            other, _ = check_data_file(context, param, step.against, data, code="invalid_against")
            inputs.append(JobInput(AGAINST, file_id=other.id))
    request = CleaningRequest(filename=source.filename, sha256=source.sha256, steps=body.steps, data=data)
    try:
        check_steps(request.plain_steps(), has_validation=len(inputs) > 1)
    except ValueError as error:
        raise InvalidRequest(f"The steps do not fit together: {error}.", param="steps") from error
    return NewJob(
        kind=CLEANING.name,
        base=NO_BASE,
        request=request,
        seed=0,
        inputs=tuple(inputs),
        metadata=body.metadata,
    )
