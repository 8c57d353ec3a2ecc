"""Control tokens of chat templates inside texts."""

from __future__ import annotations

from typing import Literal

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, acted
from tunewright.rows.cleaning.texts import changed_everywhere, every_text
from tunewright.rows.control_tokens import PATTERN, neutralized_text


class ControlTokensOptions(Options):
    """A space behind the first character makes them plain text (`neutralize`), as training and serving do with chat
    rows anyway."""

    type: Literal["control_tokens"] = "control_tokens"
    action: Literal["neutralize", "flag", "remove"] = "neutralize"


class ControlTokens(Step):
    name = "control_tokens"

    def __init__(self, options: ControlTokensOptions) -> None:
        self._action = options.action

    def apply(self, record: Record) -> Outcome:
        found = ("control token",) if any(PATTERN.search(text) for text in every_text(record.row)) else ()
        return acted(self._action, record, lambda: changed_everywhere(record.row, neutralized_text), found)
