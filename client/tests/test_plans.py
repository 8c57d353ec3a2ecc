"""A plan is asked for with the job's own settings, and printed as tables."""

from __future__ import annotations

import json
from typing import Any

from fake_server import FakeServer, ok

from tunewright_client import Tunewright

PLAN: dict[str, Any] = {
    "object": "fine_tuning.plan", "model": "big", "training_file": "file-1", "machine": "L4", "devices": 1,
    "available": 24 * 10**9, "parameters": 7_615_616_512, "rows": 500, "tokens": 100_000, "steps": 48,
    "type": "lora", "advised": "qlora", "why": "one device has 1.6 times the weights", "fits": False,
    "methods": [
        {
            "type": "lora", "trainable_parameters": 40_370_176, "fits": False, "seconds": None,
            "memory": {"weights": 2**34, "activations": 2**33, "total": 2**34 + 2**33},
        }
    ],
    "options": [{"name": "rank", "value": 8, "reason": "by the number of rows", "source": "docs"}],
    "change": {"change": "1 rows at a time", "options": {"per_device_batch_size": 1}, "total": 2**34},
    "sharding": None, "warnings": [{"code": "few_rows", "message": "500 rows are few"}],
}  # fmt: skip


def test_a_plan_is_asked_for_with_the_settings_of_a_job(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", "/v1/fine_tuning/plan", ok(PLAN))

    plan = client.jobs.plan("big", "file-1", tuning={"type": "lora"}, machine="L4")

    assert json.loads(server.requests[-1].body) == {
        "model": "big", "training_file": "file-1", "tuning": {"type": "lora"}, "machine": "L4",
    }  # fmt: skip
    assert (plan.advised, plan.fits) == ("qlora", False)
    assert plan.change is not None
    assert plan.change.options == {"per_device_batch_size": 1}


def test_a_plan_prints_its_memory_options_and_warnings(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", "/v1/fine_tuning/plan", ok(PLAN))

    text = str(client.jobs.plan("big", "file-1"))

    for part in (
        "advised: qlora",
        "lora fits: no",
        "16.00",
        "24.00",
        "1 rows at a time",
        "rank",
        "500 rows are few",
    ):
        assert part in text


def test_a_plan_of_several_files_tells_what_an_epoch_has_of_each(
    server: FakeServer, client: Tunewright
) -> None:
    files = [
        {"file": "file-1", "weight": 1.0, "rows": 500, "examples": 500, "tokens": 90_000},
        {"file": "file-2", "weight": 0.5, "rows": 50, "examples": 50, "tokens": 10_000},
    ]
    server.on("POST", "/v1/fine_tuning/plan", ok({**PLAN, "files": files}))

    text = str(client.jobs.plan("big", "file-1", mix={"file-2": 0.5}))

    assert json.loads(server.requests[-1].body)["data"] == {"mix": [{"file": "file-2", "weight": 0.5}]}
    assert "file-2 (weight 0.5): 50 rows, 10,000 tokens an epoch" in text
