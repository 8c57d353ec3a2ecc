"""Server-sent events from pieces of bytes, however they are cut."""

from __future__ import annotations

from dataclasses import dataclass

DONE = "[DONE]"  # the data of the event that ends a complete stream


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: `data` has its lines joined by newlines; `id` is the last one the stream named."""

    data: str
    id: str | None = None
    event: str = "message"


class SSEDecoder:
    """Decodes one stream, as the HTML standard's section 9.2.6 says: lines end with CRLF, LF or CR, a line
    that starts with a colon is a comment, an event without data is none, one that the stream's end cuts off
    is dropped. `retry` fields are left alone: reconnecting has a policy of its own.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._scanned = 0  # of the rest: known to hold no end of line, so a long line is searched once
        self._first_line = True
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that this piece completes."""
        self._rest += chunk
        events = []
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
                # The CR may be half of a CRLF whose LF is still to come. (A blank line's is taken at once: it
                # ends an event, which must not wait for the next one; the LF is then an empty line of its
                # own.)
                self._scanned = end
                return None
            if rest[after : after + 1] == b"\n":
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
        name, _, value = line.partition(":")  # a comment has an empty name
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None
