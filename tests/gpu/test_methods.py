"""Each method of a job on an NVIDIA GPU, as the `openai` client asks for it: trained, checked by parity and served."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from graded import prompts
from preferences import as_openai, labelled_messages, labelled_rows, text_rows
from tests.engine.conftest import Service, start_service, wait_ready, wait_until
from tunewright.config import EMBEDDED_BASE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
DEVICE = os.environ.get("TUNEWRIGHT_TEST_DEVICE", "cuda")
GRADER = {
    "type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match",
    "input": "{{ sample.output_text }}", "reference": "The sky is blue.",
}  # fmt: skip
ROWS: dict[str, list[Any]] = {
    "dpo": [as_openai(row) for row in text_rows(64)],
    "orpo": [as_openai(row) for row in text_rows(64)],
    "kto": [labelled_messages(row) for row in labelled_rows(64)],
    "reinforcement": prompts(32),
}
LEARNT = {
    "dpo": "train_reward_margin", "orpo": "train_reward_margin", "kto": "train_reward_margin",
    "reinforcement": "train_reward",
}  # fmt: skip
"""What is larger at the end of a job than at its beginning."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    arguments = ["--vllm-arg=--enforce-eager"] if DEVICE == "cuda" else []
    running = start_service(tmp_path_factory.mktemp("methods") / "data", "--device", DEVICE, *arguments)
    try:
        wait_ready(running)
        yield running
    finally:
        assert running.stop() < 15


def job_of(client: OpenAI, method: str, kind: str) -> FineTuningJob:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[method]).encode()
    file = client.files.create(file=(f"{method}.jsonl", lines), purpose="fine-tune")
    options: dict[str, Any] = {"hyperparameters": {"batch_size": 8, "n_epochs": 3}}
    tuning: dict[str, Any] = {"type": kind, "learning_rate": 5e-5 if kind == "full" else 2e-3}
    if kind != "full":
        tuning["rank"] = 8
    if method == "reinforcement":
        options = {"grader": GRADER, "hyperparameters": {**options["hyperparameters"], "batch_size": 4}}
        tuning |= {"max_completion_length": 12, "temperature": 1.2}
    return client.fine_tuning.jobs.create(
        model=EMBEDDED_BASE,
        training_file=file.id,
        seed=7,
        suffix=f"{method}-{kind}",
        method={"type": method, method: options},  # type: ignore[typeddict-item,misc]
        extra_body={"tuning": tuning},
    )


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
@pytest.mark.parametrize("method", ROWS)
def test_it_learns_is_checked_and_served(service: Service, method: str, kind: str) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)
    job = job_of(client, method, kind)
    jobs = client.fine_tuning.jobs
    job = wait_until(
        lambda: (now := jobs.retrieve(job.id)).status in ("succeeded", "failed") and now, 600, "the job's end"
    )
    assert job.status == "succeeded", job.error
    events = list(reversed(list(jobs.list_events(job.id, limit=100))))
    measured: list[Any] = [event.data for event in events if event.type == "metrics"]
    curve = [data[LEARNT[method]] for data in measured if LEARNT[method] in data]
    third = max(1, len(curve) // 3)
    first, last = sum(curve[:third]) / third, sum(curve[-third:]) / third
    seconds = [event.created_at for event in events]
    print(
        f"\n{method:13} {kind:5}: {LEARNT[method]} {first:8.4f} -> {last:8.4f} in {len(curve)} steps,"
        f" {max(seconds) - min(seconds)} s in all"
    )
    assert last > first
    device = "cuda:" if DEVICE == "cuda" else "cpu"
    assert any(f"started on {device}" in event.message for event in events)
    if kind != "full":
        answer = client.chat.completions.create(
            model=job.fine_tuned_model or "",
            messages=[{"role": "user", "content": "Is number 5 a red door?"}],
            max_tokens=16,
            temperature=0,
        )
        assert answer.choices[0].message.content
        with service.client() as tunewright:
            parity = tunewright.adapters.retrieve(job.fine_tuned_model or "").parity
        assert parity is not None
        assert parity.verdict == "pass", parity
