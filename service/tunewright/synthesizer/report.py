"""What came of a synthesis, in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.rows.cleaning.counts import MOST_PLACES

Reason = Literal[
    "no_prompt",
    "context_too_long",
    "request_refused",
    "not_answered",
    "refusal",
    "empty",
    "cut_off",
    "invalid_json",
    "invalid_row",
    "not_graded",
    "low_score",
    "not_best",
    "duplicate",
    "near_duplicate",
    "in_source",
    "near_in_source",
]
"""Why a request became no row: the row asks nothing; it does not fit into the context; the gateway refuses it, or the
engine has failed at it again and again; the teacher will not help; says nothing; its answer has no end within the most
tokens; is not the JSON that was asked for; makes no valid row; could not be graded; has too low a score; a lower one
than another answer to the row; a row before is the same, or alike; a row of the source is."""


class DroppedRows(BaseModel):
    """Requests that became no row, for one reason."""

    model_config = ConfigDict(extra="ignore")

    rows: int = 0
    places: list[int] = Field(default_factory=list)
    """Of the first of them: the row in the source; of new rows the number of the request."""
    first: str | None = None
    """What was said of the first one."""

    def note(self, place: int, text: str | None) -> None:
        if not self.rows:
            self.first = text
        self.rows += 1
        if len(self.places) < MOST_PLACES:
            self.places.append(place)


class ScoreSummary(BaseModel):
    """The scores of the answers that were graded."""

    model_config = ConfigDict(extra="ignore")

    graded: int
    mean: float
    least: float
    most: float


class SynthesisReport(BaseModel):
    """The result of a synthesis. `rows_made`, and `rows` of all that was dropped, add up to `requests`."""

    model_config = ConfigDict(extra="ignore")

    rows_in_file: int = 0
    rows_drawn: int = 0
    """Rows of the file that were used."""
    requests: int = 0
    """Rows that were to be made, one by each request to the teacher."""
    rows_made: int = 0
    """Those of the new file."""
    dropped: dict[Reason, DroppedRows] = Field(default_factory=dict)
    scores: ScoreSummary | None = None
    """Where there is a grader."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the engine has counted them, of all answers."""
    prompts_version: int = 1
    """The version of the texts by which the teacher was asked."""

    def told(self) -> Iterator[str]:
        """The result in a few lines."""
        yield (
            f"{self.rows_made} rows made by {self.requests} requests, with {self.prompt_tokens} tokens of prompts and "
            f"{self.completion_tokens} of answers"
        )
        for reason, found in self.dropped.items():
            first = f", the first one since: {found.first}" if found.first else ""
            yield f"{found.rows} dropped as {reason}{first}"
        if self.scores is not None:
            yield f"{self.scores.graded} answers graded, {self.scores.mean:.3f} on average"
