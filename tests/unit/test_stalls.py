"""What blocks the event loop is logged, with its stack."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
import threading
import time

import pytest
import requests
from fastapi import FastAPI

from tunewright.api.http import stalls
from tunewright.api.http.process import web_server
from tunewright.api.http.stalls import StallWatch
from tunewright.config import ServerOptions

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.flaky(reruns=2),
]  # a busy machine may stop the thread that watches


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "tunewright.api")


async def watched(seconds: float, block: object) -> None:
    watch = StallWatch()
    await asyncio.sleep(0.1)
    block()  # type: ignore[operator]
    await asyncio.sleep(seconds)
    watch.stop()


def sleeps_on_the_loop() -> None:
    time.sleep(0.6)


async def test_a_block_is_logged_with_its_stack_and_its_length(caplog: pytest.LogCaptureFixture) -> None:
    await watched(0.2, sleeps_on_the_loop)
    while_blocked, after = (record.getMessage() for record in caplog.records)
    assert "blocked for over 0.25 s" in while_blocked
    assert "in sleeps_on_the_loop\n    time.sleep(0.6)" in while_blocked
    assert "Traceback" not in while_blocked
    assert re.search(r"blocked for 0\.[56]\d s", after)


async def test_a_short_block_and_an_idle_loop_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    await watched(0.6, lambda: time.sleep(0.15))
    assert caplog.records == []


async def test_a_block_in_which_the_other_threads_had_no_processor_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them may have held the interpreter meanwhile."""
    monkeypatch.setattr(stalls, "_starved_threads", lambda: {"1": time.monotonic()})
    await watched(0.2, sleeps_on_the_loop)
    assert caplog.records == []


def holds_the_interpreter() -> None:
    """One call into C during which no other thread runs: over half a second for a number of 300,000 digits."""
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    str(7**350_000)
    sys.set_int_max_str_digits(most)
    time.sleep(0.3)  # as a caller that goes on with the result


async def test_a_call_that_holds_the_interpreter_in_another_thread_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thread = threading.Thread(target=holds_the_interpreter, name="culprit")
    await watched(3, thread.start)
    thread.join()
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "the event loop was blocked" in text
    assert "holds_the_interpreter" in text


def test_the_apis_server_watches_its_loop(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/")
    async def blocks_the_api() -> None:
        time.sleep(0.6)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = web_server(app, ServerOptions())
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        requests.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=10)
        web.should_exit = True
        thread.join(10)
    assert "in blocks_the_api\n    time.sleep(0.6)" in caplog.text


async def test_watching_is_cheap() -> None:
    watch = StallWatch()
    before = time.process_time()
    await asyncio.sleep(2)
    watch.stop()
    assert (time.process_time() - before) / 2 < 0.05, (
        "of one core; about 0.01 on a machine that does nothing else"
    )
