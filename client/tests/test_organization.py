"""Projects and their keys: what is sent, and how the answers are read."""

from __future__ import annotations

import asyncio

from fake_server import FakeServer, ok
from samples import page

from tunewright_client import AsyncTunewright, NewApiKey, Tunewright

PROJECTS, ADMIN = "/v1/organization/projects", "/v1/organization/admin_api_keys"
KEYS = f"{PROJECTS}/proj-1/api_keys"
PROJECT = {"id": "proj-1", "object": "organization.project", "name": "team", "status": "active"}
KEY = {
    "id": "key-1",
    "name": "indexer",
    "project_id": "proj-1",
    "scopes": ["read"],
    "redacted_value": "sk-...1",
}
DELETED = {"id": "key-1", "object": "organization.project.api_key.deleted", "deleted": True}


def test_the_audit_log_is_listed_page_by_page(server: FakeServer, client: Tunewright) -> None:
    logs = [{"id": f"audit_log-{n}", "type": "project.created", "effective_at": n} for n in range(2)]
    first = {**page([logs[0]]), "has_more": True, "last_id": "audit_log-0"}
    server.on("GET", "/v1/organization/audit_logs", ok(first), ok(page([logs[1]])))
    found = client.audit_logs.list(since=5, actor_ids=["key-1"], oldest_first=True, limit=1)
    assert [one.effective_at for one in found] == [0, 1]
    asked = {"effective_at[gte]": "5", "actor_ids": "key-1", "order": "asc", "limit": "1"}
    assert [one.query for one in server.requests] == [asked, {**asked, "after": "audit_log-0"}]


