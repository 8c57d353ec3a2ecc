"""What a synthesis can be asked to make: its tasks, with their options, and how copies are removed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunewright.graders.models import Grader
from tunewright.rows.canonical import RowKind
from tunewright.wire import Body, Text

MOST_REQUESTS = 50_000
"""Of a synthesis, those of new rows that are asked for again included; as many as of a batch."""
_Instructions = Annotated[Text, Field(min_length=1, max_length=8_192)]


class AnswersTask(Body):
    """The teacher answers what the rows ask. The last answer of a row, where it has one, is cut away."""

    model_config = ConfigDict(frozen=True)

    type: Literal["answers"] = "answers"
    n: int = Field(1, ge=1, le=64, description="Answers to each row, each with a seed of its own.")
    instructions: _Instructions | None = Field(
        None, description="A system message for the teacher alone: the made rows do not have it."
    )
    grader: Grader | None = Field(
        None,
        description="A grader as of fine-tuning, but none that asks a model. It refers to item.asked and item.expected "
        "of a row, and to the fields of rows of prompts alone.",
    )
    min_score: float | None = Field(
        None, ge=-1e6, le=1e6, description="Answers to which the grader gives less are dropped."
    )
    keep: Literal["all", "best"] = Field(
        "all", description="best: of the answers to a row only the one with the highest score."
    )
    keep_refusals: bool = Field(
        False,
        strict=True,
        description="Keep answers in which the teacher says, in English, that it will not help.",
    )


class ParaphrasesTask(Body):
    """The teacher rewrites what the user says in each row; the answers stay."""

    model_config = ConfigDict(frozen=True)

    type: Literal["paraphrases"] = "paraphrases"
    per_row: int = Field(1, ge=1, le=64, description="Paraphrases of each row.")
    instructions: _Instructions | None = Field(None, description="What the teacher is told besides.")


class RowsTask(Body):
    """The teacher writes new rows in the likeness of the file's."""

    model_config = ConfigDict(frozen=True)

    type: Literal["rows"] = "rows"
    count: int = Field(ge=1, le=MOST_REQUESTS, description="How many new rows are wanted.")
    examples: int = Field(
        4, ge=1, le=32, description="Rows that the teacher is shown each time; fewer where they do not fit."
    )
    topics: list[Annotated[Text, Field(min_length=1, max_length=1_024)]] | None = Field(
        None,
        min_length=1,
        max_length=1_000,
        description="What the rows are to be about, one topic after another.",
    )
    instructions: _Instructions | None = Field(None, description="What the teacher is told besides.")


Task = Annotated[AnswersTask | ParaphrasesTask | RowsTask, Field(discriminator="type")]


TASKS = ("answers", "paraphrases", "rows")


class Deduplication(Body):
    """How rows that are there already are removed."""

    model_config = ConfigDict(frozen=True)

    similarity: float | None = Field(
        0.85,
        ge=0.5,
        le=0.99,
        description="Jaccard similarity, over runs of three words, at which about half of the pairs that are alike are "
        "found. null: only the same ones are removed.",
    )
    source: bool | None = Field(
        None,
        strict=True,
        description="Whether rows are removed too that the file has. null: for paraphrases and rows, not for answers, "
        "which take the place of the file's.",
    )


USABLE: dict[str, frozenset[RowKind]] = {
    "answers": frozenset(RowKind),
    "paraphrases": frozenset(RowKind) - {RowKind.TEXT},
    "rows": frozenset(RowKind) - {RowKind.GRADED},
}
"""The kinds of rows that each task can work on."""
_WHY_NOT = {
    "paraphrases": "which have no user's turn to rewrite",
    "rows": "which have no answers for the teacher to imitate: let it answer them, with the task answers",
}


def why_unusable(task: Task, format: str, kind: str) -> str | None:
    """Why a task cannot work on rows of this kind; None where it can."""
    if RowKind(kind) in USABLE[task.type]:
        return None
    return f"the file has {kind} rows (format {format}), {_WHY_NOT[task.type]}"


def requests_of(task: Task, rows: int) -> int:
    """The requests of a task on so many rows: those of new rows that were dropped come on top."""
    match task:
        case AnswersTask():
            return rows * task.n
        case ParaphrasesTask():
            return rows * task.per_row
        case RowsTask():
            return task.count
