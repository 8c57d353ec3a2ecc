"""How a data file is read: the options of a job's `data`, resolved, so that they go into specs and keys of caches."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FIELDS = frozenset({
    "messages", "tools", "parallel_tool_calls", "prompt", "completion", "instruction", "input", "output", "system",
    "history", "conversations", "chosen", "rejected", "label", "text", "preferred_output", "non_preferred_output",
})  # fmt: skip
"""The fields of all formats."""
_OF_LLAMA_FACTORY = {"query": "input", "response": "output", "kto_tag": "label"}
"""LLaMA-Factory's names of columns (its dataset_info.json), in which `prompt` is Alpaca's instruction."""
NAMES = FIELDS | _OF_LLAMA_FACTORY.keys()
"""What `columns` may name."""
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
"""The names in ShareGPT's conversations, as LLaMA-Factory calls them, and what they are by default."""

COLUMNS_SAY = 'data.columns says what they are, such as {"prompt": "question", "completion": "answer"}'
"""Of a file whose columns have other names."""


class Reading(BaseModel):
    """How the rows of a file are read. Two readings that are equal give the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, str] | None = None
    """The column of the file for each field (`NAMES`); other columns are then left out. None: they have the names of
    the fields."""
    tags: dict[str, str] | None = None
    """Other names in ShareGPT's conversations (`TAGS`)."""
    alpaca: Literal["chat", "template"] = "chat"
    """Alpaca rows become conversations, or prompts in the text that Stanford's Alpaca was trained with."""
    part: Literal["all", "training", "held_out"] = "all"
    """Which part of the file is read, where rows are held out for validation."""
    held_out_share: float = 0.0
    """The share of the rows that is held out (`rows.held_out`)."""

    def fields(self) -> dict[str, str] | None:
        """`columns` with the names of `FIELDS` only."""
        if self.columns is None:
            return None
        given = dict(self.columns)
        if given.keys() & {"query", "response"} and "prompt" in given and "instruction" not in given:
            given["instruction"] = given.pop("prompt")
        return {_OF_LLAMA_FACTORY.get(name, name): column for name, column in given.items()}

    def wanted_columns(self) -> frozenset[str]:
        """The columns that are read of a table."""
        fields = self.fields()
        return FIELDS | {"kto_tag"} if fields is None else frozenset(fields.values())
