"""Lines of JSON: one object for each record, with the ids of what it is about, and never more than one line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunewright import serve
from tunewright.log_files import LARGEST
from tunewright.logs import audit, configure_logging, logged_with
from tunewright.scheduler.background import Background

pytestmark = pytest.mark.anyio
log = logging.getLogger("tunewright.scheduler")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Takes the lines since the last call."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root, own = logging.getLogger(), logging.getLogger("tunewright")
    before = root.handlers[:], root.level, own.level
    configure_logging("info", "json")

    def take() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in written.getvalue().splitlines()]
        written.seek(0)
        written.truncate()
        return found

    yield take
    root.handlers[:], root.level, own.level = before


def test_a_line_has_the_ids_of_its_request_or_job(lines: Any) -> None:
    with logged_with(request_id="req_1", trace_id="", project_id=None):
        with logged_with(job_id="ftjob-1"):
            log.warning("two\nlines %s", "x")
        log.info("then")
    log.info("outside")
    first, second, third = lines()
    assert (first["message"], first["level"], first["logger"]) == ("two\nlines x", "warning", log.name)
    assert (first["request_id"], first["job_id"]) == ("req_1", "ftjob-1")
    assert first["process"] == os.getpid()
    assert "job_id" not in second
    assert {"trace_id", "project_id"}.isdisjoint(first)
    assert "request_id" not in third


def test_a_stack_and_a_long_message_stay_in_their_line(lines: Any) -> None:
    try:
        raise ValueError("no\nluck")
    except ValueError:
        log.exception("it failed")
    log.error("x" * 100_000)
    first, second = lines()
    assert "ValueError: no\nluck" in first["exception"]
    assert len(second["message"]) < 3000


def test_an_audited_event_is_an_object_of_its_own(lines: Any) -> None:
    with logged_with(request_id="req_1"):
        audit("change", method="POST", status=200)
    (line,) = lines()
    assert (line["event"], line["method"], line["status"], line["request_id"]) == (
        "change",
        "POST",
        200,
        "req_1",
    )
    assert line["logger"] == "tunewright.audit"


async def test_tasks_and_threads_have_the_ids_of_what_began_them(lines: Any) -> None:
    async def one(id: str) -> None:
        with logged_with(request_id=id):
            await asyncio.sleep(0)
            await asyncio.to_thread(log.info, id)

    await asyncio.gather(one("a"), one("b"))
    assert all(line["request_id"] == line["message"] for line in lines())
    background = Background(1, "test")
    with logged_with(job_id="ftjob-1"):
        background.start("x", lambda: log.info("in a thread"))
    background._running["x"].result(60)
    background.stop()
    assert [line["job_id"] for line in lines()] == ["ftjob-1"]


def test_what_is_written_to_the_log_file_is_rotated(tmp_path: Path) -> None:
    """In a process of its own, since its stdout and stderr are replaced."""
    file = tmp_path / "service.log"
    program = (
        "import os, subprocess, sys; from pathlib import Path; from tunewright import serve\n"
        f"keep = serve._log_to(Path({str(file)!r}))\n"
        f"os.write(2, b'x' * 99 + b'\\n'); os.write(2, (b'y' * 99 + b'\\n') * ({LARGEST} // 100)); keep()\n"
        "subprocess.run([sys.executable, '-c', 'import sys; sys.stderr.write(\"a child\\\\n\")'], check=True)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert file.stat().st_mode & 0o077 == 0
    assert file.stat().st_size < 1000
    assert "a child" in file.read_text()
    assert (tmp_path / "service.log.1").stat().st_size > LARGEST // 2


def test_a_log_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing" / "service.log"
    assert serve.main(["--log-file", str(missing), "--data-dir", str(tmp_path / "data")]) == 1
    assert "--log-file" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
