"""Creates batches from requests. The lines of the file are checked after that, as a part of the batch."""

from __future__ import annotations

import time

from tunewright.api.batches.schemas import CreateBatch, seconds_of
from tunewright.api.http.context import ServiceContext
from tunewright.api.jobs.creation import create_once
from tunewright.errors import InvalidRequest, quoted
from tunewright.jobs.kinds import NO_BASE
from tunewright.kinds import BATCH
from tunewright.kinds.batch.models import INPUT_FILE, BatchRequest
from tunewright.store.records import Job, JobInput, NewJob


def create_batch(context: ServiceContext, body: CreateBatch, idempotency_key: str | None) -> Job:
    """Create a batch, or return the one that the same key created before.

    Raises InvalidRequest and TooManyRequests.
    """
    return create_once(context, body, idempotency_key, lambda: _checked(context, body))


def _checked(context: ServiceContext, body: CreateBatch) -> NewJob:
    param = "input_file_id"
    record = context.store.files.get(body.input_file_id)
    if record is None:
        raise InvalidRequest(
            f"No such file: {quoted(body.input_file_id)}. Upload it first, with purpose batch.", param=param
        )
    if record.purpose != "batch":
        raise InvalidRequest(
            f"File {record.id} is for {record.purpose}, not for batch: upload it with purpose batch.",
            param=param,
        )
    expiry = body.output_expires_after
    request = BatchRequest(
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        expires_at=time.time() + seconds_of(body.completion_window),
        output_seconds=expiry.seconds if expiry else None,
    )
    return NewJob(
        kind=BATCH.name,
        base=NO_BASE,
        request=request,
        seed=0,
        inputs=(JobInput(INPUT_FILE, file_id=record.id),),
        metadata=body.metadata,
    )
