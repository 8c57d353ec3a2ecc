"""Groups of commands. What the command line needs at each start: no other module of it is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class Commands(click.Group):
    """A group whose help lists its commands in the order in which they were added.

    Where the reader of the output has ended, such as `head`, it has all that it wants: that is a success, while click
    would exit with 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _reader_may_end():  # --help writes
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_end():
            return super().invoke(ctx)


@contextmanager
def _reader_may_end() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise click.exceptions.Exit(0) from None


def examples(*lines: str) -> str:
    """An epilog with examples, which click shows without rewrapping."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
