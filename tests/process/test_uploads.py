"""Uploads over real sockets to a real service: what is cut off or refused leaves nothing, and memory stays flat."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

import pytest
from tests.engine.conftest import Service

from uploads import BLOCK, HEAD, MIB, memory, peak_memory, spooled, started, traces, until, upload


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = started(tmp_path_factory.mktemp("uploads") / "data", "--max-upload", "80MiB")
    upload(running, 2)  # what the first upload loads does not depend on its size
    yield running
    running.stop()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_leaves_memory_as_it_is(service: Service, chunked: bool) -> None:
    before = memory(service)
    answer = upload(service, 64, chunked=chunked)
    assert answer.status == 200, answer.body
    assert answer.body["bytes"] == 64 * MIB
    assert answer.body["sha256"] == hashlib.sha256(BLOCK * 64).hexdigest()
    grown = peak_memory(service) - before
    assert grown < 16 * MIB, f"{grown / MIB:.0f} MiB for 64 MiB"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("reads_early", [False, True])
def test_an_upload_over_the_limit_is_refused_while_it_comes(
    service: Service, chunked: bool, reads_early: bool
) -> None:
    before, there = memory(service), traces(service)
    answer = upload(service, 200, chunked=chunked, reads_early=reads_early)
    assert (answer.status, answer.body["error"]["code"]) == (413, "too_large")
    assert "bytes, the limit" in answer.body["error"]["message"]
    if reads_early:
        assert answer.sent < 120 * MIB, "it is refused before all is sent"
    assert traces(service) == there
    assert peak_memory(service) - before < 16 * MIB


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_that_is_cut_off_leaves_nothing(service: Service, chunked: bool) -> None:
    there = traces(service)
    with service.client() as client:
        listed = [file.id for file in client.files.list()]
        host, port = service.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=60)
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 60000000"
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            + length + b"\r\n\r\n"
        )  # fmt: skip
        for part in (HEAD, *[BLOCK] * 40):
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        until(lambda: spooled(service) > 30 * MIB)
        connection.close()
        until(lambda: spooled(service) == 0)
        assert [file.id for file in client.files.list()] == listed
    assert traces(service) == there
