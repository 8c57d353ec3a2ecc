"""Cleanings: the rows of a file go through steps, and what is left is a new file."""

from __future__ import annotations

from dataclasses import asdict

from tunewright.cleaner.folder import Cleaned, CleaningSpec, cleaned_file
from tunewright.ids import id_for_key
from tunewright.jobs.folder import JobFolder
from tunewright.kinds.cleaning.models import (
    AGAINST,
    SOURCE_FILE,
    CleaningPlan,
    CleaningRequest,
    CleaningResult,
)
from tunewright.kinds.data import inspect_apart
from tunewright.kinds.kind import JobRefused, Kind, Service, Validated
from tunewright.kinds.products import name_of_made_file, place_file
from tunewright.registry.bases import BaseInfo
from tunewright.rows.cleaning.counts import CleaningReport
from tunewright.rows.reading import Reading
from tunewright.store.file_lineages import FileLineage
from tunewright.store.records import Job
from tunewright.store.states import FileStatus

MEMORY = 2 * 2**30
"""Bytes that the process may take. near_duplicates takes some 64 for each row, duplicates and balance some 10."""


class Cleaning(Kind):
    name = "cleaning"
    id_prefix, event_prefix = "clean", "cleanevent"
    noun, product = "cleaning", "file"
    request, resolved, result, report = CleaningRequest, CleaningPlan, CleaningResult, CleaningReport
    needs_base = imports_torch = False
    path = "/v1/cleanings"
    module, process = "tunewright.cleaner", "cleaner"
    saves = "its last saved row"
    on_kill = "leave out near_duplicates, which takes the most memory for each row, or split the file"

    def validate(self, service: Service, job: Job, base: BaseInfo) -> Validated:
        reading = reading_of(job)
        rows = {
            role: _rows_of(service, id, role, reading)
            for role in (SOURCE_FILE, AGAINST)
            if (id := job.file(role)) is not None
        }
        told = ", ".join(f"{role} {count} rows" for role, count in rows.items())
        return Validated(CleaningPlan(rows=rows[SOURCE_FILE]), f"Files validated ({told})")

    def spec(self, service: Service, job: Job, base: BaseInfo) -> CleaningSpec:
        source, against = job.file(SOURCE_FILE), job.file(AGAINST)
        assert source is not None, "every cleaning has a file"
        assert isinstance(job.resolved, CleaningPlan), f"{job.id} was not validated"
        return CleaningSpec.model_validate(
            {
                "job_id": job.id,
                "file": str(service.workspace.file(source)),
                "rows": job.resolved.rows,
                "reading": reading_of(job),
                "steps": [step.model_dump() for step in request_of(job).plain_steps()],
                "against": str(service.workspace.file(against)) if against else None,
                "memory_bytes": MEMORY,
            }
        )

    def publish(self, service: Service, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        outcome = folder.read_result(Cleaned)
        assert outcome is not None, "only what has succeeded is published"
        id, files = id_for_key("file", job.id), service.store.files
        with service.workspace.keeping(id):
            place_file(service.workspace, cleaned_file(folder), id)
            is_listed = service.store.jobs.succeed(
                job.id,
                CleaningResult(file=id),
                report=outcome.report,
                files=[
                    {
                        "id": id,
                        "filename": name_of_made_file(request_of(job).filename, "cleaned"),
                        "purpose": "fine-tune",
                        "bytes": outcome.bytes,
                        "sha256": outcome.sha256,
                        "status": FileStatus.PROCESSED,
                        "report": outcome.check,
                        "lineage": asdict(_lineage(job, CleaningReport.model_validate(outcome.report))),
                    }
                ],
            )
        if not is_listed:  # it was cancelled
            service.workspace.remove_file(id, lambda: files.get(id))


def request_of(job: Job) -> CleaningRequest:
    assert isinstance(job.request, CleaningRequest), f"{job.id} is no cleaning"
    return job.request


def reading_of(job: Job) -> Reading:
    """How both files of a cleaning are read."""
    return request_of(job).data.reading(True)


def _rows_of(service: Service, id: str, role: str, reading: Reading) -> int:
    """The rows of an input, which are read where the check of its upload has not read them in this way. Raises
    JobRefused where it cannot be used."""
    record = service.store.files.get(id)
    if record is not None and record.report is not None and reading == Reading():
        rows, problem = int(record.report["rows"]), record.report["problem"]
    else:
        try:
            with service.workspace.file(id).open("rb") as file:
                report = inspect_apart(file, reading)
        except OSError as error:
            raise JobRefused(f"invalid_{role}", f"the file cannot be read: {error.strerror}", role) from error
        rows, problem = report.rows, report.problem
    if problem is not None:
        raise JobRefused(f"invalid_{role}", str(problem), role)
    return rows


def _lineage(job: Job, report: CleaningReport) -> FileLineage:
    request, source = request_of(job), job.file(SOURCE_FILE)
    assert source is not None, "every cleaning has a file"
    return FileLineage(
        cleaning=job.id,
        file=source,
        filename=request.filename,
        sha256=request.sha256,
        steps=[step.model_dump(mode="json") for step in request.steps],
        rows_before=report.rows_before,
        rows_after=report.rows_after,
    )
