"""Texts that give the model orders in place of its operator, and characters that hide such texts."""

from __future__ import annotations

import re
from typing import Literal

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, acted
from tunewright.rows.cleaning.texts import changed_everywhere, every_text, said

_EARLIER = (
    r"(?:all |any |every |the |your |of |my |these |those )*"
    r"(?:previous|prior|above|earlier|preceding|former|existing|system)"
)
_ORDERS = {
    "ignore instructions": re.compile(
        rf"\b(?:ignore|disregard|forget|override|bypass)\s+{_EARLIER}\s+"
        r"(?:instructions?|prompts?|rules|directions|guidelines|messages?|context|commands?)"
        r"|\b(?:ignore|disregard|forget)\s+(?:everything|all)\s+(?:above|before|you were told)"
        r"|\b(?:ignoriere|vergiss|missachte)\s+(?:alle\s+|die\s+|deine\s+)*(?:vorherigen|bisherigen|obigen|früheren)"
        r"|\bignore[zr]?\s+(?:toutes\s+)?(?:les\s+)?(?:instructions|consignes)\s+précédentes"
        r"|\bignora\s+(?:todas\s+)?(?:las\s+)?instrucciones\s+(?:anteriores|previas)",
        re.IGNORECASE,
    ),
    "ask for the system prompt": re.compile(
        r"\b(?:reveal|print|show|repeat|output|leak|tell)\s+(?:me\s+|us\s+)?(?:your|the)\s+(?:\w+\s+)?(?:system|hidden|initial|secret)"
        r"\s+(?:prompt|instructions?|message)",
        re.IGNORECASE,
    ),
    "jailbreak": re.compile(
        r"\byou are now (?:DAN\b|in developer mode|jailbroken|unrestricted)|\bdo anything now\b"
        r"|\bdeveloper mode (?:enabled|output)\b"
        r"|\bwithout (?:any )?(?:ethical|safety|content) (?:restrictions|filters|guidelines)\b",
        re.IGNORECASE,
    ),
    "forged turn": re.compile(
        r"^[ \t]*(?:#{2,}\s*|\*\*|\[)(?:system|assistant)(?:\s+(?:prompt|message))?\s*(?:\*\*|\])?\s*:",
        re.IGNORECASE | re.MULTILINE,
    ),
}
_HIDDEN = re.compile("[\U000e0000-\U000e007f\u202a-\u202e\u2066-\u2069]")
"""Tag characters, which no font shows, and those that turn the direction of writing. Flags of regions are written with
the former behind a black flag, which is kept."""
_REGION_FLAG = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]{1,12}\U000e007f)")


class InjectionOptions(Options):
    """Orders are flagged, since only their reader can tell an attack from a text about one; with `remove` the row goes.
    Hidden characters are removed from the text in any case but `flag`."""

    type: Literal["injection"] = "injection"
    action: Literal["neutralize", "flag", "remove"] = "neutralize"


class Injection(Step):
    name = "injection"

    def __init__(self, options: InjectionOptions) -> None:
        self._action = options.action

    def apply(self, record: Record) -> Outcome:
        found = injections(record)
        return acted(self._action, record, lambda: changed_everywhere(record.row, _shown), found)


def injections(record: Record) -> tuple[str, ...]:
    """What is found in a row: orders in the texts of users and tools, hidden characters in all."""
    asked = [text for role, text in said(record.row) if role not in ("assistant", "system", "developer")]
    found = [name for name, order in _ORDERS.items() if any(order.search(text) for text in asked)]
    if any(_shown(text) != text for text in every_text(record.row)):
        found.append("hidden characters")
    return tuple(found)


def _shown(text: str) -> str:
    if not _HIDDEN.search(text):
        return text
    parts = _REGION_FLAG.split(text)
    return "".join(part if n % 2 else _HIDDEN.sub("", part) for n, part in enumerate(parts))
