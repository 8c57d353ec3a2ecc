"""A check of JSON that strangers send: what can be stored, pickled and sent again."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator

from tunewright.wire import storable

LONGEST_SCHEMA = 64_000
"""Characters."""
_DEEPEST = 64
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The character in JSON; a backslash and "u0000" in a text, as programs and patterns have them, are none."""


def _checked(schema: dict[str, Any]) -> dict[str, Any]:
    check_json(schema, LONGEST_SCHEMA)
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_checked)]
"""A schema in a body. Whether it is one takes time to tell (`schemas.py`)."""


def check_json(value: object, most: int) -> None:
    """Raises ValueError for a value of more than `most` characters as JSON, one that is nested too deeply, or has what
    no file or database takes."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            break
    if level:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(text) > most:
        raise ValueError(f"it has more than {most} characters as JSON")
    if _NUL.search(text):
        raise ValueError("the character U+0000 cannot be stored; leave it out")
    storable(text)
