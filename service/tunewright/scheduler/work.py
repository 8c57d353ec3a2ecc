"""What jobs of one kind need: how they are looked at, what their process is told, and what becomes of its product."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel

from tunewright.jobs.folder import JobFolder
from tunewright.registry.bases import BaseInfo
from tunewright.store.records import Job


class JobRefused(Exception):
    """The job cannot begin: `code`, the message and `param` become its error."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Work(Protocol):
    """One kind of job. `scheduler.jobs` moves jobs of every kind along alike."""

    module: str
    """Of the process, run on the job's folder."""
    path: str
    """Of the API."""
    process: str
    """What it is called in messages and codes."""
    saves: str
    """What it goes on from after a crash."""
    on_kill: str
    """What may help where it needs more memory than there is."""

    def validate(self, job: Job, base: BaseInfo) -> tuple[dict[str, Any], str]:
        """Look at its files: what every "auto" became, and a line on what was found. Raises JobRefused and
        StorageFull."""
        ...

    def spec(self, job: Job, base: BaseInfo) -> BaseModel:
        """All that its process is told."""
        ...

    def publish(self, job: Job, base: BaseInfo, folder: JobFolder) -> None:
        """Move the product of a process that succeeded into the registry, list it and end the job. Safe to repeat."""
        ...
