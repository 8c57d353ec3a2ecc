"""Supervised, then dpo, in one request through the whole service, but for vLLM; and early stopping beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE

from preferences import as_openai, text_rows, write
from tunewright_client import Pipeline, Tunewright


def ended(client: Tunewright, id: str) -> Pipeline:
    return wait_until(
        lambda: (now := client.jobs.pipeline(id)).status in ("succeeded", "failed") and now, 300, "its end"
    )


def test_dpo_goes_on_from_the_supervised_model_of_the_same_request(service: Service, tmp_path: Path) -> None:
    client = Tunewright(service.url)
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in text_rows(32)]
    pairs = write(tmp_path / "pairs.jsonl", [as_openai(row) for row in text_rows(24)])
    job = client.jobs.create(
        BASE,
        write(tmp_path / "rows.jsonl", rows),
        "auto",
        data={"validation_share": 0.2},
        tuning={
            "rank": 4, "n_epochs": 6, "learning_rate": 5e-3, "batch_size": 8, "packing": True, "init": "pissa",
            "early_stopping": {"patience": 1}, "eval_interval": 2,
        },
        steps=[{"training_file": pairs, "method": "dpo", "tuning": {"n_epochs": 1, "learning_rate": 1e-3}}],
        integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
    )  # fmt: skip
    assert "no key" in (job.unreported or "")

    found = ended(client, job.id)

    first, second = found.jobs
    assert found.status == "succeeded", [one.error for one in found.jobs]
    assert first.best is not None
    warned = [event.message for event in client.jobs.stream_events(first.id) if event.level == "warn"]
    assert any("not reported to Weights & Biases" in text for text in warned)
    sft, dpo = (client.adapters.retrieve(one.fine_tuned_model or "") for one in (first, second))
    assert sft.rank == dpo.rank == 8, "twice the rank of the job, by pissa"
    assert second.model == first.fine_tuned_model
    assert second.tuning is not None
    assert second.tuning.rank == 8
    assert dpo.lineage is not None
    assert dpo.lineage.parent_sha256 == sft.sha256
    metrics = [event.metrics for event in client.jobs.stream_events(second.id) if event.metrics]
    begun = next(one for one in metrics if one.step == 1)
    assert begun.train_loss == pytest.approx(0.6931, abs=1e-3), "it is compared with the supervised model"
