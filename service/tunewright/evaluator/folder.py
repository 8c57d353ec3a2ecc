"""The input of an evaluation's process, `spec.json`, and its result. The rest of its folder is as in every job:
`jobs.folder`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.graders.models import Grader
from tunewright.graders.sandbox import Mode
from tunewright.jobs.folder import JobFolder, Outcome
from tunewright.jobs.gateway import AskedModel
from tunewright.metrics.names import Extract, MetricName, SuiteName
from tunewright.metrics.verdicts import Limit
from tunewright.rows.reading import Reading

EXTERNAL = "external"
"""The content of a judge elsewhere, for whose weights nobody answers."""


class Asked(AskedModel):
    """A model that is asked."""

    cache: str | None = None
    """A file of answers that other evaluations have had, or will find."""


class AskedSuite(BaseModel):
    """Questions of the operator's, in the place of a file's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: SuiteName
    data: str
    """The operator's folder."""
    shots: int | None = None
    """Examples before each question; None: as many as is usual for the suite."""
    samples: int = 1
    """Programs for each question."""
    python: Mode = "off"
    """Whether these are run, as the operator says."""


class AskedJudge(Asked):
    """The model that judges pairs of answers, with what it is told."""

    instructions: str | None = None
    """None: `evaluator.pairs.INSTRUCTIONS`."""
    show_expected: bool = True
    """Whether it sees the expected answer of the row."""
    calibrate: int = 0
    """So many pairs of which the data says which answer is better are judged too."""


class Loads(BaseModel):
    """What latency is measured under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_once: list[int]
    """Requests in flight at a time, of each load."""
    prompt_tokens: int
    answer_tokens: int
    requests: int
    """Of each load."""
    price_per_hour: float | None = None
    """Of the device of an engine."""
    currency: str | None = None


class AskedGrader(BaseModel):
    """What grades answers, and whether that may be a program, as the operator says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grader: Grader
    mode: Mode


class EvaluationSpec(BaseModel):
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
    models: list[Asked]
    """The one that is evaluated, then those that it is compared with."""
    file: str | None
    """The path of the data; None: `suite` has the questions."""
    suite: AskedSuite | None = None
    loads: Loads | None = None
    """Latency is measured, in the place of answers."""
    reading: Reading = Reading()
    rows_in_file: int = 0
    rows: int | None = None
    """How many rows are drawn; None: all of them."""
    seed: int
    metrics: list[MetricName] | None = None
    """None: those that suit the data (`metrics.auto`)."""
    extract: Extract = "whole"
    json_schema: dict[str, Any] | None = None
    require: list[Limit] | None = None
    """The limits of the verdict."""
    grader: AskedGrader | None = None
    """Of the metric grader."""
    judge: AskedJudge | None = None
    """Of the metric judge."""
    temperature: float = 0.0
    max_tokens: int
    memory_bytes: int
    """Address space that the process may take beside what it has when it starts."""


class Evaluated(Outcome):
    """`result.json`."""

    bytes: int = 0
    sha256: str = ""


def answers_file(folder: JobFolder) -> Path:
    """What was answered so far, a line for each answer in the order in which they came."""
    return folder.work / "answers.jsonl"


def judgements_file(folder: JobFolder) -> Path:
    """What the judge has said so far, in the same form."""
    return folder.work / "judgements.jsonl"


def complete_lines(file: Path) -> list[bytes]:
    """The lines of a file to which they are appended; an incomplete last one, of a killed process, is cut off."""
    if not file.exists():
        return []
    data = file.read_bytes()
    complete = data.rfind(b"\n") + 1
    os.truncate(file, complete)
    return data[:complete].splitlines()


def results_file(folder: JobFolder) -> Path:
    """The product: the rows with all answers. It is complete where it exists."""
    return folder.work / "results.jsonl"
