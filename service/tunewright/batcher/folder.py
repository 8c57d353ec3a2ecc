"""The input of a batch's process, `spec.json`, and its result. The rest of its folder is as in every job:
`jobs.folder`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.jobs.products import Product


class Ending(StrEnum):
    """Why a batch has ended, in the words of OpenAI's API."""

    COMPLETED = "completed"
    """Every request was answered, or refused."""
    EXPIRED = "expired"
    """Its completion window was over before."""
    CANCELLED = "cancelled"
    """A user has ended it before."""


class BatchSpec(BaseModel):
    """`spec.json`: the input of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    file: str
    """The path of the file of requests, which was checked."""
    endpoint: str
    project: str
    """Whose models and aliases the requests may name."""
    key: str | None = None
    """The id of the key that has created the job."""
    socket: str
    """That of the gateway for processes of the service."""
    request_timeout: float
    """Seconds that an answer may take."""
    expires_at: float
    """The end of the completion window, in Unix seconds."""
    at_once: int
    """Requests in flight at a time."""
    memory_bytes: int
    """Address space that the process may take beside what it has when it starts."""


class Batched(Outcome):
    """`result.json`. A batch that has expired or was cancelled has results too, and has succeeded as a job."""

    ending: Ending = Ending.COMPLETED
    completed: int = 0
    """Requests with an answer."""
    failed: int = 0
    """Those without."""
    output: Product | None = None
    """The answers; None where there is none."""
    errors: Product | None = None
    """The requests without an answer; None where there is none."""
    ended_at: float = 0.0
    """When the last request had its result, in Unix seconds."""


def output_file(folder: JobFolder) -> Path:
    """The answers so far, a line for each request."""
    return folder.work / "output.jsonl"


def errors_file(folder: JobFolder) -> Path:
    """The requests that have no answer and will have none, a line for each."""
    return folder.work / "errors.jsonl"


def end_file(folder: JobFolder) -> Path:
    """Exists where the batch is to end with what it has."""
    return folder.path / "end"
