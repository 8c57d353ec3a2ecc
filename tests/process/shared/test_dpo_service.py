"""Jobs on preferences through the whole service, but for vLLM, as the stock `openai` package creates them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preferences import as_openai, text_rows


def ended(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    jobs = client.fine_tuning.jobs
    return wait_until(
        lambda: (now := jobs.retrieve(job.id)).status in ("succeeded", "failed") and now, 300, "the job's end"
    )


def test_a_job_on_preferences_and_one_that_goes_on_from_it(service: Service) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)
    jobs = client.fine_tuning.jobs
    rows = "".join(json.dumps(as_openai(row)) + "\n" for row in text_rows(48)).encode()
    file = client.files.create(file=("pairs.jsonl", rows), purpose="fine-tune")
    tuning: dict[str, Any] = {"rank": 8, "learning_rate": 2e-3}
    first = ended(
        client,
        jobs.create(
            model=BASE,
            training_file=file.id,
            validation_file="auto",
            method={"type": "dpo", "dpo": {"hyperparameters": {"batch_size": 8, "n_epochs": 2}}},
            extra_body={"tuning": tuning, "data": {"validation_share": 0.25}},
        ),
    )
    assert first.status == "succeeded", first.error
    assert first.method is not None
    assert first.method.dpo is not None
    assert first.method.dpo.hyperparameters is not None
    assert first.method.dpo.hyperparameters.beta == 0.1, "what auto became"

    events = list(jobs.list_events(first.id, limit=100))
    metrics = [event.data for event in reversed(events) if event.type == "metrics"]
    assert all(isinstance(data, dict) for data in metrics)
    by_name: list[dict[str, Any]] = [dict(data) for data in metrics]  # type: ignore[call-overload]
    assert by_name[0]["train_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert by_name[-1]["train_reward_margin"] > by_name[0]["train_reward_margin"] == 0.0
    assert by_name[-1]["valid_reward_accuracy"] > 0.7
    assert {"learning_rate", "grad_norm", "tokens_per_second", "eta_seconds", "total_steps"} <= set(
        by_name[-1]
    )
    messages = [event.message for event in events if event.type == "message"]
    assert any(text.startswith("Validation loss before training: 0.693") for text in messages)
    assert any(text.startswith("Training data: ") and " pairs, " in text for text in messages)
    header = client.files.content(first.result_files[0]).text.splitlines()[0]
    assert {"train_reward_margin", "valid_reward_accuracy"} <= set(header.split(","))

    assert first.fine_tuned_model is not None
    second = ended(
        client,
        jobs.create(
            model=first.fine_tuned_model,
            training_file=file.id,
            method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 1}}},
            extra_body={"tuning": {"learning_rate": 1e-4}},
        ),
    )
    assert second.status == "succeeded", second.error
    begun = next(
        e.data for e in jobs.list_events(second.id, limit=100) if e.type == "metrics" and e.data["step"] == 1
    )  # type: ignore[index]
    assert begun["train_reward_margin"] == 0.0, "it is compared with the adapter from which it goes on"  # type: ignore[index]


@pytest.mark.soak
def test_a_reward_model_is_listed_and_downloaded_whole(service: Service, tmp_path: Path) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)
    rows = "".join(json.dumps(row) + "\n" for row in text_rows(48)).encode()
    file = client.files.create(file=("pairs.jsonl", rows), purpose="fine-tune")
    made = httpx.post(
        f"{service.url}/v1/fine_tuning/jobs",
        json={
            "model": BASE, "training_file": file.id, "validation_file": "auto", "seed": 3,
            "method": {"type": "reward", "reward": {"hyperparameters": {"batch_size": 8, "n_epochs": 2}}},
            "tuning": {"rank": 8, "learning_rate": 2e-3},
        },
    )  # fmt: skip
    job = ended(client, FineTuningJob.model_construct(id=made.json()["id"]))
    assert job.status == "succeeded", job.error
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    metrics: list[Any] = [event.data for event in reversed(events) if event.type == "metrics"]
    assert metrics[-1]["valid_reward_accuracy"] > 0.9
    assert metrics[-1]["train_reward_margin"] > metrics[0]["train_reward_margin"]
    header = client.files.content(job.result_files[0]).text.splitlines()[0]
    assert {"train_reward_margin", "valid_reward_mean"} <= set(header.split(","))
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []
    assert job.fine_tuned_model is not None
    listed = httpx.get(f"{service.url}/v1/models/{job.fine_tuned_model}").json()
    assert (listed["kind"], listed["method"]) == ("full", "reward")

    tar = httpx.get(f"{service.url}/v1/models/{job.fine_tuned_model}/download").content
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(tmp_path, filter="data")
    [config] = tmp_path.rglob("config.json")
    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    model = AutoModelForSequenceClassification.from_pretrained(config.parent)
    [unseen] = text_rows(1, start=200)
    texts = [unseen["prompt"] + unseen[name] + tokenizer.eos_token for name in ("chosen", "rejected")]
    better, worse = (float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts)
    assert better > worse
    assert httpx.delete(f"{service.url}/v1/models/{job.fine_tuned_model}").status_code == 200
