"""`make soak-bursts`: 20 bursts of 256 requests, 4 to 6 s apart, which is when a server closes its idle connections.

The service is whole; its engine is a stand-in (`tests/fakes_uvicorn`) on vLLM's web server.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.bursts import Load, run, summary

from tests.without_vllm import BASE, FAKES_UVICORN, start_without_vllm, wait_engine

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.mark.parametrize("keep_alive", ["", "5"], ids=["as-vllm", "always-5-s"])
def test_no_request_fails_for_a_connection_that_was_closed_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_alive: str
) -> None:
    """Whether the engine keeps idle connections for the configured time, or closes them after 5 s regardless."""
    monkeypatch.setenv("FAKE_VLLM_KEEP_ALIVE", keep_alive)
    service = start_without_vllm(tmp_path / "data", fakes=FAKES_UVICORN)
    try:
        wait_engine(service)
        load = Load(service.url, BASE, requests=256, tokens=16)
        seen = summary(load, run(load, bursts=20, processes=2, pauses=(4.0, 6.0)))
    finally:
        service.stop()
    print(seen)
    assert (seen["requests"], seen["failures"]) == (20 * 256, {})
