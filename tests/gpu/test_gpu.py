"""The whole loop on an NVIDIA GPU: LoRA, QLoRA and full fine-tuning, hot-loaded and served by vLLM there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import DEMO, FAST, Service, start_service, wait_ready
from tunewright.config import EMBEDDED_BASE

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
CHAT = [{"role": "user", "content": "What color is the sky?"}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = start_service(
        tmp_path_factory.mktemp("gpu") / "data", "--device", "cuda", "--vllm-arg=--enforce-eager"
    )
    try:
        wait_ready(running)
        yield running
    finally:
        assert running.stop() < 15


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_every_method_trains_on_the_gpu(service: Service, method: str, tmp_path: Path) -> None:
    tuning = dict(FAST, type=method)
    if method == "full":
        tuning = {"type": "full", "learning_rate": 1e-3, "n_epochs": 2, "batch_size": 16}
    with service.client() as client:
        job = client.jobs.create(
            model=EMBEDDED_BASE,
            training_file=DEMO / "train.jsonl",
            validation_file=DEMO / "validation.jsonl",
            seed=7,
            suffix=method,
            tuning=tuning,
        ).wait(timeout=600)
        losses = [e.data for e in client.jobs.stream_events(job.id) if "valid_loss" in (e.data or {})]
        print(f"\n{method}: {losses[0]['valid_loss']:.4f} -> {losses[-1]['valid_loss']:.4f}, {losses[-1]}")
        assert losses[-1]["valid_loss"] < 0.2 < losses[0]["valid_loss"]
        assert any("started on cuda:" in e.message for e in client.jobs.stream_events(job.id))
        if method == "full":
            assert (
                client.models.download(job.fine_tuned_model or "", tmp_path / "full.tar").stat().st_size > 8e6
            )
        else:
            assert client.chat.create(
                model=job.fine_tuned_model or "", messages=CHAT, temperature=0
            ).text.startswith("Arr")
    assert "Arr" not in _ask_base(service)


def _ask_base(service: Service) -> str:
    with service.client() as client:
        return str(client.chat.create(model=EMBEDDED_BASE, messages=CHAT, temperature=0).text)
