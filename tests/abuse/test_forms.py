"""Forms that no client sends: of very many or very large parts, or that are slow to take apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest

from tests.abuse.sending import FORM, field, generate, head, post, send, working_at_most
from tests.engine.conftest import Service
from uploads import MIB

FILES, ADAPTERS = "/v1/files", "/v1/adapters/upload"
LONG = "b" * 70
"""A boundary may have 70 characters."""


def chunks(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        yield b"%x\r\n%s\r\n" % (len(block), block)
    yield b"0\r\n\r\n"


def stream(service: Service, path: str, blocks: Iterable[bytes], content_type: str = FORM) -> tuple[int, str]:
    return send(
        service, head("POST", path, Content_Type=content_type, Transfer_Encoding="chunked"), chunks(blocks)
    )


@pytest.mark.parametrize("path", [FILES, ADAPTERS])
@pytest.mark.parametrize(
    "parts",
    [
        lambda: (field(f"f{n}", b"x" * (MIB - 100)) for n in range(400)),
        lambda: (field("file", b"x" * (MIB - 100), f"{n}.jsonl") for n in range(400)),
        lambda: (field("purpose", b"") * 1000 for _ in range(100)),
        lambda: itertools.repeat(b"--x\r\n" + b"A: b\r\n" * 8000, 100),
        lambda: itertools.repeat(b'--x\r\nContent-Disposition: form-data; name="' + b"a" * MIB, 40),
    ],
    ids=["large fields", "large files", "many fields", "many headers", "a large header"],
)  # fmt: skip
def test_forms_of_many_parts_are_refused_and_not_kept(service: Service, path: str, parts: object) -> None:
    status, text = stream(service, path, parts())  # type: ignore[operator]
    assert status in (0, 400), text
    assert len(text) < 1000


@pytest.mark.parametrize(
    "fields",
    [b"a=b&" * (MIB // 4), b"a" * MIB, b"%41" * (MIB // 3), b"&" * MIB],
    ids=["many", "a name", "escapes", "none"],
)
@pytest.mark.parametrize("path", [FILES, ADAPTERS])
def test_urlencoded_forms_are_refused_and_not_kept(service: Service, path: str, fields: bytes) -> None:
    status, text = stream(service, path, [fields] * 40, "application/x-www-form-urlencoded")
    assert status in (0, 400), text
    assert len(text) < 1000


@pytest.mark.parametrize(
    "piece", ["\r", "\n", "\r\n", "\r\n--", f"\r\n--{LONG[:-1]}", f"\r\n--{LONG}", "-", "\0"], ids=ascii
)
def test_files_that_look_like_boundaries_are_read_without_a_stall(service: Service, piece: str) -> None:
    block = (piece * (MIB // len(piece))).encode()
    opening = field("purpose", b"fine-tune") + field("file", b"", "rows.jsonl").removesuffix(b"\r\n")
    opening = opening.replace(b"--x\r\n", f"--{LONG}\r\n".encode())
    closing = f"\r\n--{LONG}--\r\n".encode()
    body = opening + block * 8 + closing
    with working_at_most(service, 5):
        status, text = post(service, FILES, body, f"multipart/form-data; boundary={LONG}")
    assert status in (200, 400), text


@pytest.mark.parametrize(
    "boundary", ["", "y" * 60_000, '"', "\u00e4", "x; boundary=z", "=?utf-8?q?x?="], ids=ascii
)
def test_boundaries_that_are_none(service: Service, boundary: str) -> None:
    status, _ = post(service, FILES, field("purpose", b"x"), f"multipart/form-data; boundary={boundary}")
    assert status in (0, 400)
    assert generate(service) < 2
