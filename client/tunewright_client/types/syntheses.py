"""Syntheses, the rows that a teacher makes, and their reports. Times are Unix seconds."""

from typing import Any

from pydantic import Field

from .base import Wire
from .jobs import WorkRecord


class Teacher(Wire):
    """The model that was asked, as it was when the synthesis was created. `asked`: the name in the request, which may
    be an alias; `content`: the hash of its weights, or the fingerprint of a base."""

    name: str
    asked: str = ""
    content: str = ""


class DroppedRows(Wire):
    """Requests that became no row for one reason: how many, the places of the first ones (rows of the file, or of new
    rows the numbers of the requests), and what was said of the first."""

    rows: int = 0
    places: list[int] = Field(default_factory=list)
    first: str | None = None


class ScoreSummary(Wire):
    """The scores of the answers that were graded."""

    graded: int
    mean: float
    least: float
    most: float


class SynthesisReport(Wire):
    """What came of a synthesis. `requests` is the sum of `rows_made` and of the `rows` of all that was dropped.

    - rows_drawn: rows of the file that were used
    - dropped: by reason, such as cut_off or near_duplicate
    - prompt_tokens, completion_tokens: of all answers
    - prompts_version: of the texts by which the teacher was asked
    """

    rows_in_file: int = 0
    rows_drawn: int = 0
    requests: int = 0
    rows_made: int = 0
    dropped: dict[str, DroppedRows] = Field(default_factory=dict)
    scores: ScoreSummary | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompts_version: int = 1


class SynthesisRecord(WorkRecord):
    """A job in which a teacher makes training rows. The clients return it as `Synthesis` or `AsyncSynthesis`.

    - model, teacher: the model that is asked: never an alias
    - file, filename: the file whose rows are used, which stays as it is
    - task: what is made, with all of its options
    - made_file: the id of the new file; dropped_file: that of what was dropped, with the reasons
    """

    object: str = "synthesis"
    started_at: int | None = None
    teacher: Teacher | None = None
    file: str = ""
    filename: str = ""
    task: dict[str, Any] = Field(default_factory=dict)
    rows: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    deduplicate: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    made_file: str | None = None
    dropped_file: str | None = None
    report: SynthesisReport | None = None

    @property
    def product(self) -> str | None:
        """`made_file`, the id of the new file."""
        return self.made_file
