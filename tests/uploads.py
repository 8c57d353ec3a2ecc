"""Uploads over raw sockets, as no usual client sends them: of any size, cut off, or ignoring an early answer."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from tests.engine.conftest import Service, start_service
from tunewright.supervisor.process import GroupRecord

MIB = 2**20
BLOCK = bytes(range(256)) * 4096  # 1 MiB
HEAD = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
)
TAIL = b"\r\n--x--\r\n"


@dataclass
class Answer:
    status: int
    body: dict[str, Any]
    sent: int
    """Bytes of the file that were sent before it came."""


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def upload(service: Service, blocks: int, *, chunked: bool = False, reads_early: bool = True) -> Answer:
    """Uploads a file of that many MiB. With `reads_early` it looks for an answer while sending, else afterwards."""
    host, port = service.url.removeprefix("http://").split(":")
    size = len(HEAD) + blocks * len(BLOCK) + len(TAIL)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            + length + b"\r\n\r\n"
        )  # fmt: skip
        sent = 0
        for part in (HEAD, *[BLOCK] * blocks, TAIL, b""):
            if reads_early and select.select([connection], [], [], 0)[0]:
                break
            if chunked:
                part = b"%x\r\n%s\r\n" % (len(part), part)
            connection.sendall(part)
            sent += len(part)
        answer = HTTPResponse(connection)
        answer.begin()
        return Answer(answer.status, json.loads(answer.read()), sent)


def api_process(service: Service) -> Path:
    """Its folder in /proc."""
    record = GroupRecord.read(service.data_dir / "run" / "api.json")
    assert record is not None
    assert record.command is not None
    return Path(f"/proc/{record.command.pid}")


def memory(service: Service) -> int:
    """Bytes that the api's process has resident now; its peak is counted anew from here."""
    (api_process(service) / "clear_refs").write_text("5")
    return peak_memory(service)


def peak_memory(service: Service) -> int:
    """Bytes that the api's process had resident at most (VmHWM)."""
    status = (api_process(service) / "status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def traces(service: Service) -> list[str]:
    return [path.name for folder in ("files", "tmp") for path in (service.data_dir / folder).iterdir()]


def started(data_dir: Path, *arguments: str) -> Service:
    service = start_service(data_dir, "--base", "missing=/nowhere", *arguments)
    with service.client(timeout=60) as client:

        def answers() -> bool:
            try:
                return bool(client.health())
            except Exception:
                return False

        until(answers, 60)
    return service


def spooled(service: Service) -> int:
    """Bytes of the files without a name that the api holds open in `tmp/`."""
    total = 0
    for link in (api_process(service) / "fd").iterdir():
        try:
            if str(link.readlink()).startswith(str(service.data_dir / "tmp")):
                total += link.stat().st_size
        except FileNotFoundError:
            continue  # closed meanwhile
    return total
