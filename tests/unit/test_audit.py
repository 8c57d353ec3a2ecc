"""What is recorded: changes, refusals and starts of jobs, one line each, with who, what and how it ended."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import gateway_for
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

BASE = "tunewright-tiny"
KEY = "the-key-of-16-characters"
ID = {"x-request-id": "mine-1"}


@pytest.fixture
def make(store: Store, data: Workspace) -> Any:
    def client(**options: Any) -> TestClient:
        settings = Settings(data_dir=data.path, **options)
        store.engines.declare([BASE])
        server, spec = build(settings, store)
        spec.gateway = gateway_for(store)
        server.app.state.context = ServiceContext(settings, store, data, spec.control)
        return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    return client


@pytest.fixture
def recorded(caplog: pytest.LogCaptureFixture) -> Any:
    """Takes the lines since the last call."""
    caplog.set_level(logging.INFO, "tunewright.audit")

    def take() -> list[dict[str, Any]]:
        lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "tunewright.audit"]
        caplog.clear()
        for line in lines:
            assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
        return lines

    return take


def test_each_change_is_one_line(make: Any, recorded: Any) -> None:
    api = make()
    api.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "fine-tune"}, headers=ID)
    line = {
        "event": "change",
        "peer": "testclient",
        "request_id": "mine-1",
        "method": "POST",
        "route": "/v1/files",
    }
    assert recorded() == [{**line, "status": 200}]
    api.delete("/v1/models/ft:x", headers=ID)
    assert recorded() == [{**line, "method": "DELETE", "route": "/v1/models/ft:x", "status": 404}]
    api.post("/v1/fine_tuning/jobs", json={}, headers=ID)
    assert recorded() == [{**line, "route": "/v1/fine_tuning/jobs", "status": 400}]


def test_what_changes_nothing_is_not_recorded(make: Any, recorded: Any) -> None:
    api = make()
    for path in ("/v1/models", "/health", "/ready", "/v1/nothing"):
        api.get(path)
    api.post("/v1/chat/completions", json={"model": BASE, "messages": []})
    api.post("/v1/tokenize", json={"model": BASE, "prompt": "x"})
    assert recorded() == []


def test_each_refusal_is_one_line(make: Any, recorded: Any) -> None:
    locked = make(api_key=KEY)
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("DELETE", "/v1/files/x")):
        locked.request(method, path, headers={"authorization": "Bearer wrong", **ID})
        line = {
            "event": "refused",
            "peer": "testclient",
            "request_id": "mine-1",
            "method": method,
            "route": path,
        }
        assert recorded() == [{**line, "status": 401}]
    make().get("/v1/models", headers={"host": "evil.example", **ID})
    (line,) = recorded()
    assert (line["event"], line["status"]) == ("refused", 403)


def test_a_line_is_one_line_of_bounded_length_whatever_is_asked(
    make: Any, recorded: Any, caplog: Any
) -> None:
    api = make()
    for path in ("/v1/models/a%0Ab%22%0D", "/v1/models/" + "x" * 5000):
        api.delete(path)
        for one in caplog.records:
            assert "\n" not in one.getMessage()
            assert len(one.getMessage()) < 500
    assert [line["route"][:12] for line in recorded()] == ["/v1/models/a", "/v1/models/x"]


def test_a_change_that_fails_by_a_fault_is_recorded_too(
    make: Any, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    api = make()
    monkeypatch.setattr("tunewright.store.files.FileStore.get", broken)
    assert api.delete("/v1/files/file-rows").status_code == 500
    (line,) = recorded()
    assert (line["method"], line["status"]) == ("DELETE", 500)


def test_the_lines_are_written_at_every_level_of_the_log() -> None:
    program = (
        "from tunewright.logs import audit, configure_logging\n"
        "configure_logging('error')\n"
        "audit('job_started', job='ftjob-1', kind='fine_tuning', device='cpu', pid=7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    prefix, _, record = line.partition(" tunewright.audit: ")
    assert prefix
    assert json.loads(record)["job"] == "ftjob-1"
