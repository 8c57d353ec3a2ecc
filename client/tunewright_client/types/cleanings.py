"""Cleanings of files and their reports. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire
from .jobs import WorkRecord


class CleaningFound(Wire):
    """Rows in which a step found the same thing: how many, and the places of the first ones (from 1)."""

    rows: int = 0
    places: list[int] = Field(default_factory=list)


class CleaningStepCounts(Wire):
    """The rows that a step has removed, changed, and flagged (found something in and left as they are).

    `found` says what was found, and in which rows.
    """

    step: str
    removed: int = 0
    changed: int = 0
    flagged: int = 0
    found: dict[str, CleaningFound] = Field(default_factory=dict)


class CleaningGroup(Wire):
    """A group of the step balance: its rows, and how many were kept."""

    name: str
    rows: int
    kept: int = 0


class CleaningReport(Wire):
    """What the steps did to the file.

    - container, format, kind: what the file was
    - unit: what places count: line or row
    - changed: rows that are left, but not as they were
    - steps: in the order in which they ran
    """

    container: str | None = None
    format: str | None = None
    kind: str | None = None
    unit: str = "line"
    rows_before: int = 0
    rows_after: int = 0
    changed: int = 0
    steps: list[CleaningStepCounts] = Field(default_factory=list[CleaningStepCounts])
    groups: list[CleaningGroup] = Field(default_factory=list[CleaningGroup])


class CleaningRecord(WorkRecord):
    """A job that makes a new file of a file. The clients return it as `Cleaning` or `AsyncCleaning`.

    - file, filename: the file that is cleaned, which stays as it is
    - steps: the steps with all of their options
    """

    object: str = "cleaning"
    started_at: int | None = None
    file: str = ""
    filename: str = ""
    steps: list[dict[str, Any]] = Field(default_factory=list[dict[str, Any]])
    data: dict[str, Any] | None = None
    cleaned_file: str | None = None
    report: CleaningReport | None = None

    @property
    def product(self) -> str | None:
        """`cleaned_file`, the id of the new file."""
        return self.cleaned_file
