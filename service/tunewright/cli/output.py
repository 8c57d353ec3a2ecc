"""The output of commands: tables at a terminal, tab-separated text in a pipe, JSON for programs.

Results go to stdout, everything else (bars, notes, errors) to stderr, so that a pipe has results only. Text from the
server is never interpreted as markup, nor as escape sequences at a terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.atomic import write_atomically
from tunewright_client import Page

M = TypeVar("M", bound=BaseModel)
_STATE_STYLES = {
    "succeeded": "green", "ready": "green", "loaded": "green",
    "failed": "red", "backoff": "red", "draining": "yellow",
    "running": "cyan", "loading": "cyan", "starting": "cyan", "queued": "cyan", "validating_files": "cyan",
}  # fmt: skip


class _Console(Console):
    """A console that leaves a pipe without a reader to the caller, where rich's ends the program with exit code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Output:
    """Prints a command's results as tables, as text or as JSON."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.stdout = _Console(highlight=False, markup=False, emoji=False)
        self.stderr = _Console(stderr=True, highlight=False, markup=False, emoji=False)

    def json(self, value: BaseModel | Mapping[str, Any]) -> None:
        """Print one JSON object on one line."""
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json")
        click.echo(json.dumps(value))

    def page(self, items: Sequence[BaseModel], has_more: bool) -> None:
        """Print a list as one JSON object, in the API's form."""
        self.json(
            {"object": "list", "data": [i.model_dump(mode="json") for i in items], "has_more": has_more}
        )

    def document(self, name: str, text: str, path: Path | None) -> None:
        """Write a text to the file, else to stdout: as it is where that is no terminal. Raises ClickException."""
        if path is None:
            if self.stdout.is_terminal:
                for line in text.splitlines():
                    self.line(line)
            else:
                click.echo(text, nl=False)
            return
        try:
            write_atomically(path, text)
        except OSError as error:
            raise click.ClickException(f"{path} cannot be written: {error.strerror}.") from error
        if self.as_json:
            self.json({"id": name, "path": str(path), "bytes": path.stat().st_size})
        else:
            self.line(str(path))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, lines: bool = False) -> None:
        """Print rows under a header, None as `-`. With `lines`, a rule is drawn between rows of long texts."""
        shown = [[plain("-" if cell is None else str(cell)) for cell in row] for row in rows]
        if not self.stdout.is_terminal:
            for row in [list(columns), *shown]:
                click.echo("\t".join(row))
            return
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=lines, header_style="bold")
        for index, column in enumerate(columns):
            identifies = (
                index == 0 and not lines
            )  # ids are copied into the next command, so they must not wrap
            table.add_column(column, no_wrap=identifies, overflow="fold")
        for row in shown:
            table.add_row(*[Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row])
        self.stdout.print(table)

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Print the fields of one object, one per line, without those that are None."""
        known = [(name, plain(str(value))) for name, value in pairs if value is not None]
        if not self.stdout.is_terminal:
            for name, value in known:
                click.echo(f"{name}\t{value}")
            return
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            text = Text.assemble((name.ljust(width + 2), "bold"), (value, _STATE_STYLES.get(value, "")))
            self.stdout.print(text, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a result of one line."""
        click.echo(plain(text))

    def marked(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Print a text in pieces, with those that are marked in colour; in a pipe, each behind + or -."""
        if not self.stdout.is_terminal:
            for text, is_marked in pieces:
                click.echo(f"{'+' if is_marked else '-'}\t{json.dumps(text, ensure_ascii=False)}")
            return
        shown = [
            (_without_controls(text), "bold green" if is_marked else "dim") for text, is_marked in pieces
        ]
        self.stdout.print(Text.assemble(*shown), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line to stderr, beside the result."""
        click.echo(plain(text), err=True)

    def listing(
        self,
        items: Page[M],
        limit: int,
        columns: Sequence[str],
        row: Callable[[M], Sequence[object]],
        *,
        oldest_first: bool = False,
    ) -> None:
        """Print the first `limit` items, from as many pages as needed, and at a terminal whether there are more.

        `oldest_first` reverses the items, for lists that the API returns newest first.
        """
        found = list(islice(items, limit + 1))
        more = len(found) > limit
        found = found[:limit]
        if oldest_first:
            found.reverse()
        if self.as_json:
            self.page(found, more)
            return
        self.table(columns, map(row, found))
        if more and self.stdout.is_terminal:
            self.note("There are more: --limit shows them.")


def page_size(limit: int, most: int = 1000) -> int:
    """The page size to request for `limit` items and to see whether there are more; the API allows up to `most`."""
    return min(limit + 1, most)


def plain(text: str) -> str:
    """The text on one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def for_terminal(text: str) -> str:
    """Text of several lines; where stdout is a terminal, without control characters."""
    return _without_controls(text) if sys.stdout.isatty() else text


def _without_controls(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def when(seconds: float | None) -> str | None:
    """Unix seconds as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else None


def size(count: int | None) -> str | None:
    """A number of bytes as text, such as 512 B or 1.4 MiB."""
    if count is None:
        return None
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float | None, digits: int = 4) -> str | None:
    """A measured number as text, or None."""
    return None if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as text, such as 42s, 3m12s or 5h07m."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def measured(value: float | None) -> str:
    """A figure with three decimals, a large one with one."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
