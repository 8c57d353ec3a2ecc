"""The choices of a person between answers, from a file that was filled or from objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RatingsInput = str | Path | Mapping[str, str] | Sequence[Mapping[str, Any]]


def choices(given: RatingsInput) -> list[dict[str, str]]:
    """Objects with id and choice; those without a choice are left out. Raises ValueError where none is left."""
    if isinstance(given, Path):
        given = given.read_text(encoding="utf-8-sig")
    rows: Iterable[Mapping[str, Any]]
    if isinstance(given, str):
        rows = _rows(given)
    elif isinstance(given, Mapping):
        rows = [{"id": id, "choice": choice} for id, choice in given.items()]
    else:
        rows = given
    found = [
        {"id": str(row["id"]).strip(), "choice": choice}
        for row in rows
        if (choice := str(row.get("choice") or "").strip().lower())
    ]
    if not found:
        raise ValueError("there is no choice: fill `choice` with a, b or tie")
    return found


def _rows(text: str) -> list[Mapping[str, Any]]:
    """The rows of JSONL or of CSV. Raises ValueError."""
    if text.lstrip().startswith("{"):
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)  # spreadsheets of some countries write semicolons
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    if not all("id" in row for row in rows):
        raise ValueError("the file has no column `id`: it is not one that `pairs` has made")
    return rows
