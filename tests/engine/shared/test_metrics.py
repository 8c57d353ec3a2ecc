"""GET /metrics with a real vLLM: its own metrics under the public names, and the tokens of streams as it counts."""

from __future__ import annotations

import re
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.conftest import Service, wait_until
from tunewright.config import EMBEDDED_BASE

DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/tunewright.json"
BODY = {
    "model": EMBEDDED_BASE,
    "messages": [{"role": "user", "content": "What color is the sky?"}],
    "temperature": 0,
}


def metrics(service: Service) -> dict[tuple[str, str], float]:
    """By name and model; sums over the other labels."""
    answer = requests.get(f"{service.url}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            model = one.labels.get("model_name") or one.labels.get("model") or one.labels.get("engine", "")
            found[one.name, model] = found.get((one.name, model), 0.0) + one.value
    return found


def test_vllm_tells_its_metrics_under_the_public_names(service: Service) -> None:
    found = metrics(service)
    assert found["tunewright_engine_metrics_up", EMBEDDED_BASE] == 1
    told = {model for name, model in found if name.startswith("vllm:")}
    assert told == {EMBEDDED_BASE, "plain"}
    dashboard = DASHBOARD.read_text()
    for name in set(re.findall(r"vllm:\w+", dashboard)):
        assert (name, EMBEDDED_BASE) in found, name


def test_a_stream_has_the_tokens_that_vllm_counts(service: Service) -> None:
    url = f"{service.url}/v1/chat/completions"
    total = ("tunewright_requests_total", EMBEDDED_BASE)
    counted = metrics(service).get(total, 0.0)
    usage = requests.post(url, json={**BODY, "max_tokens": 12}, timeout=120).json()["usage"]
    wait_until(lambda: metrics(service).get(total, 0.0) == counted + 1, 20, "the count of the whole answer")
    before = metrics(service)
    text = requests.post(url, json={**BODY, "max_tokens": 12, "stream": True}, timeout=120).text
    assert '"usage":{' not in text
    assert '"choices":[]' not in text
    assert text.rstrip().endswith("data: [DONE]")

    def grown(name: str) -> float:
        return metrics(service)[name, EMBEDDED_BASE] - before.get((name, EMBEDDED_BASE), 0.0)

    wait_until(lambda: grown("tunewright_requests_total") == 1, 20, "the count")
    assert grown("tunewright_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("tunewright_generated_tokens_total") == usage["completion_tokens"]
    assert grown("tunewright_time_to_first_token_seconds_count") == 1
    assert 0 < grown("tunewright_time_between_tokens_seconds_count") < usage["completion_tokens"]
