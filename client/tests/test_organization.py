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
