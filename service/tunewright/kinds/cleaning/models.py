"""The models of a cleaning's columns: the request, and the result. The report is that of `rows.cleaning`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tunewright.jobs.kinds import JobResult
from tunewright.kinds.data import DataOptions
from tunewright.rows.cleaning.options import EditingOrJudging
from tunewright.rows.cleaning.step import Options
from tunewright.rows.cleaning.steps.balance import BalanceOptions
from tunewright.rows.cleaning.steps.duplicates import LeaksOptions
from tunewright.wire import Text

SOURCE_FILE, AGAINST = "file", "against"
"""Roles of a cleaning's inputs: the file that is cleaned, and the one whose rows the step leaks removes."""


class LeaksAgainst(LeaksOptions):
    """Rows that another file has too are removed: the same ones, and with `similarity` those that are alike."""

    against: Text = Field(
        min_length=1, max_length=64, description="The id of the other file: that of the validation rows."
    )

    def plain(self) -> LeaksOptions:
        """The options as `rows.cleaning` has them."""
        return LeaksOptions(similarity=self.similarity)


CleaningStep = Annotated[EditingOrJudging | LeaksAgainst | BalanceOptions, Field(discriminator="type")]
"""A step as it is asked for: `rows.cleaning.options.StepOptions`, with the other file of leaks by its id."""


class CleaningRequest(BaseModel):
    """The request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    filename: str
    """The name of the file that is cleaned."""
    sha256: str
    steps: list[CleaningStep]
    data: DataOptions = DataOptions()
    """How both files are read."""

    def plain_steps(self) -> list[Options]:
        return [step.plain() if isinstance(step, LeaksAgainst) else step for step in self.steps]


class CleaningPlan(BaseModel):
    """What was found out before the start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: int
    """Those of the file."""


class CleaningResult(JobResult):
    """The result of a cleaning."""

    file: str | None = None
    """Id of the cleaned file."""
