"""The official `openai` package, unmodified, in both current major versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import DEMO, Service
from tunewright_client import Job, Tunewright

JOURNEY = Path(__file__).parent / "openai_journey.py"
OPENAI_2 = Path(sys.prefix) / "openai-2"


@pytest.mark.parametrize("major", ["3", "2"])
def test_the_stock_client_does_the_whole_journey(service: Service, pirate: Job, major: str) -> None:
    environment = dict(os.environ)
    if major == "2":
        assert OPENAI_2.is_dir(), "openai 2.x is missing: run `make setup`"
        environment["PYTHONPATH"] = str(OPENAI_2)
    done = subprocess.run(
        [sys.executable, str(JOURNEY), service.url, str(DEMO / "validation.jsonl"), pirate.id],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"ok {major}."), done.stdout


def test_a_model_can_be_deleted_with_the_stock_client(
    service: Service, client: Tunewright, small_file: str
) -> None:
    from openai import BadRequestError, NotFoundError, OpenAI

    job = client.jobs.create(
        model="tunewright-tiny", training_file=small_file, tuning={"n_epochs": 1, "rank": 8}, suffix="gone"
    ).wait(timeout=120)
    assert job.fine_tuned_model is not None
    stock = OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0)
    sha256 = client.adapters.retrieve(job.fine_tuned_model).sha256
    assert stock.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(NotFoundError):
        stock.models.retrieve(job.fine_tuned_model)
    with pytest.raises((NotFoundError, BadRequestError)):
        stock.completions.create(model=job.fine_tuned_model, prompt="x")
    # its last checkpoint has the same weights and keeps them; when that goes too, so do the files
    for checkpoint in client.jobs.checkpoints(job.id):
        assert (service.data_dir / "artifacts" / sha256).is_dir()
        stock.models.delete(checkpoint.fine_tuned_model_checkpoint)
    assert not (service.data_dir / "artifacts" / sha256).exists()
