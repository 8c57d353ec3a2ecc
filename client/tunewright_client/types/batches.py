"""Batches and their results, and uploads. Times are Unix seconds."""

from typing import Any, cast

from pydantic import Field, model_validator

from .base import Wire
from .jobs import WorkRecord
from .resources import File

_FINAL = ("completed", "failed", "expired", "cancelled")


class BatchFault(Wire):
    """What is wrong with the file of requests, in a line (from 1) or as a whole."""

    code: str | None = None
    message: str | None = None
    line: int | None = None
    param: str | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        return place + (self.message or self.code or "it cannot be used")


class BatchCounts(Wire):
    """Requests of a batch: those in the output file are completed, those in the error file failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchRecord(WorkRecord):
    """A batch. The clients return it as `Batch` or `AsyncBatch`.

    - status: validating, in_progress, finalizing, cancelling; in the end completed, failed, expired or cancelled
    - faults: why it has failed
    - output_file_id, error_file_id: the results; also of a batch that has expired or was cancelled
    """

    object: str = "batch"
    endpoint: str = ""
    input_file_id: str = ""
    completion_window: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts = Field(default_factory=BatchCounts)
    faults: list[BatchFault] = Field(default_factory=list[BatchFault])

    @model_validator(mode="before")
    @classmethod
    def _as_of_jobs(cls, data: Any) -> Any:
        """What jobs of other kinds call the error, the progress and the end."""
        if not isinstance(data, dict):
            return data
        given = cast("dict[str, Any]", data)
        faults = (given.get("errors") or {}).get("data") or []
        counts = given.get("request_counts") or {}
        ends = [given.get(f"{status}_at") for status in _FINAL]
        record = {key: value for key, value in given.items() if key != "errors"}
        record["model"] = given.get("model") or ""
        record.setdefault("faults", faults)
        record.setdefault("finished_at", next((at for at in ends if at), None))
        if faults:
            told = str(BatchFault.model_validate(faults[0]))
            record.setdefault("error", {"code": faults[0].get("code"), "message": told})
        if counts.get("total"):
            done = counts.get("completed", 0) + counts.get("failed", 0)
            record.setdefault("progress", {"step": done, "total_steps": counts["total"]})
        return record

    @property
    def is_final(self) -> bool:
        """Whether the batch has ended: completed, failed, expired or cancelled."""
        return self.status in _FINAL

    @property
    def product(self) -> str | None:
        """`output_file_id`, the id of the file with the answers."""
        return self.output_file_id


class BatchResponse(Wire):
    """What a request of a batch was answered: `body` is that of the endpoint, or has its error."""

    status_code: int = 0
    request_id: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)


class BatchResult(Wire):
    """The result of one request. Without a `response`, `error` says why it was not asked."""

    id: str = ""
    custom_id: str
    response: BatchResponse | None = None
    error: dict[str, Any] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether it has an answer, and no error."""
        return self.response is not None and self.response.status_code == 200


class Upload(Wire):
    """A file that comes in parts. `status` is pending, completed, cancelled or expired; `file` is there when it is
    completed."""

    id: str
    object: str = "upload"
    bytes: int = 0
    created_at: int = 0
    expires_at: int = 0
    filename: str = ""
    purpose: str = ""
    status: str = ""
    file: File | None = None


class UploadPart(Wire):
    """A part of an upload."""

    id: str
    object: str = "upload.part"
    created_at: int = 0
    upload_id: str = ""
