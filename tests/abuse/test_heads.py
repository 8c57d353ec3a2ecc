"""Heads of requests, and what comes after bodies: endless, countless or malformed."""

from __future__ import annotations

import itertools
import json
import time

import pytest

from tests.abuse.sending import connect, generate, head, send
from tests.engine.conftest import Service
from uploads import MIB

CHAT = "/v1/chat/completions"
CHUNKED = head("POST", CHAT, Content_Type="application/json", Transfer_Encoding="chunked")


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /health HTTP/1.1\r\n", itertools.repeat(b"A: b\r\n" * 1000, 3000)],
        [b"GET /health HTTP/1.1\r\nA: ", itertools.repeat(b"b" * MIB, 400)],
        [b"GET /", itertools.repeat(b"b" * MIB, 400)],
        [itertools.repeat(b"\r\n" * MIB, 100)],
        [itertools.repeat(b"G" * MIB, 100)],
    ],
    ids=["headers", "a header", "a path", "empty lines", "a method"],
)
def test_endless_heads_are_cut_off(service: Service, parts: list[object]) -> None:
    began = time.monotonic()
    status, _ = send(service, *parts)  # type: ignore[arg-type]
    assert status in (0, 400, 414, 431)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "parts",
    [
        [CHUNKED, b"2\r\n{}\r\n0\r\n", itertools.repeat(b"A: b\r\n" * 10_000, 3000)],
        [CHUNKED, b"2\r\n{}\r\n0\r\nA: ", itertools.repeat(b"b" * MIB, 400)],
        [CHUNKED, b"2;a=", itertools.repeat(b"b" * MIB, 400)],
        [CHUNKED, itertools.repeat(b"1\r\n{\r\n" * 10_000, 600)],
    ],
    ids=["trailers", "a trailer", "a chunk's extension", "chunks of a byte"],
)
def test_what_comes_with_bodies_is_bounded(service: Service, parts: list[object]) -> None:
    began = time.monotonic()
    status, _ = send(service, *parts)  # type: ignore[arg-type]
    assert status in (0, 400, 408, 413)
    assert time.monotonic() - began < 20
    assert generate(service) < 2


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 500,
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v1/files HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/files HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\nhello",
        b"POST /v1/files HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
        b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /health HTTP/1.1\r\nA\0b: c\r\n\r\n",
        b"GET /health HTTP/1.1\r\n folded: c\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"GET //health?%zz#x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/files/a/report?model=" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    ],
    ids=range(19),
)  # fmt: skip
def test_what_is_no_request_is_refused(service: Service, raw: bytes) -> None:
    with connect(service, timeout=3) as connection:
        connection.sendall(raw)
        connection.shutdown(1)
        try:
            answer = connection.recv(4096)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.split()[1][:1] in (b"2", b"4"), answer
    if answer.split()[1:2] == [b"400"]:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert b"\r\nx-request-id: req_" in answer
    assert generate(service) < 2


def test_a_thousand_requests_at_once_on_a_connection(service: Service) -> None:
    number = 1000
    with connect(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * number)
        answered = b""
        while answered.count(b"HTTP/1.1 200") < number:
            block = connection.recv(65536)
            assert block
            answered += block


def test_a_thousand_connections_that_say_nothing(service: Service) -> None:
    connections = [connect(service) for _ in range(1000)]
    for connection in connections[::2]:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le")
    try:
        assert generate(service) < 2
    finally:
        for connection in connections:
            connection.close()
