"""What can be wrong with a data file, and how messages name it. Imports nothing of the service."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

LONGEST_ROW = 32 * 2**20
"""Bytes (of text, characters) of a row; longer ones are refused, so that no reader needs more memory."""

MOST_LEVELS = 128
"""Of objects and lists in each other, as in the body of a request."""

LONG_NUMBER = "has a number of more than 4300 digits, which is too long"
"""Python's bound, whose own message names a function of Python's."""


class InvalidData(Exception):
    """The file cannot be used; the message names the lines."""


class RowFault(Exception):
    """A fault in a row; the message says which."""


class NotJson(RowFault):
    """The row is not JSON."""


@dataclass(frozen=True)
class Fault:
    """A fault and its place: `place` counts from 1, in `unit` (`line` or `row`)."""

    place: int
    message: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.place}: {self.message}"


def json_type(value: object) -> str:
    """What messages call the type of a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def listed(names: Iterable[object]) -> str:
    """Up to five names, in quotes."""
    return ", ".join(json.dumps(str(name)[:40]) for name in sorted(names, key=str)[:5]) or "nothing"


def refuse_constant(name: str) -> object:
    raise RowFault(f"{name} is not valid JSON")


_decode = json.JSONDecoder(parse_constant=refuse_constant).decode


def parse_json(text: str) -> object:
    """A row's JSON. Raises NotJson, and RowFault for what other parsers refuse."""
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(
            f"not valid JSON ({error.msg} at column {error.colno}); the file must be JSONL"
        ) from None
    except RecursionError:
        raise RowFault("nested too deeply") from None
    except ValueError:
        raise RowFault(LONG_NUMBER) from None


def check_levels(value: object) -> None:
    """Raise RowFault for a value of more levels than a request may have: what renders it is recursive."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_LEVELS):
        level = [
            child
            for part in level
            for child in (part.values() if type(part) is dict else part)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise RowFault(f"nested too deeply: objects and lists may have up to {MOST_LEVELS} levels")


def check_encodable(row: object) -> None:
    """Raise RowFault for half of a surrogate pair, which is valid JSON but cannot be tokenized."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowFault("half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    except RecursionError:
        raise RowFault("nested too deeply") from None
