"""`tunewright projects` and `tunewright keys` against the service that only pretends."""

from __future__ import annotations

import json
from pathlib import Path

import test_cli
from test_cli import FakeService, Run

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

PROJECTS, ADMIN = "/v1/organization/projects", "/v1/organization/admin_api_keys"
KEYS = f"{PROJECTS}/proj-1/api_keys"
PROJECT = {"id": "proj-1", "name": "team", "status": "active", "created_at": 1}
KEY = {
    "id": "key-1", "name": "indexer", "project_id": "proj-1", "scopes": ["infer", "read"],
    "redacted_value": "sk-tw-...abcd", "created_at": 1,
}  # fmt: skip


def page(*items: object) -> dict[str, object]:
    return {"object": "list", "data": list(items), "has_more": False}


def test_projects(run: Run, service: FakeService) -> None:
    service.replies["POST", PROJECTS] = (200, PROJECT)
    assert run("projects", "create", "team")[:2] == (0, "proj-1 team: active\n")
    assert service.body("POST", PROJECTS) == {"name": "team"}
    service.replies["GET", PROJECTS] = (200, page(PROJECT))
    code, out, _ = run("projects", "list")
    assert (code, "proj-1" in out, "team" in out) == (0, True, True)
    service.replies["POST", f"{PROJECTS}/proj-1"] = (200, {**PROJECT, "name": "search"})
    assert run("projects", "rename", "proj-1", "search")[:2] == (0, "proj-1 search: active\n")
    assert run("projects", "create", "team", "--base", "a")[0] == 0
    assert service.body("POST", PROJECTS) == {"name": "team", "bases": ["a"]}
    service.replies["POST", f"{PROJECTS}/proj-1"] = (200, {**PROJECT, "bases": ["a", "b"]})
    assert run("projects", "bases", "proj-1", "a", "b")[:2] == (0, "a\nb\n")
    assert service.body("POST", f"{PROJECTS}/proj-1") == {"bases": ["a", "b"]}
    service.replies["POST", f"{PROJECTS}/proj-1"] = (200, PROJECT)
    assert run("projects", "bases", "proj-1", "--all")[:2] == (0, "all\n")
    assert service.body("POST", f"{PROJECTS}/proj-1") == {"bases": None}
    assert run("projects", "bases", "proj-1", "a", "--all")[0] == 2
    service.replies["POST", f"{PROJECTS}/proj-1/archive"] = (200, {**PROJECT, "status": "archived"})
    assert run("projects", "archive", "proj-1")[:2] == (0, "proj-1 team: archived\n")


def test_the_keys_of_a_project(run: Run, service: FakeService) -> None:
    service.replies["POST", KEYS] = (200, {**KEY, "value": "sk-tw-secret"})
    asked = ("--project", "proj-1", "--scope", "read", "--scope", "infer", "--days", "2")
    code, out, err = run("keys", "create", "indexer", *asked)
    assert (code, "sk-tw-secret" in out, "not shown again" in err) == (0, True, True)
    body = {"name": "indexer", "scopes": ["read", "infer"], "expires_in_seconds": 2 * 86_400}
    assert service.body("POST", KEYS) == body
    code, out, _ = run("keys", "create", "indexer", *asked, "--json")
    assert (code, json.loads(out)["value"]) == (0, "sk-tw-secret")
    service.replies["GET", KEYS] = (200, page(KEY))
    code, out, _ = run("keys", "list", "--project", "proj-1")
    assert (code, "key-1" in out, "infer, read" in out, "secret" in out) == (0, True, True, False)
    service.replies["POST", f"{KEYS}/key-1/rotate"] = (200, {**KEY, "id": "key-2", "value": "sk-tw-new"})
    code, out, _ = run("keys", "rotate", "key-1", "--project", "proj-1", "--overlap", "60")
    assert (code, "sk-tw-new" in out) == (0, True)
    assert service.body("POST", f"{KEYS}/key-1/rotate") == {"overlap_seconds": 60}
    service.replies["DELETE", f"{KEYS}/key-1"] = (200, {"id": "key-1", "object": "x", "deleted": True})
    assert run("keys", "revoke", "key-1", "--project", "proj-1")[:2] == (0, "key-1 revoked\n")


def test_the_audit_log(run: Run, service: FakeService, tmp_path: Path) -> None:
    log = {
        "id": "audit_log-1", "type": "api_key.created", "effective_at": 1767225600,
        "project": {"id": "proj-1", "name": "team"},
        "actor": {"type": "api_key", "api_key": {"id": "key-1", "type": "service_account"}, "session": None},
        "request": {"id": "r", "method": "POST", "path": KEYS, "status": 200, "ip_address": "10.0.0.7"},
    }  # fmt: skip
    service.replies["GET", "/v1/organization/audit_logs"] = (200, page(log))
    code, out, _ = run("audit", "list", "--type", "api_key.created")
    assert (code, "key-1" in out, "proj-1" in out, f"POST {KEYS}" in out) == (0, True, True, True)
    target = tmp_path / "log.jsonl"
    dates = ("--since", "2026-01-01", "--until", "2026-01-02T00:00:00+01:00")
    assert run("audit", "export", *dates, "-o", str(target))[0] == 0
    (line,) = target.read_text().splitlines()
    assert json.loads(line)["request"]["path"] == KEYS
    code, out, _ = run("audit", "export")
    assert (code, out.strip()) == (0, line)
    assert run("audit", "export", "--since", "yesterday")[0] == 2
    assert run("audit", "export", "-o", str(tmp_path / "no" / "x"))[0] == 1


def test_the_keys_of_admins(run: Run, service: FakeService) -> None:
    admin = {"id": "key-9", "name": "operations", "redacted_value": "sk-tw-...abcd", "created_at": 1}
    service.replies["POST", ADMIN] = (200, {**admin, "value": "sk-tw-admin"})
    code, out, _ = run("keys", "create", "operations", "--admin")
    assert (code, "sk-tw-admin" in out) == (0, True)
    service.replies["GET", ADMIN] = (200, page(admin))
    assert "key-9" in run("keys", "list", "--admin")[1]
    code, _, err = run("keys", "create", "x", "--admin", "--scope", "read")
    assert (code, "all scopes" in err) == (2, True)
