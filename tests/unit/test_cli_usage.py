"""`tunewright usage`, and limits of projects and keys, against the service that only pretends."""

from __future__ import annotations

import json

import test_cli
from test_cli import FakeService, Run

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

USAGE, COSTS = "/v1/organization/usage", "/v1/organization/costs"


def page(**result: object) -> dict[str, object]:
    bucket = {"object": "bucket", "start_time": 86_400, "end_time": 172_800, "results": [result]}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None}


def test_usage(run: Run, service: FakeService) -> None:
    told = page(model="tiny", project_id="proj-1", input_tokens=700, output_tokens=30, num_model_requests=2)
    service.replies["GET", f"{USAGE}/completions"] = (200, told)
    code, out, _ = run("usage", "tokens", "--by", "project", "--by", "model", "--hours", "3")
    assert (code, out.splitlines()[1]) == (0, "1970-01-02 00:00\tproj-1\ttiny\t2\t700\t30")
    code, out, _ = run("usage", "tokens", "--json")
    assert json.loads(out)["data"][0]["results"][0]["input_tokens"] == 700
    service.replies["GET", f"{USAGE}/gpu_seconds"] = (200, page(model="tiny", gpu_seconds=5400.0))
    assert "tiny\t1.500" in run("usage", "gpus")[1]
    cost = {"amount": {"value": 1.5, "currency": "eur"}, "quantity": 7, "quantity_unit": "tokens"}
    service.replies["GET", COSTS] = (200, page(line_item="tiny, input_tokens", **cost))
    assert "tiny, input_tokens\t7 tokens\t1.5000 EUR" in run("usage", "costs")[1]
