"""Requests as no client sends them, byte by byte."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse

import psutil
import requests

from tests.engine.conftest import Service
from tests.kills import find
from tests.without_vllm import BASE

FORM = "multipart/form-data; boundary=x"


def connect(service: Service, timeout: float = 60) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=timeout)


def head(method: str, path: str, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def send(service: Service, *parts: bytes | Iterable[bytes]) -> tuple[int, str]:
    """Send the parts, as far as the service reads them. Returns the answer's status and text; 0 where there is none."""
    with connect(service) as connection:
        with suppress(ConnectionError):
            for part in parts:
                for block in [part] if isinstance(part, bytes) else part:
                    connection.sendall(block)
        answer = HTTPResponse(connection)
        try:
            answer.begin()
            return answer.status, answer.read().decode()
        except (ConnectionError, HTTPException):
            return 0, ""


def post(service: Service, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
    return send(service, head("POST", path, Content_Type=content_type, Content_Length=str(len(body))), body)


def field(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


@contextmanager
def working_at_most(service: Service, seconds: float) -> Iterator[None]:
    """Assert that the api and the processes that it has started work for at most so much processor time meanwhile: how
    long that takes depends on what else the machine does, and is bounded by the timeout of the connection."""
    before = _worked(service)
    yield
    worked = _worked(service) - before
    assert worked < seconds, f"{worked:.1f} s of processor time"


def _worked(service: Service) -> float:
    [pid] = find(service, "api")
    api = psutil.Process(pid)
    total = 0.0
    for process in (api, *api.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended in between, and its parent has its time
            used = process.cpu_times()
            total += used.user + used.system + used.children_user + used.children_system
    return total


def generate(service: Service) -> float:
    """The seconds that a generation takes."""
    body = {"model": BASE, "messages": [{"role": "user", "content": "Hi"}]}
    began = time.monotonic()
    answer = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - began
