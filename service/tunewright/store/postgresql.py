"""What PostgreSQL needs that SQLite does not. Imports psycopg, which is an extra, so only a service on PostgreSQL may
import this module.

PostgreSQL stores no character U+0000 in a text, and refuses to look into JSON of which a text has one, or a half of a
surrogate pair: one such row would end every query of its column. Both are stored as U+FFFD.
"""

from __future__ import annotations

import json
from typing import Any

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown

_REPLACEMENT = "\ufffd"


class _Text(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", _REPLACEMENT))


def prepare(connection: Connection[Any], _record: object) -> None:
    """Prepare a new connection, as SQLAlchemy's event `connect`."""
    connection.adapters.register_dumper(str, _Text)


def as_json(value: Any) -> str:
    """The text of JSON that PostgreSQL can look into."""
    return storable_json(json.dumps(value))


def storable_json(text: str) -> str:
    """The JSON in `text`, so that PostgreSQL can look into it."""
    if "\\u0000" not in text and "\\ud" not in text.lower():
        return text
    return json.dumps(_storable(json.loads(text)))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return "".join(_REPLACEMENT if one == "\0" or "\ud800" <= one <= "\udfff" else one for one in value)
    if isinstance(value, dict):
        return {_storable(key): _storable(one) for key, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value
