"""API keys: what a scope allows, when a key is refused, who may make one, and what many of them cost."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import insert, update
from starlette.testclient import TestClient

from fake_engine import gateway_for
from tunewright.api.http import access
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.http.keyring import Keyring
from tunewright.config import Settings
from tunewright.registry.workspace import Workspace
from tunewright.store.keys import Scope, hash_of
from tunewright.store.store import Store
from tunewright.store.tables import api_keys

BASE = "tunewright-tiny"
OPERATOR = "the-operators-key-0123"
PROJECTS, ADMIN_KEYS = "/v1/organization/projects", "/v1/organization/admin_api_keys"
DEFAULT_KEYS = f"{PROJECTS}/default/api_keys"
Make = Callable[..., TestClient]


@pytest.fixture(scope="module")
def built() -> dict[str | None, Any]:
    return {}


@pytest.fixture
def make(store: Store, data: Workspace, built: dict[str | None, Any]) -> Make:
    def client(key: str | None = OPERATOR) -> TestClient:
        settings = Settings(data_dir=data.path, api_key=key)
        store.engines.declare([BASE])
        if key not in built:
            built[key] = build(settings, store)
        server, spec = built[key]
        spec.gateway = gateway_for(store)
        server.app.state.context = ServiceContext(settings, store, data, spec.control)
        return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    return client


@pytest.fixture
def api(make: Make) -> TestClient:
    return make()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def made(api: TestClient, path: str = DEFAULT_KEYS, key: str = OPERATOR, **body: Any) -> dict[str, Any]:
    answer = api.post(path, json={"name": "a key", **body}, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def status(api: TestClient, key: str, path: str = "/v1/files") -> int:
    return int(api.get(path, headers=bearer(key)).status_code)


def test_every_route_checks_its_scope_before_anything_else(api: TestClient) -> None:
    found = set()
    for route in api.app.router.routes:  # type: ignore[attr-defined]
        if isinstance(route, APIRoute):
            (method,) = route.methods
            assert isinstance(route.app, access._Guarded)
            assert route.app._needed is access.SCOPES[method, route.path_format]
            found.add((method, route.path_format))
    assert found == set(access.SCOPES)


def test_a_key_opens_what_its_scopes_name_and_nothing_else(api: TestClient) -> None:
    needed: dict[tuple[str, str], Scope | None] = {
        ("GET", "/v1/files"): Scope.READ,
        ("POST", "/v1/tokenize"): Scope.INFER,
        ("POST", "/v1/fine_tuning/jobs"): Scope.TRAIN,
        ("DELETE", "/v1/files/x"): Scope.TRAIN,
        ("GET", DEFAULT_KEYS): Scope.ADMIN,
        ("GET", PROJECTS): None,
        ("GET", "/metrics"): None,
    }
    for scope in Scope:
        key = made(api, scopes=[scope.value])["value"]
        for (method, path), wanted in needed.items():
            answer = api.request(method, path, headers=bearer(key), json={})
            assert (answer.status_code == 403) == (scope is not wanted), (method, path, scope, answer.text)
            if answer.status_code == 403:
                assert answer.json()["error"]["code"] == "insufficient_permissions"


def test_a_key_is_shown_once_and_stored_as_a_hash(api: TestClient, store: Store, data: Workspace) -> None:
    key = made(api, scopes=["read"])
    assert len(key["value"]) > 40
    assert key["value"].endswith(key["redacted_value"][-4:])
    shown = api.get(f"{DEFAULT_KEYS}/{key['id']}", headers=bearer(OPERATOR)).text
    assert key["value"] not in shown
    assert hash_of(key["value"]) not in shown
    store.close()
    for path in data.path.glob("tunewright.db*"):
        content = path.read_bytes()
        assert key["value"].encode() not in content
    with sqlite3.connect(data.path / "tunewright.db") as connection:
        assert connection.execute("SELECT hash FROM api_keys").fetchall() == [(hash_of(key["value"]),)]


def test_a_revoked_key_is_refused_by_the_next_request(api: TestClient) -> None:
    key = made(api)
    assert [status(api, key["value"]) for _ in range(3)] == [200] * 3
    gone = api.delete(f"{DEFAULT_KEYS}/{key['id']}", headers=bearer(OPERATOR))
    assert gone.json() == {"id": key["id"], "object": "organization.project.api_key.deleted", "deleted": True}
    assert status(api, key["value"]) == 401
    again = api.delete(f"{DEFAULT_KEYS}/{key['id']}", headers=bearer(OPERATOR))
    assert (again.status_code, again.json()["error"]["code"]) == (404, "api_key_not_found")


def test_a_revocation_by_another_process_is_seen(api: TestClient, data: Workspace) -> None:
    key = made(api)
    assert status(api, key["value"]) == 200
    with sqlite3.connect(data.path / "tunewright.db") as connection:
        connection.execute("UPDATE api_keys SET revoked_at = 1")
    assert status(api, key["value"]) == 401


def test_an_expired_key_is_refused(api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = made(api, expires_in_seconds=3600)
    assert status(api, key["value"]) == 200
    later = time.time() + 3601
    monkeypatch.setattr(access.time, "time", lambda: later)
    assert status(api, key["value"]) == 401


def test_a_rotated_key_ends_at_once_or_after_its_overlap(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(api, name="indexer", scopes=["read"])
    answer = api.post(f"{DEFAULT_KEYS}/{first['id']}/rotate", headers=bearer(OPERATOR))
    second = answer.json()
    assert (second["name"], second["scopes"], second["id"] != first["id"]) == ("indexer", ["read"], True)
    assert (status(api, first["value"]), status(api, second["value"])) == (401, 200)
    third = api.post(
        f"{DEFAULT_KEYS}/{second['id']}/rotate", json={"overlap_seconds": 60}, headers=bearer(OPERATOR)
    ).json()
    assert (status(api, second["value"]), status(api, third["value"])) == (200, 200)
    later = time.time() + 61
    monkeypatch.setattr(access.time, "time", lambda: later)
    assert (status(api, second["value"]), status(api, third["value"])) == (401, 200)


@pytest.mark.each_database
@pytest.mark.parametrize("life", [None, 5 * 3600.0])
def test_a_key_that_is_rotated_again_passes_on_its_whole_life(store: Store, life: float | None) -> None:
    """A client that has lost the answer asks again."""
    keys = store.of("default").keys
    old, _ = keys.create("k", [Scope.READ], expires_at=time.time() + life if life is not None else None)
    for overlap in (3600.0, 7200.0):
        rotated = keys.rotate(old.id, overlap=overlap)
        assert rotated is not None
        new, _ = rotated
        if life is None:
            assert new.ends_at is None
        else:
            assert new.ends_at == pytest.approx(new.created_at + life, abs=10)
    ending = keys.get(old.id)
    assert ending is not None
    assert ending.ends_at is not None
    assert 0 < ending.ends_at - time.time() <= 3600, "to rotate it again makes it live no longer"
    assert not ending.is_valid(ending.ends_at)


def test_a_key_passes_on_no_more_than_it_has(api: TestClient) -> None:
    manager = made(api, scopes=["admin", "read"])["value"]
    assert made(api, key=manager, scopes=["read"])["scopes"] == ["read"]
    refused = api.post(DEFAULT_KEYS, json={"name": "x", "scopes": ["train"]}, headers=bearer(manager))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    whole = made(api, scopes=["train"])
    rotated = api.post(f"{DEFAULT_KEYS}/{whole['id']}/rotate", headers=bearer(manager))
    assert rotated.status_code == 403
    for method, path in (("GET", PROJECTS), ("POST", ADMIN_KEYS), ("GET", "/metrics")):
        assert api.request(method, path, json={"name": "x"}, headers=bearer(manager)).status_code == 403


def test_an_admins_key_may_do_everything(api: TestClient) -> None:
    admin = made(api, ADMIN_KEYS)
    project = made(api, PROJECTS, key=admin["value"], name="team")["id"]
    key = made(api, f"{PROJECTS}/{project}/api_keys", key=admin["value"])
    assert status(api, key["value"]) == 200
    assert status(api, admin["value"], ADMIN_KEYS) == 200
    assert api.delete(f"{ADMIN_KEYS}/{admin['id']}", headers=bearer(OPERATOR)).status_code == 200
    assert status(api, admin["value"]) == 401


def test_the_keys_of_an_archived_project_are_refused(api: TestClient) -> None:
    project = made(api, PROJECTS, name="team")["id"]
    key = made(api, f"{PROJECTS}/{project}/api_keys")["value"]
    assert status(api, key) == 200
    assert api.post(f"{PROJECTS}/{project}/archive", headers=bearer(OPERATOR)).json()["status"] == "archived"
    assert status(api, key) == 401
    acting = {**bearer(OPERATOR), "OpenAI-Project": project}
    assert api.get("/v1/files", headers=acting).status_code == 404
    listed = api.get(PROJECTS, headers=bearer(OPERATOR)).json()["data"]
    assert project not in [one["id"] for one in listed]
    default = api.post(f"{PROJECTS}/default/archive", headers=bearer(OPERATOR))
    assert default.status_code == 400


def test_a_service_without_keys_asks_for_one_as_soon_as_there_is_one(make: Make) -> None:
    api = make(None)
    assert api.get("/v1/files").status_code == 200
    assert status(api, "whatever") == 200
    early = api.post(DEFAULT_KEYS, json={"name": "x"})
    assert (early.status_code, early.json()["error"]["code"]) == (400, "no_admin_key")
    admin = api.post(ADMIN_KEYS, json={"name": "x"}).json()
    assert api.get("/v1/files").status_code == 401
    assert status(api, "whatever") == 401
    assert status(api, admin["value"]) == 200
    assert api.delete(f"{ADMIN_KEYS}/{admin['id']}", headers=bearer(admin["value"])).status_code == 200
    assert api.get("/v1/files").status_code == 401, "the last key is gone, and the service is not open again"
    assert api.get("/health").status_code == 200


def test_the_openai_package_administers_it(api: TestClient) -> None:
    client = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1",
        api_key=OPERATOR,
        admin_api_key=OPERATOR,
        http_client=_through(api),
    )
    organization = client.admin.organization
    project = organization.projects.create(name="team")
    assert project.status == "active"
    assert project in list(organization.projects.list())
    key = made(api, f"{PROJECTS}/{project.id}/api_keys")
    (listed,) = list(organization.projects.api_keys.list(project.id))
    assert (listed.id, listed.redacted_value) == (key["id"], key["redacted_value"])
    assert organization.projects.api_keys.retrieve(key["id"], project_id=project.id).name == "a key"
    assert organization.projects.api_keys.delete(key["id"], project_id=project.id).deleted
    admin = organization.admin_api_keys.create(name="operations", expires_in_seconds=3600)
    assert status(api, admin.value) == 200
    assert [one.id for one in organization.admin_api_keys.list()] == [admin.id]
    assert organization.admin_api_keys.delete(admin.id).deleted
    assert status(api, admin.value) == 401


def _through(api: TestClient) -> Any:
    import httpx2

    def send(request: httpx2.Request) -> httpx2.Response:
        answer = api.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        return httpx2.Response(answer.status_code, content=answer.content, headers=dict(answer.headers))

    return httpx2.Client(transport=httpx2.MockTransport(send))


def test_a_change_is_recorded_with_the_project_and_the_key(
    api: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright.audit")
    project = made(api, PROJECTS, name="team")["id"]
    key = made(api, f"{PROJECTS}/{project}/api_keys")
    api.delete("/v1/files/file-x", headers=bearer(key["value"]))
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "tunewright.audit"]
    assert [(line["project"], line["key"]) for line in lines] == [
        ("default", "TUNEWRIGHT_API_KEY"),
        ("default", "TUNEWRIGHT_API_KEY"),
        (project, key["id"]),
    ]
    assert key["value"] not in caplog.text


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x", "scopes": []}, {"name": "x", "scopes": ["all"]},
                                  {"name": "x", "expires_in_seconds": 1}, {"name": "x", "more": 1}])  # fmt: skip
def test_a_wrong_request_for_a_key_is_refused(api: TestClient, body: dict[str, Any]) -> None:
    answer = api.post(DEFAULT_KEYS, json=body, headers=bearer(OPERATOR))
    assert answer.status_code == 400, answer.text


def test_when_a_key_was_used_is_recorded_about_once_an_hour(store: Store) -> None:
    key, value = store.of("default").keys.create("x", [Scope.READ])

    async def use() -> None:
        keyring = Keyring(store)
        keyring._written_at = 0.0
        found = await keyring.find(value.encode())
        assert found is not None
        keyring.note_use(found)
        assert keyring._writing is not None
        await keyring._writing
        again = await keyring.find(value.encode())
        assert again is not None
        assert again.last_used_at is not None
        keyring.note_use(again)
        assert keyring._used == {}
        keyring.close()

    asyncio.run(use())
    used = store.of("default").keys.get(key.id)
    assert used is not None
    assert used.last_used_at is not None
    assert used.last_used_at > time.time() - 60


def test_a_key_is_looked_up_once_while_nothing_changes_however_many_there_are(store: Store) -> None:
    """What a request does is the same with 1 key and with 10,000: a look at `data_version`, and one at a dictionary."""
    _, value = store.of("default").keys.create("x", [Scope.READ])
    rows = [
        {"id": f"key-{number}", "project": "default", "name": "x", "hash": hash_of(str(number)), "redacted": "",
         "scopes": ["read"], "created_at": 1.0}
        for number in range(10_000)
    ]  # fmt: skip
    with store.database.begin() as connection:
        connection.execute(insert(api_keys), rows)
    reads = []

    async def ask() -> None:
        keyring = Keyring(store)
        real = store.keys.by_hashes

        class Counted:
            def by_hashes(self, hashes: list[str]) -> Any:
                reads.append(list(hashes))
                return real(hashes)

        keyring._store = type("S", (), {"keys": Counted()})()  # type: ignore[assignment]
        for number in range(50):
            for _ in range(3):
                found = await keyring.find(str(number).encode())
                assert found is not None
                assert found.id == f"key-{number}"
        assert await keyring.find(b"none") is None
        assert len(reads) == 51
        with store.database.begin() as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == "key-7").values(revoked_at=1.0))
        assert await keyring.find(b"7") is None
        keyring.close()

    asyncio.run(ask())
    with store.database.read() as connection:
        plan = str(
            connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN SELECT * FROM api_keys WHERE hash IN ('a') AND revoked_at IS NULL"
            ).all()
        )
    assert "USING INDEX" in plan
    assert "SCAN" not in plan
    assert value.startswith("sk-tw-")
