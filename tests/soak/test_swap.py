"""`make soak-swap`: 16 streams for over three minutes over at least 100 flips and 20 cycles; then a killed engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.engine.conftest import Service, start_service, wait_ready, wait_until
from tests.kills import kill
from tests.swaps import QUESTIONS, Asker, Swapper, in_engine, learn_answers, table, train
from tunewright.config import EMBEDDED_BASE

pytestmark = pytest.mark.soak

SECONDS = 200.0
NOTICED = 1.0
"""Seconds after its EngineCore has ended in which vLLM's server may still take requests."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_service(tmp_path_factory.mktemp("swap") / "data", "--parity", "off")
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def models(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with service.client(timeout=120) as client:
        return [EMBEDDED_BASE, *train(client, tmp_path_factory.mktemp("rows"), ("Alpha", "Bravo", "Delta"))]


@pytest.mark.timeout(1800)
def test_no_request_fails_and_no_answer_is_wrong(service: Service, models: list[str]) -> None:
    expected = learn_answers(service, models)
    seen = Swapper(service, models, expected).run(
        streams=16, seconds=SECONDS, flip_every=0.7, cycle_every=3.0
    )
    print(
        f"\n{seen.flips} flips, {seen.cycles} cycles, {sum(seen.answers.values())} answers in {SECONDS:.0f} s"
    )
    print(f"by version: {dict(seen.answers)}; faults: {len(seen.faults)}\n{table(seen)}")
    assert seen.faults == []
    assert seen.flips >= 100
    assert seen.cycles >= 20
    with service.client(timeout=120) as client:
        for adapter in client.adapters.list(limit=100):
            if adapter.state == "loaded":
                client.adapters.unload(adapter.model)
    wait_until(lambda: in_engine(service) == (set(), set()), 60, "the engine holds nothing any more")


@pytest.mark.timeout(1800)
def test_an_engine_killed_in_the_middle_fails_only_what_was_in_flight(
    service: Service, models: list[str]
) -> None:
    """A request in the meantime is refused with a time to retry (503 with Retry-After), and then gets its answer."""
    expected = learn_answers(service, models)
    swapper = Swapper(service, models, expected, retry_seconds=240)
    moments: dict[str, float] = {}

    def kill_it() -> None:
        time.sleep(15)
        moments["killed"] = time.monotonic()
        assert kill(service, "EngineCore")
        with httpx.Client(timeout=120) as client:
            result = Asker(service.url, expected, retry_seconds=240).ask(
                client, models[1], QUESTIONS[0], streamed=False
            )
        assert not result.fault, result
        moments["healed"] = time.monotonic()
        time.sleep(20)

    seen = swapper.run(streams=16, seconds=0, flip_every=1.0, cycle_every=3.0, meanwhile=kill_it)
    healed = moments["healed"] - moments["killed"]
    print(
        f"\nhealed after {healed:.1f} s; {sum(seen.answers.values())} answers, {len(seen.faults)} failed in flight"
    )
    assert seen.wrong == []
    late = [
        fault
        for fault, began in zip(seen.faults, seen.began, strict=True)
        if began > moments["killed"] + NOTICED and not fault.startswith("unload: HTTP 503")
    ]
    assert late == []
    assert len(seen.faults) < 60
    assert sum(seen.answers.values()) > 100
