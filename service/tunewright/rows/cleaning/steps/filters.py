"""Rows are removed for their length, their language, or what they repeat."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, model_validator

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, kept, removed
from tunewright.rows.cleaning.texts import answers, prose

_LOOKED_AT = 2_000
"""Characters of a row by which its language is told."""
_WORDS = 5
_MOST = 1_000_000_000
_FEW_LINES, _FEW_WORDS = 4, 50


class LengthOptions(Options):
    """In characters, of all that is said in a row, or of the assistant's longest text."""

    type: Literal["length"] = "length"
    min_characters: int = Field(0, ge=0, le=_MOST)
    max_characters: int | None = Field(None, ge=1, le=_MOST)
    min_answer: int = Field(0, ge=0, le=_MOST)

    @model_validator(mode="after")
    def _check(self) -> LengthOptions:
        if not self.min_characters and self.max_characters is None and not self.min_answer:
            raise ValueError("length needs min_characters, max_characters or min_answer")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError("max_characters is below min_characters, so that no row is left")
        return self


class Length(Step):
    name = "length"

    def __init__(self, options: LengthOptions) -> None:
        self._options = options

    def apply(self, record: Record) -> Outcome:
        length = len(prose(record.row))
        if length < self._options.min_characters:
            return removed("too short")
        if self._options.max_characters is not None and length > self._options.max_characters:
            return removed("too long")
        if max(map(len, answers(record.row)), default=0) < self._options.min_answer:
            return removed("short answer")
        return kept(record)


class LanguageOptions(Options):
    """The languages that are kept, as ISO 639-1 codes. Texts that are too short to tell are kept."""

    type: Literal["language"] = "language"
    keep: list[str] = Field(min_length=1, max_length=200)
    min_characters: int = Field(40, ge=1, le=_MOST)
    """Shorter rows are kept."""

    @model_validator(mode="after")
    def _check(self) -> LanguageOptions:
        if wrong := [code for code in self.keep if not re.fullmatch(r"[a-z]{2,3}", code)]:
            raise ValueError(f"keep has {wrong[0][:20]!r}, which is no ISO 639-1 code such as en or de")
        return self


class Language(Step):
    name = "language"

    def __init__(self, options: LanguageOptions) -> None:
        self._options = options

    def apply(self, record: Record) -> Outcome:
        text = prose(record.row, with_system=False)[:_LOOKED_AT]
        if len(text.strip()) < self._options.min_characters:
            return kept(record)
        code, _ = _identifier().classify(text)
        return kept(record) if code in self._options.keep else removed(f"language {code}")

    def check(self) -> None:
        """Raises ValueError for a language that is not known."""
        if unknown := sorted(set(self._options.keep) - set(_identifier().labels)):
            raise ValueError(f"the language step does not know {', '.join(unknown)}; use ISO 639-1 codes")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # its model takes some seconds to load

    return LanguageIdentifier.from_model_file(MODEL_FILE)


class RepetitionOptions(Options):
    """How much of a text may be repeated in it (after the rules for Gopher, Rae et al. 2021, table A1)."""

    type: Literal["repetition"] = "repetition"
    max_lines: float = Field(0.3, ge=0, le=1)
    """The share of its lines that stand in it before."""
    max_words: float = Field(0.3, ge=0, le=1)
    """The share of its runs of five words that stand in it before."""


class Repetition(Step):
    name = "repetition"

    def __init__(self, options: RepetitionOptions) -> None:
        self._options = options

    def apply(self, record: Record) -> Outcome:
        for text in answers(record.row):
            if found := repeats(text, self._options):
                return removed(found)
        return kept(record)


def repeats(text: str, options: RepetitionOptions) -> str | None:
    """What the text repeats too often. Short texts are not judged."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= _FEW_LINES and _repeated(lines) > options.max_lines:
        return "repeated lines"
    words = text.split()
    if len(words) < _FEW_WORDS:
        return None
    runs = [" ".join(words[start : start + _WORDS]) for start in range(len(words) - _WORDS + 1)]
    return "repeated words" if _repeated(runs) > options.max_words else None


def _repeated(parts: list[str]) -> float:
    return 1 - len(Counter(parts)) / len(parts)
