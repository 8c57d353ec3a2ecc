"""A whole service with a stand-in for vLLM that is traced: a request, a job, its log as JSON in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from tests.engine.conftest import Service, wait_ready, wait_until
from tests.without_vllm import BASE, start_without_vllm

from otlp import Receiver, attributes, receiver

PARENT = f"00-{'c' * 32}-{'d' * 16}-01"
ROWS = b'{"prompt": "a", "completion": "b"}\n' * 20


@pytest.fixture(scope="module")
def found() -> Iterator[tuple[Receiver, str]]:
    with receiver() as one:
        yield one


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, found: tuple[Receiver, str]) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("traces")
    options = ["--otlp-endpoint", found[1], "--log-format", "json", "--log-file", str(folder / "t.log")]
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    running = start_without_vllm(folder / "data", *options, environment=environment)
    try:
        wait_ready(running)
        yield running
    finally:
        running.stop()


def test_requests_and_jobs_are_traced_as_a_whole(service: Service, found: tuple[Receiver, str]) -> None:
    traces = found[0]
    headers = {"traceparent": PARENT, "x-request-id": "mine-1"}
    body = {"model": BASE, "messages": [{"role": "user", "content": "hi"}]}
    url = f"{service.url}/v1/chat/completions"
    assert requests.post(url, json=body, headers=headers, timeout=120).status_code == 200
    with service.client() as client:
        file = client.files.upload(ROWS, filename="rows.jsonl").id
        cleaning = client.cleanings.create(file, ["html"])
        cleaning.wait(timeout=120)
    wait_until(lambda: bool(traces.named("job") and traces.named("engine")), 120, "the spans")
    (request,) = (one for one in traces.named("POST /v1/chat/completions"))
    (engine,) = traces.named("engine")
    assert request.trace_id.hex() == engine.trace_id.hex() == "c" * 32
    assert (request.parent_span_id.hex(), engine.parent_span_id) == ("d" * 16, request.span_id)
    (job,) = traces.named("job")
    assert attributes(job)["tunewright.job.id"] == cleaning.id
    parts = [span for span in traces.spans if span.trace_id == job.trace_id and span is not job]
    assert {"prepare", "run", "publish", "attempt"} <= {span.name for span in parts}
    (created,) = (one for one in traces.named("POST /v1/cleanings"))
    assert job.links[0].span_id == created.span_id


def test_its_log_has_lines_of_json_with_ids(service: Service) -> None:
    file = service.data_dir.parent / "t.log"
    body = {"model": BASE, "messages": []}
    requests.delete(
        f"{service.url}/v1/files/file-x", headers={"x-request-id": "mine-2"}, json=body, timeout=60
    )

    def lines() -> list[dict[str, object]]:
        found = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line.get("request_id") == "mine-2"]

    wait_until(lambda: bool(lines()), 60, "the line")
    (line,) = lines()
    assert (line["event"], line["status"]) == ("change", 404)
    assert line["trace_id"]
