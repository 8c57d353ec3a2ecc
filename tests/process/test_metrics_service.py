"""GET /metrics of a whole service with a stand-in for vLLM: counts of requests, the engine's own metrics, adapters that
are loaded; the endpoint of an engine that hangs holds nothing up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from tests.engine.conftest import Service, wait_until
from tests.without_vllm import BASE, fill, start_without_vllm, wait_engine

from tunewright.store.store import Store
from tunewright.store.usage import DAY, Asked

KEY, OWN_KEY = "k" * 16, "m" * 16
TUNED = f"ft:{BASE}:s:1"


@pytest.fixture(scope="module", params=["tells", "hang"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir: Path = tmp_path_factory.mktemp("metrics") / "data"
    fill(data_dir)
    environment = {
        "TUNEWRIGHT_API_KEY": KEY, "TUNEWRIGHT_METRICS_KEY": OWN_KEY, "STAND_IN_METRICS": str(request.param),
    }  # fmt: skip
    running = start_without_vllm(data_dir, environment=environment)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TUNEWRIGHT_API_KEY", KEY)
            wait_engine(running)
        yield running
    finally:
        running.stop()


def metrics(service: Service, key: str = OWN_KEY) -> dict[tuple[str, ...], float]:
    answer = requests.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=10)
    assert answer.status_code == 200, answer.text
    return {
        (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }


def ask(service: Service, **body: object) -> requests.Response:
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    headers = {"Authorization": f"Bearer {KEY}"}
    return requests.post(f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_a_service_tells_what_it_has_done(service: Service) -> None:
    tells = service.environment and service.environment["STAND_IN_METRICS"] == "tells"
    answer = ask(service, model=TUNED, stream=True, ignore_eos=True, max_tokens=5)
    assert answer.status_code == 200, answer.text
    assert b'"usage"' not in answer.content
    assert ask(service, model="secret").status_code == 404
    began = time.monotonic()
    found = metrics(service)
    assert time.monotonic() - began < 8
    of = ("alias=", f"model={TUNED}")
    assert found["tunewright_requests_total", "alias=", "code=200", of[1], "route=/v1/chat/completions"] == 1
    assert found["tunewright_generated_tokens_total", *of] == 5
    assert found["tunewright_time_to_first_token_seconds_count", *of] == 1
    engine = f"engine={BASE}"
    assert found["tunewright_engine_metrics_up", engine] == float(bool(tells))
    assert (("vllm:num_requests_running", "engine=0", f"model_name={BASE}") in found) == tells
    assert "secret" not in json.dumps(list(found))
    assert found["tunewright_engine_state", engine, "state=ready"] == 1
    assert found["tunewright_jobs", "kind=fine_tuning", "state=succeeded"] == 1
    key = ("tunewright_adapter_changes_total", "change=loaded", engine)
    wait_until(lambda: metrics(service)[key] >= 1, 20, "the adapter's load")
    for process in ("api", "scheduler", "worker"):
        at = found["tunewright_heartbeat_timestamp_seconds", f"process={process}"]
        assert abs(time.time() - at) < 60
    assert found["process_cpu_seconds_total",] > 0


def test_the_key_of_metrics_opens_nothing_else(service: Service) -> None:
    def status(path: str, key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return requests.get(service.url + path, headers=headers, timeout=10).status_code

    assert [status("/metrics", key) for key in (KEY, OWN_KEY, None, "x" * 16)] == [200, 200, 401, 401]
    assert status("/v1/models", OWN_KEY) == 401


def test_a_flood_of_scrapes_is_answered_by_few_readings(service: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        began = time.monotonic()
        found = list(pool.map(lambda _: len(metrics(service)), range(64)))
    assert min(found) > 50
    assert time.monotonic() - began < 60
    assert requests.get(f"{service.url}/health", timeout=5).status_code == 200


def test_stopped_it_has_written_what_was_used_until_then(service: Service) -> None:
    assert ask(service, model=TUNED, stream=True, ignore_eos=True, max_tokens=7).status_code == 200
    service.stop()
    store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
    used = store.usage.tokens(Asked(0, 2**34, DAY, ("project", "api_key_id", "model")))
    store.close()
    (mine,) = [one for one in used if one.group["model"] == TUNED]
    assert dict(mine.group) == {"project": "default", "api_key_id": "TUNEWRIGHT_API_KEY", "model": TUNED}
    assert mine.used.output_tokens == 5 + 7, "with those of the first test"
