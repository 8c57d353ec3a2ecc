"""An operator is told once that the slots of an engine are larger than its adapters need, and with what it starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from rows import PRODUCT, create_job, resolved
from tunewright.config import embedded_base_path
from tunewright.engine import slots as engine_slots
from tunewright.engine.command import EngineOptions
from tunewright.engine.slots import read_cost
from tunewright.scheduler.served import Served
from tunewright.scheduler.slots import options_to_start, smaller_rank
from tunewright.store.states import JobState
from tunewright.store.store import Store


def register(store: Store, rank: int, **changes: Any) -> None:
    row = {"id": f"model-{rank}", "source": "job", "lineage": {}, "job_id": None, "name": f"ft:tiny:{rank}:1"}
    store.models.register({**PRODUCT, **row, "rank": rank, **changes})


def job(store: Store, rank: int | str, state: JobState = JobState.QUEUED, **tuning: Any) -> None:
    create_job(store, state=state, request={"tuning": {"rank": rank, **tuning}})


@pytest.mark.parametrize(
    ("largest", "smaller"), [(1, 16), (8, 16), (16, 16), (17, 32), (33, None), (64, None)]
)
def test_the_smallest_rank_is_one_of_vllms_that_holds_all_adapters(
    store: Store, largest: int, smaller: int | None
) -> None:
    register(store, 1, name="ft:tiny:small:1", id="model-small")
    register(store, largest, id="model-large")
    register(store, 64, base="other", name="ft:other:x:1", id="model-other")
    assert smaller_rank(store, "tiny", 64) == smaller


def test_without_adapters_nothing_is_told(store: Store) -> None:
    assert smaller_rank(store, "tiny", 64) is None
    register(store, 8, base="other")
    assert smaller_rank(store, "tiny", 64) is None


def test_unfinished_jobs_count(store: Store) -> None:
    register(store, 8)
    job(store, 32)
    job(store, 64, JobState.CANCELLED)
    job(store, "auto", type="full")
    assert smaller_rank(store, "tiny", 64) == 32
    assert smaller_rank(store, "tiny", 32) is None


def test_a_job_whose_rank_is_not_known_yet_may_need_the_limit(store: Store) -> None:
    register(store, 8)
    job(store, "auto", JobState.VALIDATING_FILES)
    assert smaller_rank(store, "tiny", 64) is None


def test_an_automatic_rank_counts_as_what_it_became(store: Store) -> None:
    create_job(store, state=JobState.QUEUED, resolved=resolved("lora"))
    assert smaller_rank(store, "tiny", 512) == 16


def test_the_log_has_the_slots_at_each_start_and_the_rank_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_slots, "gpu_memory", lambda device: ("NVIDIA H200", 150 * 10**9))
    register(store, 8)
    options = EngineOptions("cuda:0", gpu_memory_utilization=0.45, max_loras=None)
    served = Served("tiny", options, None, cost=read_cost(Path(embedded_base_path())))
    with caplog.at_level(logging.INFO):
        first, second = (options_to_start(served, [], store) for _ in range(2))
    assert first == second
    assert (first.max_loras, first.specialize_active_lora, served.options.max_loras) == (64, True, None)
    told = [record.getMessage() for record in caplog.records]
    assert len([line for line in told if line.startswith("engine tiny has 64 slots for adapters of ")]) == 2
    (rank,) = [line for line in told if "--max-lora-rank of 16" in line]
    assert "no adapter or unfinished job on it has a rank above 16" in rank


def test_on_the_cpu_nothing_is_told(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    register(store, 8)
    options = EngineOptions("cpu")
    with caplog.at_level(logging.INFO):
        assert options_to_start(Served("tiny", options, None), [], store) == options
    assert not caplog.records
