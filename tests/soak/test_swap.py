"""`make soak-swap`: 16 streams for over three minutes over at least 100 flips and 20 cycles; then an engine's death."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.engine.conftest import Service, start_service, wait_ready, wait_until
from tests.kills import kill
from tests.swaps import Swapper, in_engine, learn_answers, table, train
from tunewright.config import EMBEDDED_BASE

pytestmark = pytest.mark.soak

SECONDS = 200.0


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


@pytest.mark.timeout(1800)
def test_no_request_fails_and_no_answer_is_wrong(service: Service, models: list[str]) -> None:
    expected = learn_answers(service, models)
    seen = Swapper(service, models, expected).run(
        streams=16, seconds=SECONDS, flip_every=1.0, cycle_every=3.0
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
def test_an_engine_killed_in_the_middle_gives_no_wrong_answer(service: Service, models: list[str]) -> None:
    expected = learn_answers(service, models)
    swapper = Swapper(service, models, expected)
    told: dict[str, float] = {}

    def kill_it() -> None:
        time.sleep(15)
        assert kill(service, "EngineCore")
        killed = time.monotonic()
        with service.client(timeout=60, max_retries=0) as client:

            def answers() -> bool:
                try:
                    model = models[1]
                    ask = {"messages": [{"role": "user", "content": "What color is the sky?"}]}
                    client.chat.create(model=model, temperature=0, max_tokens=8, **ask)
                    return True
                except Exception:
                    return False

            time.sleep(1)
            wait_until(answers, 240, "it answers again")
        told["healed"] = time.monotonic() - killed
        time.sleep(20)

    seen = swapper.run(streams=16, seconds=0, flip_every=1.0, cycle_every=3.0, meanwhile=kill_it)
    print(
        f"\nhealed after {told['healed']:.1f} s; answers {sum(seen.answers.values())}, failed {len(seen.faults)}"
    )
    assert seen.wrong == []
    unexpected = [
        f
        for f in seen.faults
        if not f.startswith(("HTTP 503", "cut: ", "flip: HTTP 503", "unload: HTTP 503"))
    ]
    assert unexpected == []
    assert threading.active_count() < 60
