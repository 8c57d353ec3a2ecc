"""The input and the output of the reference process of the parity check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.atomic import write_atomically
from tunewright.rows.sources import Source

NO_ROOM = 75
"""Exit code of a reference process that found no device with room for the base (EX_TEMPFAIL)."""

CANDIDATES = 20
"""How many of the likeliest tokens are compared in each place; the most that vLLM returns by default."""
Logprobs = dict[int, float]
"""Log-probabilities by token."""
RowsFrom = Literal["validation_file", "training_file", "probes"]


class BaseSpec(BaseModel):
    """A base as transformers loads it, in the 16 bits of its config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    trust_remote_code: bool = False
    device: str = "cpu"
    """`cpu` or `cuda`; the GPU is used only if it has room, and the environment selects it."""
    context: int
    """The engine's context in tokens."""


class ParitySpec(BaseModel):
    """`spec.json`: the input for one adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseSpec
    adapter_id: str
    adapter: str
    """A PEFT folder."""
    chat_template: str | None = None
    """The template with which the adapter was trained; None: that of the base."""
    rows_from: RowsFrom
    files: tuple[Source, ...] = ()
    """Data files; none: the built-in probes."""
    rows: int
    """How many rows are used, from the first of each file on, in the files' shares."""
    four_bit: bool = False
    """Whether it was trained on the base in 4 bits, on which it is measured too."""
    content: str | None = None
    """A hash of what is measured and how; for the scheduler."""


class ReferenceRow(BaseModel):
    """A row, cut at 512 tokens or the context.

    For each token but the first it has the log-probabilities (nats) of that token and of the likeliest in its place.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # an adapter's numbers may overflow

    file: str | None = None
    """The id of its file; None: a built-in row."""
    line: int
    """Its line in the file, from 1."""
    text: str
    tokens: list[int]
    base: list[Logprobs]
    adapted: list[Logprobs]


class Rendering(BaseModel):
    """A prompt as a request sends it, and its tokens in training."""

    file: str | None = None
    line: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    tokens: list[int]


class FourBitLoss(BaseModel):
    """What an adapter loses by being served on the base in 16 bits, having been trained on it in 4 (nats per token)."""

    loss: float
    """Of the rows' tokens, on the base in 4 bits."""
    served_loss: float
    """On the base in 16 bits."""
    difference: float
    """`served_loss` - `loss`: positive where it is served worse than it was trained."""


class Reference(BaseModel):
    """`reference.json`: the output for one adapter."""

    rows: list[ReferenceRow]
    renderings: list[Rendering]
    device: str
    dtype: str
    seconds: float
    versions: dict[str, str]
    four_bit: FourBitLoss | None = None


class ParityFolder:
    """Paths and atomic writes; files can be read while the process runs, or after it was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.reference_file = path / "reference.json"

    def write_spec(self, spec: ParitySpec) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec_file, spec.model_dump_json(indent=2))

    def read_spec(self) -> ParitySpec:
        return ParitySpec.model_validate_json(self.spec_file.read_text())

    def write_reference(self, reference: Reference) -> None:
        write_atomically(self.reference_file, reference.model_dump_json())

    def read_reference(self) -> Reference | None:
        """The reference, or None where there is none. Raises ValueError where the file is faulty."""
        try:
            return Reference.model_validate_json(self.reference_file.read_text())
        except FileNotFoundError:
            return None
