"""The report of a data file: what is in it, and in tokens of a model what a job would train on."""

from pydantic import Field

from .base import Wire


class ReportRow(Wire):
    """A row, by its line (in a JSON array or Parquet, its row), and what is said of it."""

    line: int | None = None
    row: int | None = None
    message: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line is not None else f"row {self.row}"
        return f"{place}: {self.message}"


class ReportProblem(Wire):
    """What is wrong, what to do, how many rows have it, and the first ten of them. severity: error or warning."""

    code: str
    severity: str
    message: str
    fix: str
    count: int = 0
    rows: list[ReportRow] = Field(default_factory=list)


class ReportTurns(Wire):
    """The messages of chat rows: all, by row, and by role."""

    messages: int
    mean: float
    most: int
    roles: dict[str, int] = Field(default_factory=dict)


class ReportBin(Wire):
    """The lengths from start to end, both included, and how many there are."""

    start: int
    end: int
    count: int


class ReportLengths(Wire):
    """Lengths before the cut. percentiles: by percent, such as "95"; unit: characters or tokens."""

    unit: str
    mean: float
    percentiles: dict[str, int]
    longest: int
    histogram: list[ReportBin]


class ReportPairs(Wire):
    """The two answers of preference rows. chosen_longer: pairs whose better answer is the longer one; identical: pairs
    whose answers are the same."""

    chosen: ReportLengths | None = None
    rejected: ReportLengths | None = None
    chosen_longer: int
    identical: int


class ReportDuplicates(Wire):
    """Rows that are copies of earlier ones, and the lines of the first ten groups."""

    copies: int
    groups: list[list[int]] = Field(default_factory=list)


class ReportGroup(Wire):
    """The rows with one label, answer or value of a column."""

    name: str
    rows: int


class ReportBalance(Wire):
    """How rows are spread: by is label, answer or a column; groups: the largest; ratio: of the largest to the
    smallest."""

    by: str
    groups: list[ReportGroup]
    ratio: float


class ReportTokens(Wire):
    """What a job would train on.

    - tokens, trained: of an epoch, after the cut at max_length
    - cut: examples that are longer; lost_trained: tokens that would be trained on but for the cut
    - left_out: examples with nothing to learn after the cut
    - is_complete: whether all rows were tokenized
    """

    model: str
    max_length: int
    rows: int
    is_complete: bool
    from_cache: bool
    examples: int
    tokens: int
    trained: int
    cut: int
    left_out: int
    lost_trained: int
    lengths: ReportLengths | None = None


class ReportSegment(Wire):
    """A piece of an example's text, and whether it is trained on."""

    text: str
    trained: bool


class ReportSample(Wire):
    """An example as the model gets it."""

    line: int | None = None
    row: int | None = None
    tokens: int
    trained: int
    segments: list[ReportSegment]


class DataReport(Wire):
    """What is in a file; `tokens` and `samples` where a model was given. is_complete: whether all rows were read."""

    file_id: str
    filename: str = ""
    container: str | None = None
    format: str | None = None
    kind: str | None = None
    rows: int
    is_complete: bool
    ignored_fields: list[str] = Field(default_factory=list)
    turns: ReportTurns | None = None
    pairs: ReportPairs | None = None
    characters: ReportLengths | None = None
    duplicates: ReportDuplicates
    balance: list[ReportBalance] = Field(default_factory=list)
    tokens: ReportTokens | None = None
    samples: list[ReportSample] = Field(default_factory=list)
    problems: list[ReportProblem] = Field(default_factory=list)
    flags: list[ReportProblem] = Field(default_factory=list)
