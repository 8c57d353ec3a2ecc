"""The checks of `json_schema` graders: the schema, and answers by it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

_REFERENCES = ("$ref", "$dynamicRef")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises ValueError for what is no schema, or refers to what is not in it."""
    for reference in _references(schema):
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(f"the reference {str(reference)[:80]!r} leads out of the schema")
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        given, wanted = (json.dumps(part)[:80] for part in (error.instance, error.validator_value))
        raise ValueError(
            f"at {error.json_path}: {given} is not what {error.validator} {wanted} allows"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def allows(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether the schema allows the value. Raises ValueError where a reference leads to nothing, or in circles."""
    validator = Draft202012Validator(dict(schema), registry=Registry())  # which fetches nothing
    try:
        return bool(validator.is_valid(value))
    except Unresolvable as error:
        raise ValueError(f"a reference of the schema leads to nothing: {error}"[:200]) from None
    except RecursionError:
        raise ValueError("the schema, or the answer, is nested too deeply") from None


def _references(node: Any) -> Iterator[Any]:
    rest = [node]
    while rest:
        one = rest.pop()
        if isinstance(one, Mapping):
            yield from (one[key] for key in _REFERENCES if key in one)
            rest += one.values()
        elif isinstance(one, list):
            rest += one
