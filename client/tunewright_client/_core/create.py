"""The flow that starts a job of any kind, which may have to upload its files first."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..types import WorkRecord
from . import endpoints
from .call import Context
from .flow import Flow, fetch

J = TypeVar("J", bound=WorkRecord)


def create_job(
    context: Context,
    path: str,
    make: endpoints.MakeJob[J],
    *,
    files: Mapping[str, str | Path | None],
    idempotency_key: str | None,
    **fields: Any,
) -> Flow[J]:
    """Upload the `files` that are local (a Path; a str is a file's id), then start the job.

    `files` and `fields` are the body's, by their names there; what is None is left out. The uploads' keys
    follow from the job's: repeated with the same key, the whole is done once.
    """
    key = idempotency_key or str(uuid.uuid4())
    body = dict(fields)
    for name, file in files.items():
        if isinstance(file, Path):
            file_key = f"{key}-{name.replace('_', '-')}"
            upload = endpoints.upload_file(file, "fine-tune", None, idempotency_key=file_key)
            file = (yield from fetch(context, upload)).id
        body[name] = file
    body = {name: _plain(value) for name, value in body.items() if value is not None}
    return (yield from fetch(context, endpoints.create_job(path, make, body, key)))


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
