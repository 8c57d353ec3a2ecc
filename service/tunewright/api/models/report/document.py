"""What a report says, before it is HTML or Markdown: sections of pairs, tables, texts and pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pairs:
    """Names with values; None is left out."""

    items: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    text: str


@dataclass(frozen=True)
class Picture:
    """SVG. Only the page has it."""

    svg: str
    about: str


Part = Pairs | Table | Text | Heading | Picture


@dataclass(frozen=True)
class Section:
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Result:
    """A figure for the front matter of a card."""

    data: str
    sha256: str
    metric: str
    value: float


@dataclass(frozen=True)
class Document:
    title: str
    summary: str
    sections: tuple[Section, ...]
    base: str | None = None
    """The name of the base that hubs know, if that is known."""
    library: str = "transformers"
    tags: tuple[str, ...] = ()
    results: tuple[Result, ...] = field(default=())


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def ranged(value: float | None, low: float | None, high: float | None) -> str:
    """A figure with its interval."""
    return f"{number(value)} ({number(low)} to {number(high)})"


def when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
