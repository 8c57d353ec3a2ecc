"""Jobs of the method reinforcement through the whole service, but for vLLM, as `openai` creates them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI
from tests.engine.conftest import Service
from tests.without_vllm import BASE

from graded import prompts

from .test_dpo_service import ended

GRADER: Any = {
    "type": "multi",
    "name": "short and near",
    "graders": {
        "near": {
            "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
            "input": "{{ sample.output_text }}", "reference": "{{ item.wanted }}",
        },
        "program": {
            "type": "python", "name": "program",
            "source": "def grade(sample, item):\n    return 1.0 if len(sample['output_text']) < 40 else 0.0\n",
        },
    },
    "calculate_output": "near + 0.1 * program",
}  # fmt: skip


@pytest.mark.soak
def test_a_job_learns_what_its_grader_rewards(service: Service) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)
    rows = [{**row, "wanted": "The sky is blue."} for row in prompts(16)]
    file = client.files.create(
        file=("prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()), purpose="fine-tune"
    )
    hyperparameters: Any = {
        "batch_size": 4, "n_epochs": 3, "compute_multiplier": 0.5, "eval_samples": 2, "reasoning_effort": "default",
    }  # fmt: skip
    job = ended(
        client,
        client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file=file.id,
            seed=7,
            method={
                "type": "reinforcement",
                "reinforcement": {"grader": GRADER, "hyperparameters": hyperparameters},
            },
            extra_body={
                "tuning": {"rank": 8, "learning_rate": 5e-3, "max_completion_length": 10, "temperature": 1.5}
            },
        ),
    )
    assert job.status == "succeeded", job.error
    assert job.trained_tokens
    assert job.method is not None
    assert job.method.reinforcement is not None
    assert job.method.reinforcement.hyperparameters is not None
    assert job.method.reinforcement.hyperparameters.eval_samples == 2

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    metrics: list[Any] = [event.data for event in reversed(events) if event.type == "metrics"]
    assert [data["step"] for data in metrics] == list(range(1, 13))
    rewards = [data["train_reward"] for data in metrics]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.06, rewards
    assert metrics[-1]["valid_reward"] > metrics[3]["valid_reward"], "of epochs"
    last = metrics[-1]
    assert last["train_reward"] == pytest.approx(
        last["train_grader_near"] + 0.1 * last["train_grader_program"], abs=1e-5
    )
    assert last["train_grader_errors"] == 0
    assert {
        "train_completion_length",
        "train_completions_clipped",
        "train_reward_std",
        "train_entropy",
    } <= set(last)
    messages = [event.message for event in events if event.type == "message"]
    assert any("Validation loss before training" in text and "(reward " in text for text in messages)
    header = client.files.content(job.result_files[0]).text.splitlines()[0]
    assert {"train_reward", "valid_reward", "train_grader_errors"} <= set(header.split(","))
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert len(checkpoints) == 3
