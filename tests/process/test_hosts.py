"""Raw requests to a running service without a key: names that are missing, repeated or foreign, and pages' requests."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from tests.engine.conftest import Service, wait_until

from uploads import started

MODELS = b"GET /v1/models HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = started(tmp_path_factory.mktemp("hosts") / "data")
    yield running
    running.stop()


def ask(service: Service, request: bytes) -> tuple[int, str | None]:
    """The status, and the error's code."""
    with socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), timeout=30) as connection:
        connection.sendall(request + b"Connection: close\r\n\r\n")
        answer = b""
        while block := connection.recv(65536):
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body).get("error") if body.startswith(b"{") else None
    return int(head.split()[1]), error["code"] if error else None


@pytest.mark.parametrize(
    ("request_head", "answer"),
    [
        (MODELS + b"Host: localhost\r\n", (200, None)),
        (MODELS + b"Host: 127.0.0.1:1\r\n", (200, None)),
        (MODELS + b"hOST:[::1]:8000\r\n", (200, None)),
        (MODELS, (403, "host_not_allowed")),
        (b"GET /v1/models HTTP/1.0\r\n", (403, "host_not_allowed")),
        (MODELS + b"Host:\r\n", (403, "host_not_allowed")),
        (MODELS + b"Host: evil.example\r\n", (403, "host_not_allowed")),
        (MODELS + b"Host: localhost\r\nHost: evil.example\r\n", (403, "host_not_allowed")),
        (MODELS + b"Host: evil.example\r\nX-Forwarded-Host: localhost\r\n", (403, "host_not_allowed")),
        (MODELS + b"Host: localhost\r\nOrigin: null\r\n", (403, "origin_not_allowed")),
        (MODELS + b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", (403, "origin_not_allowed")),
        (b"GET /health HTTP/1.0\r\n", (200, None)),
    ],
)
def test_a_raw_request_is_answered_by_its_names(
    service: Service, request_head: bytes, answer: tuple[int, str | None]
) -> None:
    assert ask(service, request_head) == answer


def test_a_form_that_a_page_posts_changes_nothing_and_is_recorded(service: Service) -> None:
    body = b'{"model": "missing", "training_file": "file-1"}'
    head = (
        b"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        b"Content-Length: %d\r\n" % len(body)
    )
    with socket.create_connection(("127.0.0.1", urlsplit(service.url).port or 0), timeout=30) as connection:
        connection.sendall(head + b"Connection: close\r\nx-request-id: form-1\r\n\r\n" + body)
        answer = connection.recv(65536)
    assert answer.split()[1] == b"400"
    line = wait_until(
        lambda: next((line for line in service.log.read_text().splitlines() if "form-1" in line), None), 10
    )
    record = json.loads(line.partition("tunewright.audit: ")[2])
    assert (record["event"], record["peer"], record["status"]) == ("change", "127.0.0.1", 400)
    assert (record["method"], record["route"]) == ("POST", "/v1/fine_tuning/jobs")
