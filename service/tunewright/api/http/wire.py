"""Bodies and parameters that all parts of the API share."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Header, Query
from pydantic import Field

from tunewright.wire import Text, Wire

Item = TypeVar("Item")

After = Annotated[Text | None, Query(description="The last id of the page before.")]
Force = Annotated[
    bool,
    Query(
        description="Also if aliases have it: remove it from them; an alias that has no other target is deleted."
    ),
]
User = Annotated[
    Text | None,
    Header(
        alias="X-Tunewright-User",
        max_length=128,
        description="Who makes the change, for the history. Not checked.",
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
