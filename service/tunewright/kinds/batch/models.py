"""The models of a batch's columns: the request, what its check has found, and the result."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.batcher.folder import Ending
from tunewright.jobs.kinds import JobResult

INPUT_FILE = "input_file"
"""Role of the input: the file of requests."""
OUTPUT_PURPOSE = "batch_output"
"""The purpose of the files of results, in OpenAI's word."""


class BatchRequest(BaseModel):
    """The request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    endpoint: str
    completion_window: str
    expires_at: float
    """The end of the completion window, in Unix seconds."""
    output_seconds: int | None = None
    """From when the files of results are listed until they expire."""


class BatchPlan(BaseModel):
    """What was found out before the start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    requests: int
    model: str | None = None
    """The model, where all requests name the same."""


class BatchFault(BaseModel):
    """What is wrong with the file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchReport(BaseModel):
    """The faults that the check has found."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    faults: list[BatchFault] = []


class BatchResult(JobResult):
    """The result of a batch. One that has expired or was cancelled has succeeded as a job: it has files of results."""

    ending: Ending = Ending.COMPLETED
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    ended_at: float = 0.0
    """When the last request had its result, in Unix seconds."""

    @property
    def end(self) -> str:
        return self.ending.value
