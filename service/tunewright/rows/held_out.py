"""Which rows of a file are held out for validation: a share of them, chosen by the content of each row alone.

The same content gives the same place, so a row is never in both parts, nor is another row of the same content; the
place does not depend on the order of the rows, nor on others that are added.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tunewright.rows.canonical import text_hash

DEFAULT_SHARE = 0.05
_BLANK = re.compile(r"\\[nrt]")
"""White space in a text of JSON."""


def place_of(row: dict[str, Any]) -> float:
    """A number from 0 up to 1, spread evenly over rows. The case of letters and the amount of white space do not
    count."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False).casefold()
    words = _BLANK.sub(" ", text).split()
    return (text_hash(" ".join(words)) >> 11) / 2**53


def is_held_out(row: dict[str, Any], share: float) -> bool:
    return place_of(row) < share
