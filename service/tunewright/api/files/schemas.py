"""OpenAI's file object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from tunewright.rows.report.models import DataReport
from tunewright.store import file_lineages
from tunewright.store.records import FileRecord
from tunewright.store.states import FileStatus
from tunewright.wire import Wire


class Fault(Wire):
    """A fault of a file."""

    line: int | None = Field(None, description="Its line, from 1.")
    row: int | None = Field(None, description="Its row, from 1, in a JSON array or Parquet.")
    message: str


class FileReport(Wire):
    """What the check of a file has found. Fields that were not found out are null."""

    container: str | None = Field(
        description="jsonl, json, csv or parquet; the first three with .gz where the file is compressed."
    )
    format: str | None = Field(
        description="openai_chat, openai_preference, prompt_completion, alpaca, sharegpt, trl_preference, trl_kto or "
        "text."
    )
    kind: str | None = Field(
        description="What the rows are for: chat, prompt_completion, preference, labelled or text."
    )
    rows: int = Field(description="Those that were read: all, unless there are too many faults.")
    faults: list[Fault] = Field(description="Up to ten.")
    has_more_faults: bool = Field(description="Whether there may be more.")
    ignored_fields: list[str] = Field(description="Fields or columns of rows that have no meaning.")


class FileLineage(Wire):
    """What a cleaning has made a file of."""

    cleaning: str = Field(description="Id of the cleaning, which may be removed after a while.")
    file: str = Field(description="Id of the file that was cleaned, which may be deleted by now.")
    filename: str
    sha256: str
    steps: list[dict[str, Any]] = Field(description="The steps with all of their options.")
    rows_before: int
    rows_after: int


class SynthesisLineage(Wire):
    """What a synthesis has made a file of."""

    synthesis: str = Field(description="Id of the synthesis, which may be removed after a while.")
    file: str = Field(description="Id of the source, which may be deleted by now.")
    filename: str
    sha256: str
    task: dict[str, Any] = Field(description="The task with its options.")
    teacher: str = Field(description="The model that was asked.")
    teacher_content: str = Field(description="The hash of its weights, or the fingerprint of a base.")
    prompts_version: int = Field(description="The version of the texts by which it was asked.")
    seed: int
    rows_before: int
    rows_after: int


class FileObject(Wire):
    """An uploaded file, a cleaned one, one that a teacher has made, or the results of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: int | None = Field(
        description="Unix seconds from which it is removed, unless an unfinished job needs it; null: it is kept."
    )
    filename: str
    purpose: str = Field(
        description="`fine-tune` or `batch` for uploads, `fine-tune` for cleaned files and made rows, "
        "`fine-tune-results` for the metrics of a job (CSV), `evaluation-results` for the answers of an evaluation "
        "(JSONL), `batch_output` for those of a batch (JSONL), `synthesis-dropped` for what a synthesis has dropped "
        "(JSONL)."
    )
    status: FileStatus = Field(
        description="uploaded: its rows are being checked. error: it cannot be used as it is, only with `data.columns` "
        "that say what its columns are."
    )
    status_details: str | None = Field(description="What is wrong, in one line.")
    report: FileReport | None = Field(
        description="null until it was checked, for results, and for requests of a batch."
    )
    sha256: str
    lineage: FileLineage | SynthesisLineage | None = Field(
        description="Of a cleaned file, or one that a synthesis has made; null for others."
    )

    @classmethod
    def of(cls, record: FileRecord) -> FileObject:
        return cls(
            id=record.id,
            bytes=record.bytes,
            created_at=int(record.created_at),
            expires_at=None if record.expires_at is None else int(record.expires_at),
            filename=record.filename,
            purpose=record.purpose,
            status=record.status,
            status_details=record.report.get("problem") if record.report else None,
            report=FileReport(**{k: v for k, v in record.report.items() if k in FileReport.model_fields})
            if record.report
            else None,
            sha256=record.sha256,
            lineage=_lineage(record),
        )


def _lineage(record: FileRecord) -> FileLineage | SynthesisLineage | None:
    if record.lineage is None:
        return None
    is_made = isinstance(record.lineage, file_lineages.SynthesisLineage)
    return (SynthesisLineage if is_made else FileLineage)(**asdict(record.lineage))


class ReportObject(Wire, DataReport):
    """What is in a file, and in tokens of a model what a job would train on."""

    object: Literal["file.report"] = "file.report"
    file_id: str
    filename: str
