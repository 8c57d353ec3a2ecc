"""Decoding of server-sent events from pieces of bytes of any length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from .._errors import InvalidResponseError, error_in_stream

M = TypeVar("M", bound=BaseModel)

# The data of the event that ends a complete stream.
DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. `data` has its lines joined by newlines; `id` is the last id that the stream sent."""

    data: str
    id: str | None = None
    event: str = "message"


class SSEDecoder:
    """Decodes one stream as in section 9.2.6 of the HTML standard.

    Lines end with CRLF, LF or CR, a line that starts with a colon is a comment, and an event without data or without
    its empty last line is dropped. `retry` fields are ignored, since the client has its own rules for reconnecting.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        # So many bytes of the rest hold no end of line, so that a long line is searched only once.
        self._scanned = 0
        self._first_line = True
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that end in this piece."""
        self._rest += chunk
        events: list[ServerSentEvent] = []
        while (line := self._next_line()) is not None:
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def _next_line(self) -> str | None:
        rest = self._rest
        newline = rest.find(b"\n", self._scanned)
        carriage = rest.find(b"\r", self._scanned, newline if newline >= 0 else len(rest))
        end = carriage if carriage >= 0 else newline
        if end < 0:
            self._scanned = len(rest)
            return None
        after = end + 1
        if rest[end] == ord("\r"):
            if after == len(rest) and end > 0:
                # The CR may be the first half of a CRLF whose LF is in the next piece. The CR of an empty line is
                # used at once, because it ends an event, which must not wait; the LF is then another empty line.
                self._scanned = end
                return None
            if rest.startswith(b"\n", after):
                after += 1
        line = bytes(rest[:end])
        del rest[:after]
        self._scanned = 0
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", "replace")

    def _take(self, line: str) -> ServerSentEvent | None:
        if not line:
            data, event = self._data, self._event
            self._data, self._event = [], ""
            return ServerSentEvent("\n".join(data), self._id, event or "message") if data else None
        # The name of a comment is empty.
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None


def parse_event(data: str, model: type[M], request_id: str | None = None) -> M:
    """The data of an event as a `model`. Raises the typed error of data with `error`, and InvalidResponseError for
    data that is no JSON or not of the model."""
    try:
        body: Any = json.loads(data)
        if isinstance(body, dict) and (found := cast("dict[str, Any]", body).get("error")):
            raise error_in_stream(found, request_id)
        return model.model_validate(body)
    except (ValidationError, ValueError) as error:
        raise InvalidResponseError(f"an event of the stream cannot be read: {data[:200]!r}") from error
