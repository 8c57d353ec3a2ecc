"""Blind rating: its routes, and the choices of a person, from a file that was filled or from objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from ..types import Ratings
from .call import Call
from .endpoints import EVALUATIONS, path_of

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


def rating_pairs(evaluation_id: str, against: str | None, rows: int | None, format: str) -> Call[str]:
    path = f"{EVALUATIONS}{path_of(evaluation_id)}/pairs"
    params = {"against": against, "rows": rows, "format": format}
    return Call(
        "GET", path, lambda response: response.text, params=params, headers={"accept": "*/*"}, slow=True
    )


def rate_pairs(evaluation_id: str, rater: str, ratings: Sequence[Mapping[str, str]]) -> Call[Ratings]:
    body = {"rater": rater, "ratings": list(ratings)}
    return Call("POST", f"{EVALUATIONS}{path_of(evaluation_id)}/ratings", _ratings, json=body, slow=True)


def retrieve_ratings(evaluation_id: str) -> Call[Ratings]:
    return Call("GET", f"{EVALUATIONS}{path_of(evaluation_id)}/ratings", _ratings, slow=True)


def _ratings(response: httpx2.Response) -> Ratings:
    return Ratings.model_validate_json(response.content)
