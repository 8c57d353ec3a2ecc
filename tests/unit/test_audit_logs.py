"""The audit log in the database: what is written of a request, when the database fails, and what is listed to whom."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError
from starlette.testclient import TestClient

from fake_engine import gateway_for
from tunewright.api.http import trail
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.api.http.trail import FORBIDDEN, REFUSALS_A_MINUTE, REFUSED, AuditTrail, type_of
from tunewright.config import RetentionOptions, Settings
from tunewright.errors import InvalidRequest
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.retention import Retention
from tunewright.store.audit import Audited, AuditFilter
from tunewright.store.keys import Scope
from tunewright.store.store import Store

OPERATOR = "the-operators-key-0123"
LOGS = "/v1/organization/audit_logs"
EVERYTHING = AuditFilter()


def types(store: Store, wanted: AuditFilter = EVERYTHING, **how: Any) -> list[str]:
    return [one.type for one in store.audit.list(wanted, **how)[0]]


@pytest.mark.each_database
def test_rows_are_added_listed_and_never_changed(store: Store) -> None:
    for number in range(5):
        store.audit.add(
            [Audited(f"t{number}", "proj-a" if number else "", "key-a", effective_at=100.0 + number)]
        )
    assert types(store) == ["t4", "t3", "t2", "t1", "t0"]
    assert types(store, ascending=True, limit=2) == ["t0", "t1"]
    ids = {one.type: one.id for one in store.audit.list(EVERYTHING)[0]}
    assert types(store, after=ids["t3"], limit=2) == ["t2", "t1"]
    assert types(store, before=ids["t1"], limit=2) == ["t3", "t2"], "the page that is next to it"
    assert store.audit.list(EVERYTHING, before=ids["t1"], limit=2)[1]
    assert types(store, after=ids["t1"], ascending=True) == ["t2", "t3", "t4"]
    assert types(store, before=ids["t2"], ascending=True) == ["t0", "t1"]
    assert types(store, AuditFilter(from_time=101, before_time=103)) == ["t2", "t1"]
    assert types(store, AuditFilter(types=["t1", "t9"], actors=["key-a"])) == ["t1"]
    assert types(store.of("proj-a")) == ["t4", "t3", "t2", "t1"]
    with pytest.raises(InvalidRequest, match="list before"):
        store.of("proj-b").audit.list(EVERYTHING, before=ids["t1"])
    with pytest.raises(DatabaseError, match="cannot be changed"), store.database.begin() as connection:
        connection.execute(text("UPDATE audit_logs SET actor = 'somebody else'"))
    assert types(store, AuditFilter(actors=["somebody else"])) == []
    store.audit.add([Audited("t6", subject="a\0b\ud800", path="/v1/models/\udcff")])
    assert store.audit.list(EVERYTHING, limit=1)[0][0].subject == "ab?", (
        "no name keeps others from being written"
    )


def test_old_rows_are_deleted_where_the_operator_says_so(store: Store, data: Workspace) -> None:
    day = 86_400.0
    store.audit.add([Audited(f"t{number}", effective_at=number * day) for number in range(4)])
    for days, left in ((None, 4), (2.5, 2), (1.0, 1)):
        Retention(RetentionOptions(keep_audit_days=days), store, data, lambda: 4 * day - 1)._audit()
        assert len(types(store)) == left


@pytest.mark.parametrize(
    ("method", "route", "status", "type"),
    [
        ("POST", "/v1/organization/projects", 200, "project.created"),
        ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}/rotate", 200, "api_key.updated"),
        ("DELETE", "/v1/organization/admin_api_keys/{key_id}", 404, "api_key.deleted"),
        ("POST", "/v1/fine_tuning/jobs", 200, "resource.created"),
        ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel", 200, "resource.updated"),
        ("PUT", "/v1/aliases/{name}", 200, "resource.updated"),
        ("DELETE", "/v1/models/{model}", 200, "resource.deleted"),
        ("GET", "/v1/models", 401, REFUSED),
        ("POST", "/v1/files", 403, FORBIDDEN),
    ],
)
def test_requests_have_openais_types_where_there_are_such(
    method: str, route: str, status: int, type: str
) -> None:
    assert type_of(method, route, status) == type


def test_what_cannot_be_written_is_kept_and_written_later_in_its_order(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trail, "_AGAIN_AFTER", 0.01)
    add, tries = store.audit.add, 0

    def fail_twice(done: Any) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise OSError("the disk is full")
        add(done)

    monkeypatch.setattr(store.audit, "add", fail_twice)

    async def run() -> None:
        kept = AuditTrail(store)
        kept.note(Audited("t0"))
        while tries < 1:
            await asyncio.sleep(0.002)
        kept.note(Audited("t1"))
        while len(types(store)) < 2:
            await asyncio.sleep(0.005)
        kept.note(Audited("t2"))
        await kept.close()

    asyncio.run(run())
    assert types(store) == ["t2", "t1", "t0"]
    assert len([one for one in caplog.records if "kept in memory" in one.message]) == 1


def test_closed_it_writes_all_that_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In several pieces, where the disk was full until then; and does not wait for one that is full."""
    monkeypatch.setattr(trail, "_AGAIN_AFTER", 600.0)
    monkeypatch.setattr(trail, "_MOST_AT_ONCE", 2)
    add, tries, is_full = store.audit.add, 0, True

    def may_be_full(done: Any) -> None:
        nonlocal tries
        tries += 1
        if is_full:
            raise OSError("the disk is full")
        add(done)

    monkeypatch.setattr(store.audit, "add", may_be_full)

    async def run() -> None:
        nonlocal is_full
        kept = AuditTrail(store)
        for number in range(5):
            kept.note(Audited(f"t{number}"))
        while not tries:
            await asyncio.sleep(0.002)
        is_full = False
        await kept.close()
        assert types(store) == ["t4", "t3", "t2", "t1", "t0"]
        is_full = True
        other = AuditTrail(store)
        other.note(Audited("t5"))
        await asyncio.wait_for(other.close(), 240)

    asyncio.run(run())
    assert "1 rows are missing in the audit log" in caplog.text


