"""Giant names, which no answer repeats, and more streams than are allowed."""

from __future__ import annotations

import json
import time

import pytest
import requests

from tests.abuse.sending import connect, generate, head, post, send
from tests.engine.conftest import Service

GIANT = "n" * 60_000
PATHS = [
    f"/{GIANT}",
    f"/v1/files/{GIANT}",
    f"/v1/files?after={GIANT}",
    f"/v1/models/{GIANT}",
    f"/v1/models/{GIANT}/download",
    f"/v1/adapters/{GIANT}",
    f"/v1/adapters?base={GIANT}",
    f"/v1/adapters?state={GIANT}",
    f"/v1/fine_tuning/jobs/{GIANT}",
    f"/v1/fine_tuning/jobs/{GIANT}/events",
    f"/v1/fine_tuning/jobs?limit={GIANT}",
    f"/v1/fine_tuning/jobs?metadata[a]={GIANT}",
    f"/v1/exports/{GIANT}",
    f"/v1/cleanings/{GIANT}",
    f"/v1/deployments/{GIANT}",
    f"/v1/aliases/{GIANT}",
    f"/v1/aliases/{GIANT}/history",
]
BODIES = {
    "/v1/fine_tuning/jobs": [
        {"model": GIANT, "training_file": "file-rows"},
        {"model": "tiny", "training_file": GIANT},
        {"model": "tiny", "training_file": "file-rows", GIANT: 1},
        {"model": "tiny", "training_file": "file-rows", "tuning": {"type": GIANT}},
        {"model": "tiny", "training_file": "file-rows", "metadata": {GIANT: GIANT}},
        {"model": "tiny", "training_file": "file-rows", "chat_template": "{{ " + GIANT},
    ],
    "/v1/adapters": [
        {"path": "/" + GIANT},
        {"hub_id": GIANT},
        {"hub_id": "a/b", "revision": GIANT},
        {"base": GIANT},
    ],
    "/v1/exports": [{"model": GIANT}, {"model": "tiny", "format": GIANT}],
    "/v1/cleanings": [
        {"file": GIANT, "steps": [{"type": "html"}]},
        {"file": "file-rows", "steps": [{"type": GIANT}]},
        {"file": "file-rows", "steps": [{"type": "html", GIANT: 1}]},
        {"file": "file-rows", "steps": [{"type": "language", "keep": [GIANT]}]},
        {"file": "file-rows", "steps": [{"type": "leaks", "against": GIANT}]},
        {"file": "file-rows", "steps": [{"type": "length", "min_answer": int("9" * 4000)}]},
    ],
    "/v1/deployments": [{"model": GIANT}, {"model": "tiny", "engine": {GIANT: 1}}],
    "/v1/chat/completions": [{"model": GIANT}, {"model": "tiny", "stop_token_ids": [int("9" * 4000)]}],
}


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_no_answer_repeats_a_giant_name(service: Service, path: str) -> None:
    status, text = send(service, head("GET", path))
    assert status in (200, 400, 404)
    assert len(text) < 1500, text[:200]


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path in BODIES for body in BODIES[path]], ids=range(22)
)
def test_no_answer_repeats_a_giant_value(service: Service, path: str, body: dict[str, object]) -> None:
    status, text = post(service, path, json.dumps(body).encode())
    assert status in (400, 404), text[:200]
    assert len(text) < 1500, text[:200]


def test_streams_of_events_are_limited_and_stop_nobody(service: Service) -> None:
    jobs = requests.get(f"{service.url}/v1/fine_tuning/jobs?limit=20", timeout=10).json()["data"]
    job = next(job["id"] for job in jobs if job["status"] == "queued")
    path = f"/v1/fine_tuning/jobs/{job}/events?stream=true"
    connections = [connect(service) for _ in range(300)]
    try:
        for connection in connections:
            connection.sendall(head("GET", path))
        statuses = [connection.recv(12)[-3:] for connection in connections]
        assert (statuses.count(b"200"), statuses.count(b"429")) == (256, 44)
        assert generate(service) < 2
    finally:
        for connection in connections:
            connection.close()
    deadline = time.monotonic() + 20
    while requests.get(service.url + path, stream=True, timeout=10).status_code == 429:
        assert time.monotonic() < deadline, "the places are free again"
        time.sleep(0.1)
