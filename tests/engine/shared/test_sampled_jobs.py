"""The same job of the method reinforcement, with its answers from the engine and from the trainer."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from preferences import write
from tests.engine.conftest import Service
from tunewright.config import EMBEDDED_BASE
from tunewright.plan.sampling import LARGEST_DIFFERENCE
from tunewright_client import Tunewright

ANIMALS = (
    *("cat", "dog", "fox", "wolf", "bird", "king", "robot", "frog", "duck", "horse", "mouse", "crow", "cow"),
    *("bear", "lion", "goat"),
)
GRADER = {
    "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}", "reference": "{{ item.wanted }}",
}  # fmt: skip
GAIN = (0.015, 0.1)
"""Of the mean reward, between the first two steps and the last two."""
NOISE = 0.01
"""Nats: the engine computes in bfloat16, the trainer in float32. 0.0019 to 0.0033 were measured (decision 0063)."""


@pytest.mark.soak
@pytest.mark.parametrize("sampling", ["engine", "trainer"])
def test_rewards_rise_in_the_same_way(
    service: Service, client: Tunewright, tmp_path: Path, sampling: str
) -> None:
    wanted = "Once upon a time there was a king who lived near a lake."
    rows = [
        {"messages": [{"role": "user", "content": f"Tell me a story about a {animal}."}], "wanted": wanted}
        for animal in ANIMALS
    ]
    hyperparameters = {"batch_size": 4, "n_epochs": 1}
    job = client.jobs.create(
        EMBEDDED_BASE,
        write(tmp_path / "prompts.jsonl", rows),
        method={
            "type": "reinforcement",
            "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters},
        },
        tuning={"rank": 8, "learning_rate": 5e-3, "max_completion_length": 24, "sampling": sampling},
        seed=7,
    ).wait(timeout=600)
    assert job.status == "succeeded", job.error
    metrics: list[dict[str, Any]] = [
        event.data for event in client.jobs.stream_events(job.id) if event.type == "metrics" and event.data
    ]
    assert [one["step"] for one in metrics] == list(range(1, 5))
    differences = [one.get("train_sampling_difference") for one in metrics]
    if sampling == "trainer":
        assert set(differences) == {None}
    else:
        assert None not in differences, "the engine made the answers of each step"
        assert all(0 < one < NOISE < LARGEST_DIFFERENCE for one in differences if one is not None)
    rewards = [one["train_reward"] for one in metrics]
    assert GAIN[0] < statistics.mean(rewards[-2:]) - statistics.mean(rewards[:2]) < GAIN[1], rewards
