"""500 rows of GSM8K, LoRA and QLoRA, on stories260K through the REST API: the held-out loss goes down.

Needs TUNEWRIGHT_ASSETS (real models and data, which are not the project's own).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import Service, start_service, wait_ready

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
ASSETS = Path(os.environ.get("TUNEWRIGHT_ASSETS", "/nonexistent"))
if not (ASSETS / "models/stories260K").is_dir():
    pytest.skip("TUNEWRIGHT_ASSETS is not set or has no models/stories260K", allow_module_level=True)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = start_service(
        tmp_path_factory.mktemp("stories") / "data", "--base", f"stories={ASSETS / 'models/stories260K'}"
    )
    try:
        wait_ready(service)
        yield service
    finally:
        service.stop()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_held_out_loss_goes_down(stories: Service, tmp_path: Path, method: str) -> None:
    rows = [json.loads(line) for line in (ASSETS / "data/gsm8k/train.jsonl").open()]
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    for path, part in ((train, rows[:500]), (held_out, rows[500:600])):
        path.write_text(
            "".join(
                json.dumps({"prompt": f"Question: {r['question']}\nAnswer:", "completion": " " + r["answer"]})
                + "\n"
                for r in part
            )
        )
    began = time.monotonic()
    with stories.client() as client:
        job = client.jobs.create(
            model="stories",
            training_file=train,
            validation_file=held_out,
            seed=1,
            suffix=method,
            tuning={"type": method, "learning_rate": 2e-3},
        ).wait(timeout=1500)
        losses = [
            e.data["valid_loss"] for e in client.jobs.stream_events(job.id) if "valid_loss" in (e.data or {})
        ]
        print(
            f"\n{method}: held-out loss {losses[0]:.4f} before, {losses[-1]:.4f} after "
            f"({' -> '.join(f'{v:.3f}' for v in losses)}), {job.trained_tokens} tokens, "
            f"{time.monotonic() - began:.0f} s"
        )
        assert losses[-1] < losses[0] - 1.0
        answer = client.completions.create(
            model=job.fine_tuned_model or "",
            prompt="Question: How many?\nAnswer:",
            max_tokens=16,
            temperature=0,
        )
        assert answer.text
