"""The logging configuration of every process of the service: lines on stderr, of bounded length; and the lines that
record who did what."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_audit_log = logging.getLogger("tunewright.audit")

_LONGEST_LINE = 2000
_LONGEST_RECORD = 20_000
"""Characters of a message with its stack. The middle of a longer one is left out: its beginning says what happened, and
its end which error."""


def configure_logging(level: str) -> None:
    """Log the service's own messages from `level` on, and other libraries' warnings."""
    limit_records()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("tunewright").setLevel(level.upper())
    _audit_log.setLevel(logging.INFO)  # whatever the level is


def audit(event: str, **fields: str | int | None) -> None:
    """Record an event as one line of JSON, in the log `tunewright.audit`."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    _audit_log.info("%s", json.dumps({"time": time, "event": event, **fields}))


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
