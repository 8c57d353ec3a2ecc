"""`/docs` has every operation, and loads nothing from elsewhere."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from tunewright.api.http.app import build
from tunewright.api.http.docs_page import page_of
from tunewright.config import Settings
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store


@pytest.fixture
def api(store: Store, data: Workspace) -> TestClient:
    return TestClient(build(Settings(data_dir=data.path), store)[0].app, base_url="http://127.0.0.1:8000")


def test_the_page_has_every_operation(api: TestClient) -> None:
    page = api.get("/docs").text
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            assert operation["summary"].replace("'", "&#x27;") in page
        assert path in page


def test_the_page_runs_no_script_and_loads_nothing(api: TestClient) -> None:
    answer = api.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "<script" not in answer.text
    assert re.findall(r"(?:src|href)=.(\S+?)[\"']", answer.text) == ["openapi.json"]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect"])
def test_other_pages_of_the_framework_are_not_there(api: TestClient, path: str) -> None:
    assert api.get(path).status_code == 404


def test_texts_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    operation = {
        "tags": [evil],
        "summary": evil,
        "description": evil,
        "parameters": [{"name": evil, "in": evil, "description": evil}],
        "responses": {
            "200": {"description": evil, "content": {evil: {"example": evil}}},
            "400": {"description": evil},
        },
    }
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "paths": {evil: {"get": operation}},
        "components": {"schemas": {}},
    }
    assert "<script" not in page_of(document)
