"""What a report has, as it is answered, printed and kept. Imports pydantic alone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RowNote(_Part):
    """A row, and what is said of it."""

    line: int | None = Field(None, description="Its line, from 1.")
    row: int | None = Field(None, description="Its row, from 1, in a JSON array or Parquet.")
    message: str


class Problem(_Part):
    """What is wrong with a file or with some of its rows, and what to do."""

    code: str
    severity: Literal["error", "warning"] = Field(
        description="error: no job with this model can use the file as it is."
    )
    message: str
    fix: str = Field(description="What to do.")
    count: int = Field(description="Rows that have it; 0 where it concerns the file as a whole.")
    rows: list[RowNote] = Field(description="The first ten of them.")


class Turns(_Part):
    """The messages of chat rows."""

    messages: int
    mean: float = Field(description="Messages of a row.")
    most: int = Field(description="Messages of the row that has most.")
    roles: dict[str, int] = Field(description="Messages of each role.")


class Bin(_Part):
    """The lengths from `start` to `end`, both included, and how many there are."""

    start: int
    end: int
    count: int


class Lengths(_Part):
    """How long the rows or, in tokens, the examples are; before they are cut."""

    unit: Literal["characters", "tokens"]
    mean: float
    percentiles: dict[str, int] = Field(description="The length that 1, 5, 25, ... percent do not exceed.")
    longest: int
    histogram: list[Bin]


class PairLengths(_Part):
    """The two answers of preference rows."""

    chosen: Lengths | None = Field(description="The better answers.")
    rejected: Lengths | None = Field(description="The others.")
    chosen_longer: int = Field(
        description="Pairs whose better answer is the longer one. Where these are most, the model learns to write more."
    )
    identical: int = Field(description="Pairs whose two answers are the same, which teach nothing.")


class GroupOfRows(_Part):
    """The rows with one label, answer or value of a column."""

    name: str
    rows: int


class Balance(_Part):
    """How the rows of a file are spread over the values of a label."""

    by: str = Field(description="label, answer (the assistant's last text), or the name of a column.")
    groups: list[GroupOfRows] = Field(description="The twenty largest.")
    ratio: float = Field(description="Rows of the largest group for each row of the smallest one.")


class Duplicates(_Part):
    """Rows that are the same as an earlier row, to the character."""

    copies: int = Field(description="Rows that are a copy of an earlier one.")
    groups: list[list[int]] = Field(
        description="Lines (in a JSON array or Parquet, rows) that are the same: up to ten groups of up to ten."
    )


class Tokens(_Part):
    """What a job would train on, in tokens of the model; exact where `is_complete`."""

    model: str
    max_length: int = Field(description="Tokens at which examples are cut.")
    rows: int = Field(description="Rows that were tokenized.")
    is_complete: bool = Field(
        description="Whether these are all rows. A large file is tokenized for a limited time."
    )
    from_cache: bool = Field(description="Whether a job had tokenized the file before.")
    examples: int = Field(
        description="Those that are trained on. A chat row is several where the template rewrites what was said before."
    )
    tokens: int = Field(description="Tokens of an epoch, after the cut.")
    trained: int = Field(description="Those of them that have a loss.")
    cut: int = Field(description="Examples that are longer than `max_length`.")
    left_out: int = Field(
        description="Examples with nothing left to learn after the cut, which are not trained on."
    )
    lost_trained: int = Field(description="Tokens that would be trained on but for the cut.")
    lengths: Lengths | None = Field(description="null where no example could be made.")


class Segment(_Part):
    """A piece of an example's text."""

    text: str
    trained: bool = Field(description="Whether there is a loss on its tokens.")


class Sample(_Part):
    """An example as the model gets it."""

    line: int | None = None
    row: int | None = None
    tokens: int = Field(description="Before the cut.")
    trained: int = Field(description="Tokens with a loss, before the cut.")
    segments: list[Segment] = Field(
        description="Its text up to `max_length`; of long pieces the beginning and the end."
    )


class DataReport(_Part):
    """What is in a file; `tokens` and `samples` where a model was given."""

    container: str | None
    format: str | None = Field(description="As in the file's own `report`.")
    kind: str | None
    rows: int = Field(description="Rows that were read.")
    is_complete: bool = Field(
        description="Whether these are all rows. A large file is read for a limited time."
    )
    ignored_fields: list[str]
    turns: Turns | None = Field(description="null where the rows are no conversations.")
    pairs: PairLengths | None = Field(
        default=None, description="null where the rows have no two answers to compare."
    )
    characters: Lengths | None = Field(
        description="Lengths of the rows' texts; null where no row is readable."
    )
    duplicates: Duplicates
    balance: list[Balance] = Field(
        default_factory=list,
        description="What groups the rows: a label, or an answer or a column with few different values.",
    )
    tokens: Tokens | None
    samples: list[Sample]
    problems: list[Problem]
    flags: list[Problem] = Field(description="Contents of rows that a person should look at.")