def test_refusals_are_written_at_a_bounded_rate_and_the_others_counted(store: Store) -> None:
    now = 60.0

    async def run() -> None:
        nonlocal now
        kept = AuditTrail(store, lambda: now)
        for _ in range(REFUSALS_A_MINUTE + 40):
            kept.note(Audited(REFUSED))
        now += 60
        kept.note(Audited(FORBIDDEN))
        kept.note(Audited("resource.created"))
        await kept.close()

    asyncio.run(run())
    found = store.audit.list(EVERYTHING)[0]
    assert len(found) == REFUSALS_A_MINUTE + 2
    assert found[1].details == {"refusals_left_out": 40}


@pytest.fixture
def api(store: Store, data: Workspace) -> TestClient:
    settings = Settings(data_dir=data.path, api_key=OPERATOR)
    server, spec = build(settings, store)
    spec.gateway = gateway_for(store)
    server.app.state.context = ServiceContext(settings, store, data, spec.control, trail=Noted(store))
    return TestClient(server.app, base_url="http://127.0.0.1:8000", headers=bearer(OPERATOR))


class Noted(AuditTrail):
    """Writes at once."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.note = lambda done: store.audit.add([done])  # type: ignore[method-assign]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_each_change_and_refusal_is_told_with_who_and_what_and_to_its_project_alone(
    api: TestClient, store: Store
) -> None:
    project = api.post("/v1/organization/projects", json={"name": "team"}).json()["id"]
    keys = f"/v1/organization/projects/{project}/api_keys"
    scopes = [scope.value for scope in Scope]
    key = api.post(keys, json={"name": "k", "scopes": scopes}).json()
    api.delete("/v1/files/file-x", headers={**bearer(key["value"]), "x-request-id": "mine-1"})
    api.get("/v1/models", headers=bearer("wrong-key-0123456789"))
    api.get("/v1/organization/projects", headers=bearer(key["value"]))
    api.get("/v1/models")

    every = api.get(LOGS).json()
    assert [one["type"] for one in every["data"]] == [
        FORBIDDEN, REFUSED, "resource.deleted", "api_key.created", "project.created"
    ]  # fmt: skip
    deleted = every["data"][2]
    assert deleted["actor"] == {
        "type": "api_key", "api_key": {"id": key["id"], "type": "service_account"}, "session": None
    }  # fmt: skip
    assert deleted["project"] == {"id": project, "name": "team"}
    assert deleted["resource"] == {"id": "file-x"}
    assert deleted["request"] == {
        "id": "mine-1", "method": "DELETE", "path": "/v1/files/file-x", "status": 404, "ip_address": "testclient"
    }  # fmt: skip
    assert every["data"][1]["actor"] is every["data"][1]["project"] is None
    assert key["value"] not in json.dumps(every)
    own = api.get(LOGS, headers=bearer(key["value"])).json()["data"]
    assert [one["type"] for one in own] == [FORBIDDEN, "resource.deleted", "api_key.created"]

    at = deleted["effective_at"]
    for query, number in (
        (f"project_ids[]={project}", 3), (f"actor_ids={key['id']}", 2), ("event_types=project.created", 1),
        ("resource_ids=file-x", 1), (f"effective_at[gt]={at + 60}", 0), (f"effective_at[gte]={at - 60}", 5),
        (f"effective_at[lt]={at - 60}", 0), (f"effective_at[lte]={at + 60}", 5), ("actor_emails=a@b", 0),
    ):  # fmt: skip
        assert len(api.get(f"{LOGS}?{query}").json()["data"]) == number, query
    page = api.get(f"{LOGS}?limit=2").json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    following = api.get(f"{LOGS}?limit=2&after={page['last_id']}").json()["data"]
    assert following == every["data"][2:4]
    assert api.get(f"{LOGS}?limit=2&before={following[0]['id']}").json()["data"] == page["data"]
    assert api.get(f"{LOGS}?order=asc").json()["data"] == every["data"][::-1]
    for wrong in ("effective_at[gt]=now", "limit=0", "after=nothing", "order=up", "project_ids=a%00b"):
        assert api.get(f"{LOGS}?{wrong}").status_code == 400, wrong


def test_whom_a_token_is_for_is_told_as_a_session(api: TestClient, store: Store) -> None:
    store.audit.add([Audited("resource.created", "default", "oidc-1", "alice@corp.example", "10.0.0.7")])
    (one,) = api.get(f"{LOGS}?actor_emails=alice@corp.example").json()["data"]
    assert one["actor"]["session"] == {
        "user": {"id": "oidc-1", "email": "alice@corp.example"}, "ip_address": "10.0.0.7"
    }  # fmt: skip
    assert one["request"] is None


def test_the_openai_package_reads_it(api: TestClient, store: Store) -> None:
    store.audit.add(
        [Audited("project.created", "default", "key-1", effective_at=100.0 + n) for n in range(5)]
    )
    httpx: Any = importlib.import_module("httpx2" if openai.__version__.startswith("3.") else "httpx")

    def answer(request: Any) -> Any:
        told = api.get(request.url.raw_path.decode())
        return httpx.Response(told.status_code, json=told.json())

    transport = httpx.MockTransport(answer)
    client = openai.OpenAI(
        base_url="http://t/v1",
        api_key="none",
        admin_api_key="none",
        http_client=httpx.Client(transport=transport),
    )
    logs: Callable[..., Any] = client.admin.organization.audit_logs.list
    found = logs(effective_at={"gt": 101}, event_types=["project.created"], project_ids=["default"], limit=2)
    every = list(found)
    assert [one.effective_at for one in every] == [104, 103, 102]
    assert every[0].actor.api_key.id == "key-1"
