"""Stores a new job of any kind: recognizes repeated requests, and enforces the limit of the queue."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tunewright import tracing
from tunewright.api.http.context import ServiceContext
from tunewright.api.organization.quotas import check_job, check_waiting
from tunewright.errors import InvalidRequest, TooManyRequests, quoted
from tunewright.ids import key_in_project
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.data import DataOptions, inspect_apart, why_unusable
from tunewright.store.records import FileRecord, Job, NewJob
from tunewright.wire import Body

log = logging.getLogger("tunewright.api")

_REPEAT_SECONDS = 5.0
"""An identical request without an Idempotency-Key within this time is a repeat: OpenAI's client retries without one."""
_FIRST_ROWS = 100
"""Rows that are read when a request says how: the others are when the job is validated."""
_RETRY_AFTER = 30.0
"""Seconds after which a client may retry where the queue was full."""


def create_once(
    context: ServiceContext, body: Body, idempotency_key: str | None, check: Callable[[], NewJob]
) -> Job:
    """Return the job that this request created before, or create the one that `check` returns.

    Raises what `check` raises, and InvalidRequest, NotFound or TooManyRequests.
    """
    content = f"{type(body).__name__}{body.model_dump_json()}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    jobs = context.store.jobs
    idempotency_key = key_in_project(idempotency_key, context.project)
    job = jobs.earlier(idempotency_key, fingerprint, _REPEAT_SECONDS)
    if job is None:
        new, limits = check(), context.store.holdings.limits()
        new = replace(new.by_key(context.key), idempotency_key=idempotency_key, fingerprint=fingerprint)

        def admit(waiting: int) -> None:
            _check_queue(context, waiting)
            check_waiting(context, limits, new, waiting)

        admit(jobs.count_waiting())  # most are refused here, without a transaction that writes
        check_job(context, limits, new)
        job = jobs.create(new, repeat_seconds=_REPEAT_SECONDS, admit=admit)
        _trace(context, job)
    if job.fingerprint != fingerprint:
        raise InvalidRequest(
            "This Idempotency-Key was used for another request; use a new key for a new job.",
            code="idempotency_key_reused",
        )
    return job


def _trace(context: ServiceContext, job: Job) -> None:
    """Have the trace of the job, which is made by the scheduler, refer to this request."""
    span = tracing.current()
    if not span:
        return
    span.set({"tunewright.job.id": job.id})
    try:
        JobFolder(context.workspace.job(job.id)).write_trace(span.headers())
    except OSError as error:  # the job does not depend on it
        log.warning("the trace of %s is not linked to its request: %s", job.id, error)


def _check_queue(context: ServiceContext, waiting: int) -> None:
    most = context.settings.jobs.max_queued_jobs
    if waiting >= most:
        raise TooManyRequests(
            f"{most} jobs are waiting, which is the limit (--max-queued-jobs): create more when some of them have run, "
            "or cancel some.",
            code="too_many_jobs",
            retry_after=_RETRY_AFTER,
        )


def check_training_file(
    context: ServiceContext,
    param: str,
    id: str,
    data: DataOptions | None = None,
    method: str | None = "supervised",
    *,
    code: str | None = None,
) -> FileRecord:
    """The record of a file that is trained on by a method or, without one, measured on. `code` is that of the error, if
    not `invalid_` and the parameter.

    Raises InvalidRequest as `check_data_file`, and where it is known that its rows are of the wrong kind.
    """
    code = code or f"invalid_{param}"
    record, report = check_data_file(context, param, id, data, code=code)
    if report is not None and report["kind"] is not None:
        why = why_unusable(report["format"], report["kind"], method)
        if why is not None:
            raise InvalidRequest(f"File {id} cannot be used: {why}", param=param, code=code)
    return record


def check_data_file(
    context: ServiceContext,
    param: str,
    id: str,
    data: DataOptions | None = None,
    *,
    code: str = "invalid_file",
) -> tuple[FileRecord, dict[str, Any] | None]:
    """The file's record, and what is known of its rows: from its check or, with `data`, its first rows.

    Raises InvalidRequest where it does not exist, has another purpose than fine-tune, or is known to have faults.
    """
    record = context.store.files.get(id)
    if record is None:
        raise InvalidRequest(
            f"No such file: {quoted(id)}. Upload it first, with purpose fine-tune.", param=param
        )
    if record.purpose != "fine-tune":
        raise InvalidRequest(f"File {id} is for {record.purpose}, not for fine-tune.", param=param)
    if data is not None and (data.columns is not None or data.tags is not None):
        report = _first_rows(context, id, data)
    else:
        report = record.report
    if report is not None and report["problem"] is not None:
        raise InvalidRequest(f"File {id} cannot be used: {report['problem']}", param=param, code=code)
    return record, report


def _first_rows(context: ServiceContext, id: str, data: DataOptions) -> dict[str, Any] | None:
    """The report of the first rows of a file; None where it was deleted."""
    try:
        with context.workspace.fetch_file(id).open("rb") as file:
            return inspect_apart(file, data.reading(True), _FIRST_ROWS).as_json()
    except FileNotFoundError:
        return None
