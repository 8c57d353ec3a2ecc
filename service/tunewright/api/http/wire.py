"""Bodies that every part of the API shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Header, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from tunewright.examples import add_examples

Item = TypeVar("Item")


class Wire(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=add_examples)


class Body(BaseModel):
    """A request body: what it does not know it refuses, so that a typo is not silently ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), json_schema_extra=add_examples)

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: object) -> object:
        for text in _texts(value):
            _storable(text)
        return value


def _storable(text: str) -> str:
    """Raises ValueError for JSON's two kinds of text that no file or database takes."""
    if "\0" in text:
        raise ValueError("the character U+0000 cannot be stored; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) is no text") from None
    return text


def _texts(value: object) -> Iterator[str]:
    """The strings of a field: itself, or what it has in a list or an object."""
    items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, str):
            yield item


Text = Annotated[str, AfterValidator(_storable)]
After = Annotated[Text | None, Query(description="The last id of the page before.")]
Force = Annotated[
    bool,
    Query(
        description="Also where aliases have it: take it out of them; one that has no other target is deleted."
    ),
]
User = Annotated[
    Text | None,
    Header(
        alias="X-Tunewright-User", max_length=128, description="Who does it, for the history. Not checked."
    ),
]


class ErrorDetail(Wire):
    message: str = Field(description="What is wrong, where, and what to do.")
    type: str = Field(description="Kind of error, e.g. `invalid_request_error`.")
    param: str | None = Field(description="The parameter at fault.")
    code: str | None = Field(description="Short code for programs.")


class ErrorResponse(Wire):
    """Every error, whatever its status."""

    error: ErrorDetail


class Page(Wire, Generic[Item]):
    """A page of a list; ask for the next with `after` = `last_id` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class Deleted(Wire):
    id: str
    object: str
    deleted: bool = True


def page_of(items: list[Any], more: bool) -> dict[str, Any]:
    """The fields of a `Page`."""
    return {
        "data": items,
        "has_more": more,
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
    }
