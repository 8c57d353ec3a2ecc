"""The flow that starts a job, which may have to upload its files first."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..types import JobRecord, Tuning
from . import endpoints
from .call import Context
from .flow import Flow, fetch

J = TypeVar("J", bound=JobRecord)


def create_job(
    context: Context,
    make: endpoints.MakeJob[J],
    *,
    model: str,
    training_file: str | Path,
    validation_file: str | Path | None,
    tuning: Mapping[str, Any] | Tuning | None,
    idempotency_key: str | None,
    **fields: Any,
) -> Flow[J]:
    """Upload the files that are local (a Path; a str is a file's id), then start the job.

    The uploads' keys follow from the job's: repeated with the same key, the whole is done once.
    """
    key = idempotency_key or str(uuid.uuid4())
    ids: list[str | None] = []
    for role, file in (("training", training_file), ("validation", validation_file)):
        if isinstance(file, Path):
            upload = endpoints.upload_file(file, "fine-tune", None, idempotency_key=f"{key}-{role}-file")
            file = (yield from fetch(context, upload)).id
        ids.append(file)
    call = endpoints.create_job(
        make,
        model=model,
        training_file=ids[0] or "",
        validation_file=ids[1],
        tuning=tuning,
        idempotency_key=key,
        **fields,
    )
    return (yield from fetch(context, call))
