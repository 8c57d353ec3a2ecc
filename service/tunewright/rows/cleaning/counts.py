"""What a cleaning did, counted by step."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tunewright.rows.cleaning.step import Outcome, Record
from tunewright.rows.cleaning.steps.balance import Group

MOST_PLACES = 10


class Found(BaseModel):
    """Rows in which a step found the same thing."""

    model_config = ConfigDict(extra="ignore")

    rows: int = 0
    places: list[int] = Field(default_factory=list)
    """The first of them."""

    def note(self, place: int) -> None:
        self.rows += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(place)


class StepCounts(BaseModel):
    """What a step did."""

    model_config = ConfigDict(extra="ignore")

    step: str
    removed: int = 0
    changed: int = 0
    flagged: int = 0
    """Rows that were left as they are, though something was found."""
    found: dict[str, Found] = Field(default_factory=dict)
    """What was found; a row may have several."""

    def note(self, record: Record, outcome: Outcome) -> None:
        if outcome.row is None:
            self.removed += 1
        elif outcome.row is not record.row:
            self.changed += 1
        elif outcome.reasons:
            self.flagged += 1
        for reason in outcome.reasons:
            self.found.setdefault(reason, Found()).note(record.place)


class CleaningReport(BaseModel):
    """The result of a cleaning. Places count lines of JSONL and CSV, rows of other files, from 1."""

    model_config = ConfigDict(extra="ignore")

    container: str | None = None
    format: str | None = None
    kind: str | None = None
    unit: str = "line"
    """What places count: `line` or `row`."""
    rows_before: int = 0
    rows_after: int = 0
    changed: int = 0
    """Rows that are in the result, but not as they were."""
    steps: list[StepCounts] = Field(default_factory=list)
    """In the order in which they ran."""
    groups: list[Group] = Field(default_factory=list)
    """Of the step balance, the largest first."""
