"""`tunewright bench` against the service that only pretends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import test_cli
from test_cli import FakeService, Run, page
from test_cli_evals import DONE, EVALUATION, EVALUATIONS

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures


def times(p50: float) -> dict[str, float]:
    return {"p50": p50, "p50_low": p50, "p50_high": p50, "p99": 2 * p50, "p99_low": p50, "p99_high": 3 * p50}


def load(**fields: Any) -> dict[str, Any]:
    return {
        "model": "qwen", "at_once": 1, "requests": 100, "failed": 0, "first_error": None, "prompt_tokens": 128,
        "tokens": 12800, "seconds": 80.0, "tokens_per_second": 160.0, "tokens_per_second_low": 150.0,
        "tokens_per_second_high": 170.0, "first_token": times(20.0), "between_tokens": times(6.0),
        "whole": times(800.0), "price_per_million_tokens": None, "currency": None, "device_memory_bytes": None,
        **fields,
    }  # fmt: skip


@pytest.fixture
def measured(service: FakeService) -> FakeService:
    loads = [
        load(),
        load(at_once=32, failed=1, price_per_million_tokens=0.52, currency="EUR", device_memory_bytes=2**33),
    ]
    done = {**DONE, "metrics": ["latency"], "data": None, "load": {"requests": 100}}
    done["report"] = {**DONE["report"], "models": [], "metrics": [], "loads": loads, "judgement": None}
    service.replies = {
        ("POST", EVALUATIONS): (200, {**done, "status": "queued", "report": None}),
        ("GET", EVALUATION): (200, done),
        ("GET", f"{EVALUATION}/events"): (200, page([])),
    }
    return service


def test_bench_asks_for_loads_and_prints_a_line_for_each(measured: FakeService, run: Run) -> None:
    code, out, _ = run(
        "bench",
        "qwen",
        "ft:qwen:a:1",
        "--load",
        "1",
        "--load",
        "32",
        "--answer-tokens",
        "64",
        "--requests",
        "200",
    )
    assert code == 0, out
    body = next(json.loads(one[2]) for one in measured.requests if one[0] == "POST")
    assert body == {
        "model": "qwen",
        "against": ["ft:qwen:a:1"],
        "metrics": ["latency"],
        "load": {"at_once": [1, 32], "answer_tokens": 64, "requests": 200},
    }
    lines = out.splitlines()
    assert "qwen\t1\t160.0 (150.0 to 170.0)\t20.0, 40.0\t6.0, 12.0\t800.0, 1600.0" in out
    assert lines[-1].endswith("1\t0.52 EUR\t8.0 GiB")


def test_show_has_the_same_table(measured: FakeService, run: Run) -> None:
    _, shown, _ = run("evals", "show", DONE["id"])
    assert "160.0 (150.0 to 170.0)" in shown
    assert "load\trequests=100" in shown
