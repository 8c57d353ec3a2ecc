"""What the scheduler tells the reference process of the parity check, and what comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tunewright.atomic import write_atomically

NO_ROOM = 75
"""Exit code of a reference process that found no device with room for the base (EX_TEMPFAIL)."""

CANDIDATES = 20
"""Likeliest tokens of each place that are compared; as many as vLLM tells by default."""
Logprobs = dict[int, float]
"""By token."""
RowsFrom = Literal["validation_file", "training_file", "probes"]


class BaseSpec(BaseModel):
    """A base as transformers loads it, in the 16 bits of its config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    trust_remote_code: bool = False
    device: str = "cpu"
    """`cpu`, or the GPU that it may use if that has room (the environment shows it no other)."""
    context: int
    """Tokens that the engine takes at once."""


class ParitySpec(BaseModel):
    """`spec.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: BaseSpec
    adapter_id: str
    adapter: str
    """A PEFT folder."""
    chat_template: str | None = None
    """The one that the adapter was trained through; None: the base's own."""
    rows_from: RowsFrom
    rows_file: str | None = None
    """Chat or text rows; None: the probes that come with the service."""
    rows: int
    """How many of them count, from the first on."""


class ReferenceRow(BaseModel):
    """A row, cut at 512 tokens or the context; for each of its tokens but the first, the log-probabilities (nats) of
    that token and of the likeliest in its place."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # an adapter's numbers may overflow

    line: int
    """In its file, from 1."""
    text: str
    tokens: list[int]
    base: list[Logprobs]
    adapted: list[Logprobs]


class Rendering(BaseModel):
    """A prompt as a request sends it, and the tokens that it is in training."""

    line: int
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = False
    tokens: list[int]


class Reference(BaseModel):
    """`reference.json`, the last thing that the reference process writes of an adapter."""

    rows: list[ReferenceRow]
    renderings: list[Rendering]
    device: str
    dtype: str
    seconds: float
    versions: dict[str, str]


class ParityFolder:
    """Paths and atomic writes. Any of it may be looked at while the process runs, or after it was killed."""

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
        """None where there is none. Raises ValueError where it is not one."""
        try:
            return Reference.model_validate_json(self.reference_file.read_text())
        except FileNotFoundError:
            return None
