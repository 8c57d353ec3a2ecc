"""JSON bodies that are too large, too deep, or not what they say."""

from __future__ import annotations

import gzip
import json
import threading

import pytest

from tests.abuse.sending import connect, generate, head, post, send, working_at_most
from tests.engine.conftest import Service
from uploads import MIB

CHAT, JOBS = "/v1/chat/completions", "/v1/fine_tuning/jobs"
GENERATIONS = [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/tokenize"]
BASE = b'"model": "tiny"'


MOST_VALUES, MOST_NAMES, MOST_DECIMALS, MOST_VALUES_OF_OTHERS = 2**20, 2**18, 2**16, 2**17


def filled(before: bytes, piece: bytes, after: bytes, size: int) -> bytes:
    return before + piece * ((size - len(before) - len(after)) // len(piece)) + after


GIANT = {
    "a string": (b"", b"x", b'"', b'"'),
    "escapes": (b"", b"\\u0041", b'"', b'"'),
    "empty objects": (b"{}", b",{}", b"[", b"]"),
    "numbers": (b"1", b",1", b"[", b"]"),
    "decimals": (b"1.5", b",1.5", b"[", b"]"),
    "long numbers": (b"1", b",1234567890123456789", b"[", b"]"),
    "digits": (b"1", b"1", b"", b""),
    "zeros in a string": (b"", b"0", b'"', b'"'),
    "nested lists": (b"", b"[", b"", b""),
    "keys": (b'"a":1', b',"a":1', b"{", b"}"),
    "half pairs": (b"", b"\\ud800", b'"', b'"'),
    "strings": (b'"a"', b',"a"', b"[", b"]"),
    "spaces": (b"1", b" ", b"", b""),
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, JOBS])
@pytest.mark.parametrize("name", GIANT)
def test_giant_bodies_are_answered_soon_and_stop_nobody(service: Service, path: str, name: str) -> None:
    first, piece, opening, closing = GIANT[name]
    body = filled(
        b"{" + BASE + b', "messages": ' + opening + first, piece, closing + b', "max_tokens": 1}', 31 * MIB
    )
    with working_at_most(service, 5):
        status, text = post(service, path, body)
    assert status in (200, 400, 413), text
    assert len(text) < 3000


@pytest.mark.parametrize(
    ("path", "name", "number"),
    [
        *((CHAT, name, MOST_VALUES) for name in ("numbers", "long numbers", "strings")),
        *((CHAT, name, MOST_NAMES) for name in ("empty objects", "keys")),
        (CHAT, "decimals", MOST_DECIMALS),
        *(
            (JOBS, name, MOST_VALUES_OF_OTHERS)
            for name in ("empty objects", "decimals", "long numbers", "keys")
        ),
    ],
)
def test_bodies_just_within_the_limits_stop_nobody(
    service: Service, path: str, name: str, number: int
) -> None:
    first, piece, opening, closing = GIANT[name]
    end = closing + b', "max_tokens": 1}'
    body = b"{" + BASE + b', "messages": ' + opening + first + piece * (number - 10) + end
    status, text = post(service, path, body)
    assert status in (200, 400), text
    # Strings of so many values are more text than the model's context, which is another limit with the same words.
    assert "more than" not in text or (name == "strings" and "context_length_exceeded" in text)


@pytest.mark.parametrize("most_memory", [600 * MIB])
def test_many_giant_bodies_that_do_not_end_take_bounded_memory(service: Service) -> None:
    block = b"[" + b"1," * (MIB // 2)
    open_ = [connect(service) for _ in range(64)]
    try:

        def fill(connection: object) -> None:
            try:
                connection.sendall(
                    head("POST", CHAT, Content_Type="application/json", Content_Length=str(32 * MIB))
                )
                for _ in range(31):
                    connection.sendall(block)
            except OSError:
                pass  # refused

        threads = [threading.Thread(target=fill, args=(connection,)) for connection in open_]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert generate(service) < 2
    finally:
        for connection in open_:
            connection.close()


@pytest.mark.parametrize("path", [CHAT, JOBS])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_packed_bodies_are_refused_unread(service: Service, path: str, encoding: str) -> None:
    bomb = gzip.compress(b" " * (20 * MIB))
    status, text = send(
        service,
        head(
            "POST",
            path,
            Content_Type="application/json",
            Content_Encoding=encoding,
            Content_Length=str(len(bomb)),
        ),
        bomb,
    )
    assert (status, json.loads(text)["error"]["code"]) == (400, "unsupported")
