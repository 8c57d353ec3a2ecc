"""`make soak-swap`: 16 streams for over three minutes over at least 100 flips and 20 cycles, while an evaluation scores
prompts in batches and adapters are checked against peft; then a killed engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.engine.conftest import Service, start_service, wait_ready, wait_until
from tests.evaluations import Evaluation, score
from tests.kills import kill
from tests.swaps import ALIAS, QUESTIONS, Asker, Swapper, in_engine, learn_answers, table, train
from tunewright.config import EMBEDDED_BASE

pytestmark = pytest.mark.soak

SECONDS = 200.0
FLIPS, CYCLES = 100, 20
NOTICED = 1.0
"""Seconds after its EngineCore has ended in which vLLM's server may still take requests."""

REFUSED = ("flip: HTTP 503", "unload: HTTP 503")
"""Changes that need the engine are refused while it starts again, and say when to retry."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_service(tmp_path_factory.mktemp("swap") / "data")
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def models(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with service.client(timeout=120) as client:
        return [EMBEDDED_BASE, *train(client, tmp_path_factory.mktemp("rows"), ("Alpha", "Bravo", "Delta"))]


class Checks:
    """Asks for the parity check of one adapter after another, in a thread, while other requests run."""

    def __init__(self, service: Service, models: list[str]) -> None:
        self._service = service
        self._adapters = [model for model in models if model != EMBEDDED_BASE]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.verdicts: list[str] = []

    def __enter__(self) -> Checks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(300)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._service.client(timeout=120) as client:
            for adapter in self._adapters:
                client.adapters.check(adapter)
                found = None
                while found is None or found.check_pending or not found.verdict:
                    if self._stop.wait(1):
                        return
                    found = client.adapters.retrieve(adapter).parity
                self.verdicts.append(found.verdict)


@pytest.mark.timeout(1800)
def test_no_request_fails_and_no_answer_is_wrong(service: Service, models: list[str]) -> None:
    expected = learn_answers(service, models)
    with httpx.Client(timeout=120) as client:
        scores = {model: score(client, service.url, model)[1] for model in models}
    swapper = Swapper(service, models, expected)
    swapper.flip()  # so that there is an alias
    with Evaluation(service.url, [ALIAS], scores) as evaluation, Checks(service, models) as checks:
        seen = swapper.run(
            streams=16, seconds=SECONDS, flip_every=0.7, cycle_every=3.0,
            meanwhile=lambda: wait_until(
                lambda: swapper.seen.flips >= FLIPS and swapper.seen.cycles >= CYCLES, 900, "flips and cycles"
            ),
        )  # fmt: skip
    print(f"\nscored meanwhile: {dict(evaluation.counts)}; checked against peft: {checks.verdicts}")
    assert evaluation.bad == []
    assert evaluation.counts["right"] > 10
    assert set(checks.verdicts) == {"pass"}
    print(f"\n{seen.flips} flips, {seen.cycles} cycles, {sum(seen.answers.values())} answers")
    print(f"by version: {dict(seen.answers)}; faults: {len(seen.faults)}\n{table(seen)}")
    assert seen.faults == []
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
        if began > moments["killed"] + NOTICED and not fault.startswith(REFUSED)
    ]
    assert late == []
    assert len(seen.faults) < 60
    assert sum(seen.answers.values()) > 100
