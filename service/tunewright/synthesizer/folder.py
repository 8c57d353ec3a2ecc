"""The input of a synthesis's process, `spec.json`, and its result. The rest of its folder is as in every job:
`jobs.folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.graders.sandbox import Mode
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.jobs.gateway import AskedModel
from tunewright.jobs.products import Product
from tunewright.rows.reading import Reading
from tunewright.synthesizer.tasks import Deduplication, Task


class SynthesisSpec(BaseModel):
    """`spec.json`: the input of the process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    socket: str
    """That of the service's own gateway (`api.gateway.inner`)."""
    project: str = "default"
    """Whose use the answers are."""
    key: str | None = None
    """The id of the key that has created the job."""
    request_timeout: float
    """Seconds that an answer may take."""
    teacher: AskedModel
    has_template: bool = True
    """Whether the teacher has a chat template; without one it continues texts."""
    file: str
    """The path of the source."""
    reading: Reading = Reading()
    rows_in_file: int
    rows: int | None = None
    """How many rows are drawn; None: all of them."""
    task: Task
    deduplicate: Deduplication = Deduplication()
    seed: int
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int
    python_graders: Mode = "off"
    """Whether a grader may be a program, as the operator says."""
    memory_bytes: int
    """Address space that the process may take beside what it has when it starts."""


class MadeRows(Product):
    """The file of made rows."""

    check: dict[str, Any] | None = None
    """As of uploads (`rows.formats.FileReport.as_json`)."""


class Synthesized(Outcome):
    """`result.json`."""

    made: MadeRows | None = None
    dropped: Product | None = None
    """What came of the requests of which no row was made; None where there are none."""


def answers_file(folder: JobFolder) -> Path:
    """What was answered so far, a line for each request in the order in which the answers came."""
    return folder.work / "answers.jsonl"


def made_file(folder: JobFolder) -> Path:
    """The product: the made rows. It is complete where it exists."""
    return folder.work / "made.jsonl"


def dropped_file(folder: JobFolder) -> Path:
    """The requests of which no row was made, each with the reason. It is complete where it exists."""
    return folder.work / "dropped.jsonl"
