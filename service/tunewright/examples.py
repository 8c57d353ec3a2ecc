"""Examples of the wire models, which the OpenAPI document shows: in `examples.json` of the package in which a model is,
by the name of its class. Imports pydantic alone."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel


def add_examples(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add to a model's JSON schema its examples, where it has some. For pydantic's `json_schema_extra`."""
    examples = _examples(model.__module__.rpartition(".")[0]).get(model.__name__)
    if examples is not None:
        schema["examples"] = examples


@cache
def _examples(package: str) -> dict[str, list[Any]]:
    file = files(package) / "examples.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