def test_projects_are_made_listed_renamed_and_archived(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", PROJECTS, ok(PROJECT))
    assert client.projects.create("team").id == "proj-1"
    assert server.requests[-1].json == {"name": "team"}
    server.on("GET", PROJECTS, ok(page([PROJECT])))
    assert [one.name for one in client.projects.list(archived=True, limit=5)] == ["team"]
    assert server.requests[-1].query == {"include_archived": "true", "limit": "5"}
    server.on("GET", f"{PROJECTS}/proj-1", ok(PROJECT))
    assert client.projects.retrieve("proj-1").status == "active"
    server.on("POST", f"{PROJECTS}/proj-1", ok(PROJECT))
    client.projects.rename("proj-1", "search")
    assert server.requests[-1].json == {"name": "search"}
    client.projects.create("team", bases=["a"])
    assert server.requests[-1].json == {"name": "team", "bases": ["a"]}
    server.on("POST", f"{PROJECTS}/proj-1", ok({**PROJECT, "bases": ["a"]}))
    for bases in (["a"], None):
        assert client.projects.limit_bases("proj-1", bases).bases == ("a",)
        assert server.requests[-1].json == {"bases": bases}
    server.on("POST", f"{PROJECTS}/proj-1/archive", ok({**PROJECT, "status": "archived"}))
    assert client.projects.archive("proj-1").status == "archived"


def test_keys_are_made_listed_rotated_and_revoked(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", KEYS, ok({**KEY, "value": "sk-1"}))
    made = client.api_keys.create("proj-1", "indexer", scopes=["read"], expires_in=60)
    assert isinstance(made, NewApiKey)
    assert (made.value, made.scopes) == ("sk-1", ("read",))
    assert server.requests[-1].json == {"name": "indexer", "scopes": ["read"], "expires_in_seconds": 60}
    server.on("GET", KEYS, ok(page([KEY])))
    assert [one.id for one in client.api_keys.list("proj-1")] == ["key-1"]
    server.on("GET", f"{KEYS}/key-1", ok(KEY))
    assert client.api_keys.retrieve("proj-1", "key-1").redacted_value == "sk-...1"
    server.on("POST", f"{KEYS}/key-1/rotate", ok({**KEY, "id": "key-2", "value": "sk-2"}))
    assert client.api_keys.rotate("proj-1", "key-1", overlap=9).value == "sk-2"
    assert server.requests[-1].json == {"overlap_seconds": 9}
    server.on("DELETE", f"{KEYS}/key-1", ok(DELETED))
    assert client.api_keys.revoke("proj-1", "key-1").deleted


def test_the_keys_of_admins_too_also_with_asyncio(server: FakeServer) -> None:
    key = {"id": "key-1", "name": "operations"}
    server.on("POST", ADMIN, ok({**key, "value": "sk-1"}))
    server.on("GET", ADMIN, ok(page([key])))
    server.on("GET", f"{ADMIN}/key-1", ok(key))
    server.on("POST", f"{ADMIN}/key-1/rotate", ok({**key, "value": "sk-2"}))
    server.on("DELETE", f"{ADMIN}/key-1", ok(DELETED))

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            assert (await client.admin_api_keys.create("operations")).value == "sk-1"
            assert [one.id async for one in client.admin_api_keys.list()] == ["key-1"]
            assert (await client.admin_api_keys.retrieve("key-1")).name == "operations"
            assert (await client.admin_api_keys.rotate("key-1")).value == "sk-2"
            assert (await client.admin_api_keys.revoke("key-1")).deleted

    asyncio.run(run())


def test_limits_are_set(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", f"{PROJECTS}/proj-1", ok({**PROJECT, "limits": {"requests_per_minute": 60}}))
    assert client.projects.limit("proj-1", {"requests_per_minute": 60}).limits.requests_per_minute == 60
    assert server.requests[-1].json == {"limits": {"requests_per_minute": 60}}
    server.on("POST", f"{KEYS}/key-1", ok({**KEY, "limits": {}}))
    assert client.api_keys.limit("proj-1", "key-1", {"tokens_per_minute": None}).limits.adapters is None
    assert server.requests[-1].json == {"limits": {"tokens_per_minute": None}}
    server.on("POST", KEYS, ok({**KEY, "value": "sk-1"}))
    client.api_keys.create("proj-1", "indexer", limits={"concurrent_requests": 4})
    assert server.requests[-1].json["limits"] == {"concurrent_requests": 4}


def test_usage_is_read_page_by_page(server: FakeServer, client: Tunewright) -> None:
    path = "/v1/organization/usage/completions"
    result = {"input_tokens": 7, "output_tokens": 3, "num_model_requests": 1, "model": "tiny"}
    bucket = {"object": "bucket", "start_time": 0, "end_time": 86400, "results": [result]}
    first = {"object": "page", "data": [bucket], "has_more": True, "next_page": "86400"}
    server.on("GET", path, ok(first), ok({**first, "has_more": False, "next_page": None}))
    found = client.usage.completions(start=0, group_by=["model"], models=["tiny"], batch=False)
    assert [one.results[0].model for one in found] == ["tiny", "tiny"]
    asked = {"start_time": "0", "bucket_width": "1d", "group_by": "model", "models": "tiny", "batch": "false"}
    assert [request.query for request in server.requests] == [asked, {**asked, "page": "86400"}]
    cost = {"amount": {"value": 1.5, "currency": "usd"}, "line_item": "tiny, input_tokens", "quantity": 2}
    page_of_costs = {"data": [{**bucket, "results": [cost]}], "has_more": False, "next_page": None}
    server.on("GET", "/v1/organization/costs", ok(page_of_costs))
    server.on("GET", "/v1/organization/usage/gpu_seconds", ok({**page_of_costs, "data": []}))
    server.on("GET", "/v1/organization/usage/embeddings", ok({**page_of_costs, "data": []}))

    async def run() -> None:
        async with AsyncTunewright(server.url) as other:
            (told,) = await other.usage.costs(group_by=["line_item"])
            assert told.results[0].amount is not None
            assert told.results[0].amount.value == 1.5
            assert await other.usage.gpu_seconds() == await other.usage.embeddings() == []

    asyncio.run(run())
