"""A job that samples from the engine and is graded by it, while its trainer and the engine are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from graded import NEAR, prompts
from kills import ROLES, tree
from preferences import write
from tunewright.store.store import Store
from tunewright_client import Tunewright

TUNING = {
    "rank": 8,
    "learning_rate": 1e-3,
    "max_completion_length": 6,
    "num_generations": 2,
    "sampling": "engine",
}
GRADER = {
    "type": "multi",
    "name": "both",
    "calculate_output": "near + judge",
    "graders": {
        "near": NEAR,
        "judge": {
            "type": "score_model", "name": "judge", "model": BASE,
            "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}],
        },
    },
}  # fmt: skip
STEPS = 16


@pytest.mark.soak
def test_no_step_is_doubled_or_lost_where_trainer_and_engine_are_killed(
    service: Service, tmp_path: Path
) -> None:
    client = Tunewright(service.url)
    hyperparameters = {"batch_size": 4, "n_epochs": 8}
    job = client.jobs.create(
        BASE,
        write(tmp_path / "prompts.jsonl", prompts(8)),
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters},
        },
        tuning=TUNING,
        seed=3,
    )
    folder = service.data_dir / "jobs" / job.id

    def steps() -> list[int]:
        data = [event.data for event in client.jobs.stream_events(job.id) if event.type == "metrics"]
        return [one["step"] for one in data if one is not None]

    def step() -> int:
        now = client.jobs.retrieve(job.id)
        assert not now.is_final, now.error
        return (now.progress.step if now.progress else None) or 0

    wait_until(lambda: step() >= 3, 300, "step 3, behind a checkpoint")
    os.kill(json.loads((folder / "process.json").read_text())["command"]["pid"], signal.SIGKILL)
    wait_until(lambda: (folder / "policies").is_dir() and step() >= 2, 300, "the next trainer")
    [engine] = [
        pid for pid, (_, line) in tree(service.process.pid).items() if re.search(ROLES["vLLM server"], line)
    ]
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: step() >= 7, 300, "the next engine")
    client.jobs.pause(job.id)
    wait_until(lambda: client.jobs.retrieve(job.id).status == "paused", 300, "the pause")
    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    assert store.policies.wanted(BASE) == {}
    client.jobs.resume(job.id)
    done = job.wait(timeout=300)

    assert done.status == "succeeded"
    told = steps()
    assert sorted(set(told)) == list(range(1, STEPS + 1))
    repeated = [second for first, second in pairwise(told) if second != first + 1]
    assert len(repeated) <= 1, "only those since the checkpoint, once"
    events = [event for event in client.jobs.stream_events(job.id) if event.type == "metrics"]
    assert all("train_sampling_difference" in (event.data or {}) for event in events), (
        "the engine made them all"
    )
    assert all((event.data or {})["train_grader_errors"] == 0 for event in events), "all were graded"
    assert all(0 < (event.data or {})["train_grader_judge"] < 1 for event in events)
    [told] = [
        event.message for event in client.jobs.stream_events(job.id) if "are graded by" in event.message
    ]
    assert f"graded by {BASE}, through the gateway" in told
    assert not (folder / "policies").exists()
    assert not (folder / "scores").exists()
    assert {model.id for model in client.models.list() if job.id[6:12] in model.id} == {done.fine_tuned_model}
    try:
        running = store.engines.get(BASE)
        assert running is not None
        assert store.policies.wanted(BASE) == {}
        with sqlite3.connect(service.data_dir / "tunewright.db") as database:
            [(requests, tokens)] = database.execute(
                "SELECT SUM(requests), SUM(input_tokens + output_tokens) FROM usage WHERE source = 'grader'"
            ).fetchall()
        assert requests >= STEPS * 2
        assert tokens == 10 * requests, "they are counted for the project"
        known = {model.sha256 for model in store.models.list()[0]}
        wait_until(
            lambda: set(store.engines.residents(running)) <= known, 60, "the last version to be unloaded"
        )
    finally:
        store.close()
