"""What request and response bodies have in common, and the text that can be stored. Beside pydantic
they import the examples alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler, field_validator
from pydantic_core import core_schema

from tunewright.examples import add_examples


def _make_strict(schema: Any) -> None:
    """Numbers and booleans must be such in the JSON: pydantic would take "1", 1 and true for each other."""
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            if part.get("type") in ("int", "float", "bool"):
                part.setdefault("strict", True)
            rest += part.values()
        elif isinstance(part, list | tuple):
            rest += part


class Wire(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=add_examples)


class Exact(BaseModel):
    """What is a part of a request body: a text is no number, and a number no boolean. Models in its
    fields have to be Exact themselves."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schema = handler(source)
        _make_strict(schema)
        return schema


class Body(Exact):
    """A request body. Unknown fields are refused, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra=add_examples)

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: object) -> object:
        for text in _texts(value):
            storable(text)
        return value


def storable(text: str) -> str:
    """Raises ValueError for JSON's two kinds of text that no file or database takes."""
    if "\0" in text:
        raise ValueError("the character U+0000 cannot be stored; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    return text


def _texts(value: object) -> Iterator[str]:
    """The strings in a field: the value itself, or those in a list or an object."""
    items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, str):
            yield item


Text = Annotated[str, AfterValidator(storable)]
