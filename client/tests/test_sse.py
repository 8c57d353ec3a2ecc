"""Decoding of server-sent events from pieces of any size."""

from __future__ import annotations

import pytest

from tunewright_client._core.sse import ServerSentEvent, SSEDecoder

BODY = (
    "\ufeff: a comment\r\nid: 1\r\ndata: first\r\n\r\n"
    "data: two\ndata:  lines ü\nevent: named\n\n"
    ": keep-alive\n\n"
    "id: 3\rdata: carriage\r\r"
    "retry: 10\nunknown: x\n\n"
    "data\n\n"
    "data: cut off"
).encode()

EVENTS = [
    ServerSentEvent("first", "1"),
    ServerSentEvent("two\n lines ü", "1", "named"),
    ServerSentEvent("carriage", "3"),
    ServerSentEvent("", "3"),
]


def test_a_whole_body_gives_its_events() -> None:
    assert SSEDecoder().feed(BODY) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16])
def test_pieces_of_any_size_give_the_same_events(size: int) -> None:
    decoder = SSEDecoder()
    events = []
    for start in range(0, len(BODY), size):
        events += decoder.feed(BODY[start : start + size])
    assert events == EVENTS


def test_a_cut_at_any_byte_gives_the_same_events() -> None:
    for at in range(len(BODY)):
        decoder = SSEDecoder()
        assert decoder.feed(BODY[:at]) + decoder.feed(BODY[at:]) == EVENTS


def test_an_event_ended_with_crlf_does_not_wait_for_the_next_byte() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: x\r\n\r") == [ServerSentEvent("x")]
    assert decoder.feed(b"\ndata: y\r\n\r\n") == [ServerSentEvent("y")]
