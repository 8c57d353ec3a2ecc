"""The logging configuration of every process of the service: lines on stderr, of bounded length, as text or JSON; and
the lines that record who did what."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

_audit_log = logging.getLogger("tunewright.audit")

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_fields: ContextVar[dict[str, str]] = ContextVar("fields", default={})  # noqa: B039 (it is never changed)
_LONGEST_LINE = 2000
_LONGEST_RECORD = 20_000
"""Characters of a message with its stack. The middle of a longer one is left out: its beginning says what happened, and
its end which error."""


def configure_logging(level: str, form: Literal["text", "json"] = "text") -> None:
    """Log the service's own messages from `level` on, and other libraries' warnings: as text, or as objects of JSON."""
    limit_records()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tunewright").setLevel(level.upper())
    _audit_log.setLevel(logging.INFO)  # whatever the level is


@contextmanager
def logged_with(**fields: str | None) -> Iterator[None]:
    """Within the block, and in the tasks that begin there, lines of JSON have these fields: `request_id`, `job_id`,
    `project_id`, `trace_id`. Those that are None or empty are left out."""
    token = _fields.set(_fields.get() | {name: value for name, value in fields.items() if value})
    try:
        yield
    finally:
        _fields.reset(token)


class JsonFormatter(logging.Formatter):
    """A line with one object: `time`, `level`, `logger`, `process`, `message`, and where there are such, the fields of
    `logged_with`, those of an audited event, and `exception`, the stack."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time, "level": record.levelname.lower(), "logger": record.name, "process": record.process,
        }  # fmt: skip
        audited = getattr(record, "audited", None)
        if audited is not None:
            return json.dumps(line | {"message": audited["event"]} | _fields.get() | audited)
        line |= {"message": shortened(record.getMessage()), **_fields.get()}
        if record.exc_info:
            line["exception"] = shortened(self.formatException(record.exc_info))
        elif record.exc_text:
            line["exception"] = shortened(record.exc_text)
        return json.dumps(line)


def audit(event: str, **fields: str | int | None) -> None:
    """Record an event as one line of JSON, in the log `tunewright.audit`."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = {"time": time, "event": event, **fields}
    _audit_log.info("%s", json.dumps(told), extra={"audited": told})


def limit_records() -> None:
    """Limit what a record of any logger in this process becomes: errors quote the request, which may have megabytes."""
    original = logging.Formatter.format
    if hasattr(original, "limited"):
        return

    def limited(self: logging.Formatter, record: logging.LogRecord) -> str:
        return shortened(original(self, record))

    limited.limited = True  # type: ignore[attr-defined]
    formatter: Any = logging.Formatter
    formatter.format = limited


def shortened(text: str) -> str:
    """The text with its long lines cut, and without its middle where it has too many."""
    if len(text) > _LONGEST_LINE:
        text = "\n".join(_cut(line, _LONGEST_LINE) for line in text.split("\n"))
    return _cut(text, _LONGEST_RECORD)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... {len(text) - longest} characters are left out ... {text[-half:]}"
