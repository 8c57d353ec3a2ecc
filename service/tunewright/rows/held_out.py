"""Which rows of a file are held out for validation: a share of them, chosen by the content of each row alone.

The same content gives the same place, so a row is never in both parts, nor is another row of the same content; the
place does not depend on the order of the rows, nor on others that are added. Of rows whose answers are judged (pairs,
labels, grades) the prompt alone counts: all answers to a held-out prompt are held out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tunewright.rows.canonical import is_graded, is_labelled, is_preference, text_hash

DEFAULT_SHARE = 0.05
_BLANK = re.compile(r"\\[nrt]")
"""White space in a text of JSON."""


def place_of(row: dict[str, Any]) -> float:
    """A number from 0 up to 1, spread evenly over rows. The case of letters and the amount of white space do not
    count."""
    text = json.dumps(_content(row), sort_keys=True, ensure_ascii=False).casefold()
    words = _BLANK.sub(" ", text).split()
    return (text_hash(" ".join(words)) >> 11) / 2**53


def _content(row: dict[str, Any]) -> dict[str, Any]:
    """What decides the place of a canonical row."""
    if is_preference(row) or is_labelled(row):
        return {"prompt": row["prompt"], "tools": row.get("tools")}
    if is_graded(row):
        return {"messages": row["messages"], "tools": row.get("tools")}
    return row


def is_held_out(row: dict[str, Any], share: float) -> bool:
    return place_of(row) < share
