"""Functions of the caller that are called during a wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

AsyncCallback = Callable[[T], Awaitable[None] | None]


async def notify(callback: AsyncCallback[T], value: T) -> None:
    """Call the caller's function with a value."""
    # async-only begin
    result = callback(value)
    if isinstance(result, Awaitable):
        await result
    # async-only end
    # sync-only: callback(value)
