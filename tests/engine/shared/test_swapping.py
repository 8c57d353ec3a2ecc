"""Flips, loads and unloads under load, with a real vLLM. `make soak-swap` does it at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import Service, wait_until
from tests.swaps import Swapper, in_engine, learn_answers, table, train
from tunewright.config import EMBEDDED_BASE
from tunewright_client import Tunewright


@pytest.mark.timeout(400)
def test_flips_and_unloads_under_load_fail_no_request_and_mix_no_answers(
    service: Service, client: Tunewright, tmp_path: Path
) -> None:
    names = train(client, tmp_path, ("Alpha", "Bravo"))
    models = [EMBEDDED_BASE, *names]
    expected = learn_answers(service, models)
    for adapter in client.adapters.list(
        base=EMBEDDED_BASE, limit=100
    ):  # checkpoints among them: every slot is used
        client.chat.create(model=adapter.model, messages=[{"role": "user", "content": "Hi"}], max_tokens=4)
    assert learn_answers(service, models) == expected, "the base too is itself with every slot in use"
    swapper = Swapper(service, models, expected)

    def enough() -> bool:
        seen = swapper.seen
        return seen.flips > 5 and seen.cycles > 3 and set(seen.answers) == set(models)

    seen = swapper.run(
        streams=8, seconds=0, flip_every=0.5, cycle_every=1.5,
        meanwhile=lambda: wait_until(enough, 120, "flips, cycles and answers of each version"),
    )  # fmt: skip
    print(f"{seen.flips} flips, {seen.cycles} cycles, {sum(seen.answers.values())} answers\n{table(seen)}")
    assert seen.faults == []
    for adapter in client.adapters.list(limit=100):
        if adapter.state == "loaded":
            client.adapters.unload(adapter.model)
    wait_until(lambda: in_engine(service) == (set(), set()), 30, "the engine holds nothing any more")
    for name in names:
        client.adapters.load(name)
