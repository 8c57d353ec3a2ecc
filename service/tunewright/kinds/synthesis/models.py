"""The models of a synthesis's columns: the request, what was resolved, and the result. The report is that of
`synthesizer.report`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.jobs.kinds import JobResult
from tunewright.kinds.data import DataOptions
from tunewright.kinds.evaluation.models import EvaluatedModel
from tunewright.synthesizer.tasks import Deduplication, Task

SOURCE_FILE, TEACHER = "file", "model"
"""Roles of a synthesis's inputs: the file whose rows are used, and the weights of a teacher that has some."""
DROPPED_PURPOSE = "synthesis-dropped"
"""The purpose of the file of what was dropped."""


class SynthesisRequest(BaseModel):
    """The request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    teacher: EvaluatedModel
    """What its name stood for was looked up once, when the synthesis was created."""
    filename: str
    """The name of the source."""
    sha256: str
    task: Task
    deduplicate: Deduplication = Deduplication()
    data: DataOptions = DataOptions()
    """How the source is read."""
    rows: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int | None = None


class SynthesisPlan(BaseModel):
    """What was found out before the start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows_in_file: int
    has_template: bool = True
    """Whether the teacher has a chat template."""
    max_tokens: int


class SynthesisResult(JobResult):
    """The result of a synthesis."""

    file: str | None = None
    """Id of the file with the made rows."""
    dropped_file: str | None = None
    """Id of the file with what was dropped."""
