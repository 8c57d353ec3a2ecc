"""Answers that are JSON: whether they parse, fit a schema, and have the expected fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import validators
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import NoSuchResource

NOT_JSON = object()
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_INDEX = re.compile(r"\[\d+\]")
_DEEPEST = 50


class InvalidSchema(Exception):
    """No JSON schema; the message says why."""


def parsed(text: str) -> Any:
    """The JSON value of a text, which may be fenced as in Markdown; `NOT_JSON` where it is none."""
    fenced = _FENCED.fullmatch(text)
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def validator_of(schema: dict[str, Any]) -> Validator:
    """The validator of a schema, of the draft that its `$schema` names, else of 2020-12. It fetches nothing: a
    reference to another document is not found. Raises InvalidSchema."""
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the schema"
        given, wanted = (json.dumps(part)[:80] for part in (error.instance, error.validator_value))
        raise InvalidSchema(f"{where}: {given} is not what {error.validator} {wanted} allows") from error
    except RecursionError as error:
        raise InvalidSchema("it is nested too deeply") from error
    return kind(schema, registry=Registry(retrieve=_nothing))


def fault_of(schema: dict[str, Any]) -> str | None:
    """Why it is no JSON schema; None where it is one. A large one takes seconds."""
    try:
        validator_of(schema)
    except InvalidSchema as error:
        return str(error)
    return None


def _nothing(uri: str) -> Any:
    raise NoSuchResource(ref=uri)


def fits(value: Any, validator: Validator) -> bool:
    """Raises InvalidSchema where a reference of the schema leads nowhere."""
    try:
        return value is not NOT_JSON and validator.is_valid(value)
    except RecursionError:
        return False
    except Exception as error:  # of `referencing`, which wraps them in private classes
        raise InvalidSchema(f"{type(error).__name__}: {error}"[:200]) from error


def fields(value: Any) -> dict[str, Any]:
    """The leaves of a JSON value by their paths: `a.b[0]`. An empty list or object is a leaf too."""
    return dict(_leaves(value, "", 0))


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth < _DEEPEST and isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif depth < _DEEPEST and isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]", depth + 1)
    else:
        yield path, value


def name_of(path: str) -> str:
    """The name of a field for all items of the lists that it is in: `a[3].b` is `a[].b`."""
    return _INDEX.sub("[]", path)


def same(first: Any, second: Any) -> bool:
    """Equality of JSON: true is not 1, and texts are compared without outer white space."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, str) and isinstance(second, str):
        return first.strip() == second.strip()
    return bool(first == second)


def right_fields(answer: Any, expected: Any) -> dict[str, bool]:
    """Whether the answer has each field of the expected value, with its value."""
    said = {} if answer is NOT_JSON else fields(answer)
    return {path: path in said and same(said[path], value) for path, value in fields(expected).items()}
