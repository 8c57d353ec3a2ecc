"""What all tasks have in common: requests to the teacher, by number, and the rows that are made of the answers."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.rows.canonical import Row, text_hash
from tunewright.synthesizer.duplicates import Compared
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.report import Reason

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_REFUSAL = re.compile(
    r"\s*(?:as an ai (?:language )?model\b"
    r"|(?:(?:i[’']?m|i am) (?:very |really )?sorry|sorry|i apologi[sz]e|unfortunately)?,? ?(?:but )?"
    r"i (?:can(?:no|[’'])t|can not|won[’']t|will not|[’']?m (?:un|not )able to|am (?:un|not )able to) "
    r"(?:help|assist|comply|fulfil|provide|answer|engage|do that|discuss|create|write|share|support|continue)\b"
    r"(?![^.!?\n]*\bbut (?!(?:i|if|feel|please|let)\b)))",
    re.IGNORECASE,
)
"""The beginnings of answers in which chat models decline, in English. A sentence that goes on with "but" and something
else than an offer answers after all, as does "I can't help but notice"."""
_SHOWN = 200


class Dropped(Exception):
    """No row can be made by a request; the message says more than the reason."""

    def __init__(self, reason: Reason, text: str | None = None) -> None:
        super().__init__(text or reason)
        self.reason: Reason = reason
        self.text = text


@dataclass(frozen=True)
class SourceRow:
    place: int
    """In the file, from 1."""
    row: Row
    """Canonical."""


@dataclass(frozen=True)
class Kept:
    """What came of one request: an answer, or the reason why there is none."""

    text: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    message: str | None = None
    """What the error says."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value}


class Asker(ABC):
    """A task on the rows of a file. Its requests have numbers from 0; the same number is always the same request."""

    def __init__(self, spec: SynthesisSpec, rows: Sequence[SourceRow]) -> None:
        self.spec = spec
        self.rows = rows

    @property
    @abstractmethod
    def wanted(self) -> int:
        """How many rows are to be made, at most."""

    @property
    def most(self) -> int:
        """How many requests there may be: more than are wanted, where dropped rows are made again."""
        return self.wanted

    @abstractmethod
    def place(self, number: int) -> int:
        """What reports call a request: the row in the source, or a number from 1."""

    @abstractmethod
    def forms(self, number: int) -> Iterator[dict[str, Any]]:
        """The body of a request; behind it those that are sent where the context has no room for the one before.
        Raises Dropped."""

    def path(self, number: int) -> str:
        return CHAT

    @abstractmethod
    def made(self, number: int, kept: Kept) -> Row:
        """The row that an answer makes. Raises Dropped."""

    @abstractmethod
    def compared(self, number: int, row: Row) -> Compared:
        """What of a row another one must have too to be its copy."""

    @abstractmethod
    def source(self, row: Row) -> Compared | None:
        """The same of a row of the source; None where it has nothing to compare."""

    def sampling(self, number: int) -> dict[str, Any]:
        spec = self.spec
        seed = text_hash(f"{spec.seed} {number}") % 2**31
        return {
            "temperature": spec.temperature, "top_p": spec.top_p, "max_tokens": spec.max_tokens, "seed": seed,
        }  # fmt: skip


def answer_text(kept: Kept, *, keep_refusals: bool = False) -> str:
    """The text of a whole answer. Raises Dropped."""
    if kept.error is not None:
        reasons: dict[str, Reason] = {
            "context_length_exceeded": "context_too_long",
            "not_answered": "not_answered",
        }
        raise Dropped(reasons.get(kept.error, "request_refused"), kept.message)
    text = kept.text or ""
    if kept.refusal or kept.finish == "content_filter":
        raise Dropped("refusal", kept.refusal or text[:_SHOWN])
    if kept.finish == "length":
        raise Dropped("cut_off", text[:_SHOWN])
    if not text.strip() and not kept.tool_calls:
        raise Dropped("empty")
    if not keep_refusals and _REFUSAL.match(text):
        raise Dropped("refusal", text[:_SHOWN])
    return text


def answer_object(kept: Kept) -> dict[str, Any]:
    """The JSON object that an answer is. Raises Dropped."""
    text = answer_text(kept, keep_refusals=True)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Dropped("invalid_json", text[:_SHOWN])
    return found


def text_of(found: Any) -> str:
    """A text in an answer of JSON. Raises Dropped."""
    if not isinstance(found, str):
        raise Dropped("invalid_json", f"a text was asked for, not {json.dumps(found)[:_SHOWN]}")
    if not found.strip():
        raise Dropped("empty")
    return found


def answered_in(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """The field of a request by which its answer has to be an object with these properties."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}}


def content_text(content: Any) -> str:
    """What a message says."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else ""
