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


def test_limits(run: Run, service: FakeService) -> None:
    project, key = "/v1/organization/projects/proj-1", "/v1/organization/projects/proj-1/api_keys/key-1"
    shown = {"id": "proj-1", "limits": {"requests_per_minute": 60, "adapters": None}}
    service.replies["POST", project] = service.replies["GET", project] = (200, shown)
    code, out, _ = run(
        "projects", "limit", "proj-1", "requests_per_minute=60", "stored_bytes=1KB", "adapters=none"
    )
    assert (code, out) == (0, "id\tproj-1\nrequests_per_minute\t60\n")
    limits = {"requests_per_minute": 60, "stored_bytes": 1000, "adapters": None}
    assert service.body("POST", project) == {"limits": limits}
    assert run("projects", "limit", "proj-1")[1] == out
    service.replies["POST", key] = (200, {"id": "key-1", "limits": {}})
    code, _, err = run("keys", "limit", "key-1", "--project", "proj-1", "tokens_per_minute=none")
    assert (code, "no limits" in err) == (0, True)
    for wrong in ("gpus=1", "adapters=many", "adapters"):
        assert run("projects", "limit", "proj-1", wrong)[0] == 2
