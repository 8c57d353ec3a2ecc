"""Batches: the requests of a file are answered, and the answers are new files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.batcher.folder import Batched, BatchSpec, end_file, errors_file, output_file
from tunewright.batcher.requests import Checked, Fault, check_requests
from tunewright.engine.command import inner_socket
from tunewright.ids import id_for_key
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.products import Product
from tunewright.kinds.batch.models import (
    INPUT_FILE,
    OUTPUT_PURPOSE,
    BatchPlan,
    BatchReport,
    BatchRequest,
    BatchResult,
)
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated
from tunewright.kinds.products import place_file
from tunewright.registry.bases import BaseInfo
from tunewright.store.records import Job
from tunewright.store.states import FileStatus

AT_ONCE = 64
"""Requests that a batch has in flight. The gateway decides how many of them an engine gets."""
MEMORY = 2 * 2**30
_SECONDS = 60
"""Processor time that the check of a file may take, and a second beside it for so many bytes."""
_BYTES_PER_SECOND = 5 * 2**20


class Batch(Kind):
    name = "batch"
    id_prefix, event_prefix = "batch", "batchevent"
    noun, product = "batch", "file"
    request, resolved, result, report = BatchRequest, BatchPlan, BatchResult, BatchReport
    needs_base = imports_torch = False
    own_places = 4
    path = "/v1/batches"
    module, process = "tunewright.batcher", "batcher"
    saves = "its last answer"
    on_kill = "split the file"

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        found = _checked(service, job)
        faults = found.faults or list(_unknown(service, job, found.models))
        if faults:
            text = _told(faults)
            report = BatchReport.model_validate({"faults": [asdict(fault) for fault in faults]})
            raise JobRefused(faults[0].code, text, INPUT_FILE, report=report)
        model = next(iter(found.models)) if len(found.models) == 1 else None
        return Validated(
            BatchPlan(requests=found.requests, model=model), f"File validated ({found.requests} requests)"
        )

    def spec(self, service: Service, job: Job, base: BaseInfo) -> BatchSpec:
        request = request_of(job)
        return BatchSpec(
            job_id=job.id,
            file=str(service.workspace.file(file_of(job))),
            endpoint=request.endpoint,
            project=job.project,
            key=job.api_key_id,
            socket=str(inner_socket(service.workspace.path)),
            request_timeout=service.settings.server.request_timeout,
            expires_at=request.expires_at,
            at_once=AT_ONCE,
            memory_bytes=MEMORY,
        )

    def tend(self, service: Service, job: Job, folder: JobFolder) -> None:
        """Tell the process where a user has asked the batch to end."""
        if not end_file(folder).exists() and service.store.ends.asked_at(job.id) is not None:
            end_file(folder).touch()

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_result(Batched)
        assert outcome is not None, "only what has succeeded is published"
        workspace, made = service.workspace, []
        with ExitStack() as kept:
            for product, path, what in (
                (outcome.output, output_file(folder), "output"),
                (outcome.errors, errors_file(folder), "error"),
            ):
                if product is not None:
                    id = id_for_key("file", f"{job.id} {what}")
                    kept.enter_context(workspace.keeping(id))
                    place_file(workspace, path, id)
                    made.append((what, _row(job, id, what, product)))
            ids = {what: row["id"] for what, row in made}
            result = BatchResult(
                ending=outcome.ending,
                completed=outcome.completed,
                failed=outcome.failed,
                output_file=ids.get("output"),
                error_file=ids.get("error"),
                ended_at=outcome.ended_at,
            )
            is_listed = service.store.jobs.succeed(job.id, result, files=[row for _, row in made])
        if not is_listed:
            files = service.store.files
            for id in ids.values():
                workspace.remove_file(id, partial(files.get, id))


def request_of(job: Job) -> BatchRequest:
    assert isinstance(job.request, BatchRequest), f"{job.id} is no batch"
    return job.request


def file_of(job: Job) -> str:
    """The id of the file of requests."""
    id = job.file(INPUT_FILE)
    assert id is not None, "every batch has a file"
    return id


def _checked(service: Service, job: Job) -> Checked:
    """Raises JobRefused."""
    try:
        with service.workspace.file(file_of(job)).open("rb") as file:
            size = service.workspace.file(file_of(job)).stat().st_size
            seconds = _SECONDS + size // _BYTES_PER_SECOND
            return call_apart(check_requests, [file], request_of(job).endpoint, seconds=seconds)
    except OSError as error:
        raise JobRefused("invalid_file", f"the file cannot be read: {error.strerror}", INPUT_FILE) from error
    except (CutOff, OutOfMemory) as error:
        raise JobRefused("invalid_file", f"the file cannot be checked: {error}", INPUT_FILE) from error


def _unknown(service: Service, job: Job, models: dict[str, int]) -> Iterator[Fault]:
    """Models that are asked and that the project does not have."""
    named = service.store.of(job.project).names.read(models.keys()) if models else {}
    for name, line in models.items():
        found = named[name]
        if found.alias is None and found.model is None and found.engine is None:
            yield Fault("model_not_found", f"No such model: {name[:100]!r}.", line, "body.model")


def _told(faults: list[Fault]) -> str:
    first = faults[0]
    where = f"line {first.line}: " if first.line is not None else ""
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return f"{where}{first.message}{more}"


def _row(job: Job, id: str, what: str, product: Product) -> dict[str, Any]:
    seconds = request_of(job).output_seconds
    return {
        "id": id,
        "filename": f"{job.id}_{what}.jsonl",
        "purpose": OUTPUT_PURPOSE,
        "bytes": product.bytes,
        "sha256": product.sha256,
        "status": FileStatus.PROCESSED,
        "expires_at": None if seconds is None else int(time.time()) + seconds,
    }
