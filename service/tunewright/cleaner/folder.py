"""The input of a cleaning's process, `spec.json`, and its result. The rest of its folder is as in every job:
`jobs.folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.rows.cleaning.options import StepOptions
from tunewright.rows.reading import Reading


class CleaningSpec(BaseModel):
    """`spec.json`: the input of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    file: str
    """The path of the file to clean."""
    rows: int
    """Its number of rows, for the progress."""
    reading: Reading = Reading()
    steps: list[StepOptions]
    against: str | None = None
    """The path of the file whose rows the step leaks removes."""
    memory_bytes: int
    """Address space that the process may take beside what it has when it starts."""


class Cleaned(Outcome):
    """`result.json`."""

    bytes: int = 0
    sha256: str = ""
    check: dict[str, Any] | None = None
    """The check of the cleaned file, as of uploads (`rows.formats.FileReport.as_json`)."""


def cleaned_file(folder: JobFolder) -> Path:
    """The product. It is complete where it exists."""
    return folder.work / "cleaned.jsonl"
