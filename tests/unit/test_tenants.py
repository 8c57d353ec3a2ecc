"""No route tells one project anything of another: what is another's is answered exactly as what does not exist.

The routes are those of the application: a new one fails here until it can be tested. Those with an id or a name in the
path are tested with each thing that the name may stand for; the others have what is sent to them in `BODIES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_engine import gateway_for
from rows import PRODUCT, engine_info
from tenants import BASE, Tenant, make_tenant, rows_of
from tunewright.api.http.access import SCOPES
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.registry.workspace import Workspace
from tunewright.store.states import EngineState
from tunewright.store.store import Store

OPERATOR = "the-operators-key-0123"
OTHER_BASE = "base-of-others"
"""Which one of the two projects may not use."""
MISSING = {
    "project": "proj-" + "x" * 24,
    "key": "key-" + "x" * 24,
    "file": "file-" + "x" * 24,
    "job": "ftjob-" + "x" * 24,
    "unfinished": "ftjob-" + "y" * 24,
    "adapter": f"ft:{BASE}:x:missing1",
    "adapter's id": "adapter-" + "x" * 24,
    "checkpoint": f"ft:{BASE}:x:missing1:ckpt-step-1",
    "full": f"ft:{BASE}:x:missing2",
    "deployment": "deploy-" + "x" * 24,
    "alias": "bot-x",
    "base": "base-that-is-missing",
    "export": "export-" + "x" * 24,
    "evaluation": "eval-" + "x" * 24,
    "cleaning": "clean-" + "x" * 24,
    "synthesis": "synth-" + "x" * 24,
    "batch": "batch-" + "x" * 24,
    "upload": "upload-" + "x" * 24,
    "webhook": "webhook-" + "x" * 24,
    "delivery": "delivery-" + "x" * 24,
    "audit log": "audit_log-" + "x" * 24,
}
NAMED_BY = {
    "file_id": ["file"],
    "job_id": ["job", "unfinished"],
    "id": ["job"],
    "adapter": ["adapter", "adapter's id", "checkpoint", "base"],
    "model": ["adapter", "checkpoint", "full", "alias", "deployment", "base"],
    "name": ["alias"],
    "deployment": ["deployment", "full", "base"],
    "cleaning_id": ["cleaning"],
    "synthesis_id": ["synthesis"],
    "evaluation_id": ["evaluation"],
    "export_id": ["export"],
    "project_id": ["project"],
    "key_id": ["key"],
    "batch_id": ["batch"],
    "upload_id": ["upload"],
    "endpoint_id": ["webhook"],
    "delivery_id": ["delivery"],
}
"""What the parameters of paths stand for."""
ITEM_BODIES: dict[tuple[str, str], Any] = {
    ("PUT", "/v1/aliases/{name}"): None,  # it creates one: see BODIES
    ("POST", "/v1/aliases/{name}/rollback"): {},
    ("POST", "/v1/evaluations/{evaluation_id}/ratings"): {
        "rater": "me",
        "ratings": [{"id": "pair", "choice": "a"}],
    },
    ("POST", "/v1/organization/projects/{project_id}"): {"name": "mine"},
    ("POST", "/v1/uploads/{upload_id}/complete"): {"part_ids": ["part-x"]},
    ("POST", "/v1/uploads/{upload_id}/parts"): None,  # a form: see FORMS
    ("POST", "/v1/webhook_endpoints/{endpoint_id}"): {"name": "mine"},
    ("POST", "/v1/webhook_endpoints/{endpoint_id}/test"): {"event_type": "export.failed"},
    ("POST", "/v1/organization/projects/{project_id}/api_keys"): {"name": "mine"},
    ("POST", "/v1/organization/projects/{project_id}/api_keys/{key_id}"): {
        "limits": {"requests_per_minute": 1}
    },
}
_MODELS = ("adapter", "checkpoint", "full", "alias", "base")
_TEXT = {"messages": [{"role": "user", "content": "Hi"}]}
_GRADER = {"type": "score_model", "name": "g", "input": _TEXT["messages"], "range": [0, 1]}


def _each(body: dict[str, Any], *whats: str, at: str = "model") -> list[dict[str, Any]]:
    return [{**body, at: f"<{what}>"} for what in whats]


BODIES: dict[tuple[str, str], list[Any]] = {
    ("POST", "/v1/chat/completions"): _each(_TEXT, *_MODELS),
    ("POST", "/v1/completions"): _each({"prompt": "Hi"}, *_MODELS),
    ("POST", "/v1/responses"): _each({"input": "Hi"}, *_MODELS),
    ("POST", "/v1/embeddings"): _each({"input": "Hi"}, *_MODELS),
    ("POST", "/v1/tokenize"): _each({"prompt": "Hi"}, *_MODELS),
    ("POST", "/v1/detokenize"): _each({"tokens": [1]}, *_MODELS),
    ("POST", "/v1/fine_tuning/alpha/graders/run"): [
        {"grader": {**_GRADER, "model": f"<{what}>"}, "model_sample": "x"} for what in ("adapter", "alias", "base")
    ],
    ("POST", "/v1/fine_tuning/jobs"): [
        *_each({"training_file": "<<file>>"}, *_MODELS),
        *_each({"model": BASE}, "file", at="training_file"),
        *_each({"model": BASE, "training_file": "<<file>>"}, "file", at="validation_file"),
        {"model": BASE, "training_file": "<<file>>", "data": {"mix": [{"file": "<file>"}]}},
    ],
    ("POST", "/v1/fine_tuning/plan"): [
        *_each({"model": BASE}, "file", at="training_file"),
        *_each({"training_file": "<<file>>"}, "full", "base"),
    ],
    ("POST", "/v1/exports"): [
        *_each({"format": "merged"}, *_MODELS),
        {"format": "adapter", "models": [{"model": "<<adapter>>"}, {"model": "<adapter>"}]},
        {"format": "awq", "model": BASE, "calibration_file": "<file>"},
        {"format": "awq", "model": "<base>", "calibration_file": "<<file>>"},
    ],
    ("POST", "/v1/evaluations"): [
        *_each({"data": "<<file>>"}, *_MODELS),
        *_each({"model": BASE}, "file", at="data"),
        *[{"model": BASE, "data": "<<file>>", "against": [f"<{what}>"]} for what in _MODELS],
    ],
    ("POST", "/v1/batches"): [
        {"endpoint": "/v1/completions", "completion_window": "24h", "input_file_id": "<file>"}
    ],
    ("POST", "/v1/syntheses"): [
        *_each({"file": "<<file>>", "task": {"type": "answers"}}, *_MODELS),
        *_each({"model": BASE, "task": {"type": "answers"}}, "file", at="file"),
    ],
    ("POST", "/v1/cleanings"): [{"file": "<file>", "steps": [{"type": "html"}]}],
    ("POST", "/v1/deployments"): _each({}, *_MODELS),
    ("POST", "/v1/adapters"): [{"path": "/nowhere", "base": f"<{what}>"} for what in ("full", "base")],
    ("PUT", "/v1/aliases/{name}"): [
        *[{"targets": [{"model": f"<{what}>"}]} for what in _MODELS],
        {"targets": [{"model": "<<adapter>>"}], "shadow": {"model": "<adapter>"}},
        {"targets": [{"model": "<<adapter>>"}],
         "require": {"evaluation": {"data": "<file>", "metric": "exact_match"}, "min": 0.5}},
    ],
}  # fmt: skip
"""What is sent to routes without a path parameter, with <what> in the place of what is another's or missing, and
<<what>> in that of the sender's own."""
NAMES_NOTHING = {
    ("GET", "/health"), ("POST", "/v1/files"), ("POST", "/v1/fine_tuning/alpha/graders/validate"),
    ("POST", "/v1/organization/projects"), ("POST", "/v1/organization/admin_api_keys"), ("POST", "/v1/uploads"),
    ("POST", "/v1/webhook_endpoints"),
}  # fmt: skip
FORMS: dict[tuple[str, str], tuple[str, dict[str, str]]] = {
    ("POST", "/v1/adapters/upload"): ("file", {"base": "<full>"}),
    ("POST", "/v1/uploads/{upload_id}/parts"): ("data", {}),
}
"""The name of the file, and the fields."""
QUERIES = {
    "/v1/files": ["after=<file>"],
    "/v1/adapters": ["after=<adapter's id>", "job=<job>", "base=<full>", "base=<base>"],
    "/v1/deployments": ["after=<deployment>"],
    "/v1/fine_tuning/jobs": ["after=<job>"],
    "/v1/exports": ["after=<export>"],
    "/v1/evaluations": ["after=<evaluation>"],
    "/v1/cleanings": ["after=<cleaning>"],
    "/v1/syntheses": ["after=<synthesis>"],
    "/v1/batches": ["after=<batch>"],
    "/v1/organization/usage/completions": [
        "project_ids=<project>&group_by=project_id",
        "api_key_ids[]=<key>",
        "models=<adapter>",
        "start_time=0&limit=31",
    ],
    "/v1/organization/usage/embeddings": ["project_ids=<project>", "api_key_ids=<key>"],
    "/v1/organization/usage/gpu_seconds": ["project_ids=<project>&group_by=project_id"],
    "/v1/organization/costs": ["project_ids=<project>&group_by=line_item", "api_key_ids=<key>"],
    "/v1/organization/audit_logs": [
        "project_ids=<project>",
        "actor_ids=<key>",
        "resource_ids[]=<file>",
        "after=<audit log>",
        "before=<audit log>",
    ],
    "/v1/webhook_endpoints": ["after=<webhook>"],
    "/v1/webhook_deliveries": ["after=<delivery>", "webhook_endpoint_id=<webhook>"],
}
SHOWN_TO_NOBODY_ELSE = {
    "/health", "/metrics", "/ready", "/v1/organization/admin_api_keys", "/v1/webhook_event_types",
}  # fmt: skip
"""Lists in which a project finds nothing of its own either."""


class World:
    def __init__(self, api: TestClient, store: Store, data: Workspace, asked: list[Any]) -> None:
        self.api, self.store, self.asked = api, store, asked
        self.theirs, self.mine = make_tenant(store, "a"), make_tenant(store, "b")
        self.theirs.has["base"] = OTHER_BASE
        store.projects.limit_bases(self.mine.project, [BASE])
        for tenant in (self.theirs, self.mine):
            data.file(tenant.has["file"]).write_text('{"prompt": "a", "completion": "b"}')

    def send(
        self, method: str, path: str, values: dict[str, str], tenant: Tenant, **how: Any
    ) -> tuple[int, str]:
        """The status and text of the answer, with the values that were named left out."""
        answer = self.api.request(method, _filled(path, values), headers=tenant.headers, **how)
        text = answer.text
        for value in sorted(values.values(), key=len, reverse=True):
            text = text.replace(value, "it")
        return answer.status_code, re.sub(r"[^'\" ]*\.\.\.[^'\" ]*", "it", text)

    def compare(self, method: str, path: str, body: Any = None, form: Any = None) -> int:
        """Send what names another's, and the same with what does not exist; both must be answered alike. Returns the
        status."""
        before = rows_of(self.store, self.theirs.project)
        own = {f"<{what}>": value for what, value in self.mine.has.items()}
        answers = []
        for values in (self.theirs.has, MISSING):
            how: dict[str, Any] = {}
            if body is not None:
                how["json"] = json.loads(_filled(_filled(json.dumps(body), own), values))
            if form is not None:
                how |= {
                    "data": json.loads(_filled(json.dumps(form[1]), values)),
                    "files": [(form[0], ("a", b"a"))],
                }
            answers.append(self.send(method, path, values, self.mine, **how))
        assert answers[0] == answers[1], (method, path, body)
        assert rows_of(self.store, self.theirs.project) == before, (
            "something of the other project has changed"
        )
        assert not self.theirs.told_in(answers[0][1])
        assert self.asked == [], "the engine worker is asked for nothing"
        return answers[0][0]


def _filled(template: str, values: dict[str, str]) -> str:
    return re.sub(r"<(<?[^<>]+>?)>", lambda found: values.get(found[1], found[0]), template)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[World]:
    data = Workspace(tmp_path_factory.mktemp("tenants") / "data")
    data.create()
    path = data.path / "tunewright.db"
    path.write_bytes(migrated_database.read_bytes())
    store = Store.open(f"sqlite:///{path}")
    settings = Settings(
        data_dir=data.path,
        api_key=OPERATOR,
        base=[f"{BASE}={embedded_base_path()}", f"{OTHER_BASE}=/nowhere"],
    )
    store.engines.declare([BASE, OTHER_BASE])
    for base in (BASE, OTHER_BASE):
        store.engines.starting(base, str(data.path / "nobody"), engine_info(path=data.path))
        store.engines.set_state(base, EngineState.READY)
    server, spec = build(settings, store)
    spec.gateway = gateway_for(store)

    asked: list[Any] = []

    async def control(operation: dict[str, Any]) -> dict[str, Any]:
        asked.append(operation)
        return {"error": "there is no worker"}

    server.app.state.context = ServiceContext(
        settings, store, data, control, ask_by_name=spec.gateway.ask_by_name
    )
    api = TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    with pytest.MonkeyPatch.context() as patch:
        # when a key was used last is written once a minute, which is a change of a row of its project
        patch.setattr("tunewright.api.http.keyring._WRITTEN_EVERY", 1e9)
        yield World(api, store, data, asked)
    store.close()


def _routes() -> list[tuple[str, str]]:
    document = json.loads((Path(__file__).parents[2] / "openapi" / "openapi.json").read_text())
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


ROUTES = _routes()
ITEMS = [route for route in ROUTES if "{" in route[1] and ITEM_BODIES.get(route, ...) is not None]
LISTS = [path for method, path in ROUTES if method == "GET" and "{" not in path]


def test_every_route_of_the_application_is_tested_here_and_has_a_scope(world: World) -> None:
    served = {
        (method.upper(), path)
        for path, methods in world.api.app.openapi()["paths"].items()  # type: ignore[attr-defined]
        for method in methods
    }
    assert served == set(ROUTES) == set(SCOPES)
    tested = {*ITEMS, *BODIES, *FORMS, *NAMES_NOTHING, *(("GET", path) for path in LISTS)}
    assert served - tested == set(), "say in BODIES what is sent there, with what is another's"
    parameters = {name for _, path in ROUTES for name in re.findall(r"{(\w+)}", path)}
    assert parameters - set(NAMED_BY) == set(), (
        "say in NAMED_BY what it stands for, and add that to tests/tenants.py"
    )


@pytest.mark.parametrize(("method", "path"), ITEMS, ids=lambda part: str(part))
def test_what_is_anothers_is_answered_as_what_does_not_exist(world: World, method: str, path: str) -> None:
    first = re.findall(r"{(\w+)}", path)[0]
    for what in NAMED_BY[first]:
        named = path.replace("{" + first + "}", f"<{what}>").replace("{key_id}", "<key>")
        status = world.compare(method, named, ITEM_BODIES.get((method, path)))
        assert status == 404 or (status == 403 and "organization" in path), (named, status)


@pytest.mark.parametrize(("method", "path"), list(BODIES), ids=lambda part: str(part))
def test_what_is_anothers_cannot_be_named_in_a_body(world: World, method: str, path: str) -> None:
    for body in BODIES[method, path]:
        assert world.compare(method, path.replace("{name}", "new-bot"), body) >= 400, body


@pytest.mark.parametrize(("method", "path"), list(FORMS), ids=lambda part: str(part))
def test_what_is_anothers_cannot_be_named_in_a_form(world: World, method: str, path: str) -> None:
    named = path.replace("{upload_id}", "<upload>")
    assert world.compare(method, named, form=FORMS[method, path]) >= 400


@pytest.mark.parametrize("path", LISTS)
def test_a_list_has_what_is_the_projects_own_alone(world: World, path: str) -> None:
    answer = world.api.get(path, headers=world.mine.headers)
    assert answer.status_code in (200, 403, 404, 503), answer.text
    assert world.theirs.told_in(answer.text) == []
    if path not in SHOWN_TO_NOBODY_ELSE and "organization" not in path:
        assert world.mine.told_in(answer.text), "what is its own is there"
        assert world.theirs.told_in(world.api.get(path, headers=world.theirs.headers).text)
    for query in QUERIES.get(path, ()):
        world.compare("GET", f"{path}?{query}")


@pytest.mark.parametrize(
    "path",
    [
        path
        for method, path in ITEMS
        if method == "GET"
        and path.count("{") == 1
        and not re.search("/(download|report.*|card|tensorboard)$|admin_api_keys", path)
    ],
)
def test_what_is_ones_own_is_found(world: World, path: str) -> None:
    """Else the tests above would be true of a service that finds nothing."""
    first = re.findall(r"{(\w+)}", path)[0]
    named = _filled(path.replace("{" + first + "}", f"<{NAMED_BY[first][0]}>"), world.mine.has)
    answer = world.api.get(named, headers=world.mine.headers)
    assert answer.status_code in (200, 400), answer.text


def test_names_are_unique_in_a_project_only(world: World) -> None:
    name, body = world.theirs.has["alias"], {"targets": [{"model": world.mine.has["adapter"]}], "wait": False}
    before = rows_of(world.store, world.theirs.project)
    made = world.api.put(f"/v1/aliases/{name}", json=body, headers=world.mine.headers)
    assert (made.status_code, made.json()["version"]) == (200, 1)
    again = world.api.put(
        f"/v1/aliases/{name}", json={"targets": [{"model": BASE}], "wait": False}, headers=world.mine.headers
    )
    assert again.json()["version"] == 2
    for one, target in ((world.mine, BASE), (world.theirs, world.theirs.has["adapter"])):
        shown = world.api.get(f"/v1/aliases/{name}", headers=one.headers).json()
        assert [found["model"] for found in shown["targets"]] == [target]
    assert world.api.delete(f"/v1/aliases/{name}", headers=world.mine.headers).status_code == 200
    assert rows_of(world.store, world.theirs.project) == before


def test_an_idempotency_key_is_a_projects_own(world: World) -> None:
    jobs = []
    for tenant in (world.mine, world.theirs):
        file = tenant.has["file"]
        for _ in range(2):
            made = world.api.post(
                "/v1/fine_tuning/jobs",
                json={"model": BASE, "training_file": file},
                headers={**tenant.headers, "Idempotency-Key": "the-same"},
            )
            assert made.status_code == 200, made.text
            jobs.append(made.json()["id"])
    assert jobs[0] == jobs[1] != jobs[2] == jobs[3]


def test_the_operator_acts_in_the_project_that_the_header_names(world: World) -> None:
    operator = {"Authorization": f"Bearer {OPERATOR}"}
    assert world.theirs.told_in(world.api.get("/v1/files", headers=operator).text) == []
    acting = {**operator, "OpenAI-Project": world.theirs.project}
    assert world.theirs.has["file"] in world.api.get("/v1/files", headers=acting).text
    nowhere = world.api.get("/v1/files", headers={**operator, "OpenAI-Project": MISSING["project"]})
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "project_not_found")
    for project in (world.theirs.project, MISSING["project"]):
        refused = world.api.get("/v1/files", headers={**world.mine.headers, "OpenAI-Project": project})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "mismatched_project")
        assert project not in refused.text


def test_weights_that_another_project_has_too_stay_on_the_disk(world: World) -> None:
    sha256 = "e" * 64
    for number, tenant in enumerate((world.mine, world.theirs)):
        same = {
            **PRODUCT,
            "sha256": sha256,
            "id": f"adapter-same{number}",
            "name": f"ft:{BASE}:s:same{number}",
        }
        world.store.of(tenant.project).models.register(same)
    models = world.store.of(world.mine.project).models
    found = models.get("adapter-same0")
    assert found is not None
    assert models.delete(found)
    assert models.weights_in_use(sha256) == {sha256}


def test_who_has_no_key_is_not_told_what_is_deployed(world: World) -> None:
    ready = world.api.get("/ready")
    assert f"engine:{BASE}" in ready.text
    assert world.theirs.told_in(ready.text) == ["base"], "engines of bases are named to everybody"
    assert world.mine.told_in(ready.text) == []


def test_a_base_that_is_taken_from_a_project_answers_nothing_of_it_any_more(world: World) -> None:
    """What the project has made of it stays its own."""
    project, store = world.theirs.project, world.store
    adapter, alias = world.theirs.has["adapter"], world.theirs.has["alias"]

    def told(method: str, path: str, body: Any = None) -> tuple[int, str]:
        answer = world.api.request(method, path, json=body, headers=world.theirs.headers)
        return answer.status_code, answer.text

    operator = {"Authorization": f"Bearer {OPERATOR}"}
    path = f"/v1/organization/projects/{project}"
    limited = world.api.post(path, json={"bases": [OTHER_BASE]}, headers=operator).json()
    assert limited["bases"] == [OTHER_BASE]
    for name in (BASE, adapter, alias):
        status, text = told("POST", "/v1/chat/completions", {"model": name, **_TEXT})
        assert status in (400, 404), text
        assert told("POST", "/v1/evaluations", {"model": name, "data": world.theirs.has["file"]})[0] in (
            400,
            404,
        )
    assert told("POST", f"/v1/adapters/{adapter}/load")[0] == 400
    assert BASE not in [one["id"] for one in json.loads(told("GET", "/v1/models")[1])["data"]]
    assert told("GET", f"/v1/adapters/{adapter}")[0] == 200
    assert adapter in told("GET", "/v1/adapters")[1]
    assert (
        told("POST", "/v1/fine_tuning/jobs", {"model": adapter, "training_file": world.theirs.has["file"]})[0]
        == 400
    )
    unknown = world.api.post(path, json={"bases": ["nothing"]}, headers=operator)
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "bases")
    assert world.api.post(path, json={"bases": []}, headers=operator).status_code == 400
    assert world.api.post(path, json={"name": "same"}, headers=operator).json()["bases"] == [OTHER_BASE]
    assert world.api.post(path, json={"bases": None}, headers=operator).json()["bases"] is None
    assert store.of(project).bases.allowed() is None
    assert BASE in told("GET", "/v1/models")[1]


def test_a_project_is_told_by_its_own_key(world: World) -> None:
    path = f"/v1/organization/projects/{world.mine.project}"
    assert world.api.get(path, headers=world.mine.headers).json()["id"] == world.mine.project
    keys = world.api.get(f"{path}/api_keys", headers=world.mine.headers).json()["data"]
    assert [key["id"] for key in keys] == [world.mine.has["key"]]


def test_a_database_of_all_projects_would_fail_these_tests(world: World) -> None:
    """The comparison sees what leaks."""
    with world.store.database.read() as connection:
        everything = str(connection.exec_driver_sql("SELECT id FROM files").all())
    assert world.theirs.told_in(everything) == ["file"]


def test_what_a_project_has_used_is_told_to_it_alone(world: World) -> None:
    for path, told_by in (
        ("usage/completions", "model"),
        ("usage/gpu_seconds", "model"),
        ("costs", "line_item"),
    ):
        asked = f"/v1/organization/{path}?group_by={told_by}&group_by=project_id"
        for one, other in ((world.mine, world.theirs), (world.theirs, world.mine)):
            answer = world.api.get(asked, headers=one.headers)
            assert one.has["project"] in answer.text, path
            assert other.told_in(answer.text) == [], path


def test_an_event_is_told_to_its_project_alone(world: World) -> None:
    told = {
        (one.endpoint_id, one.event.data["id"])
        for one in world.store.webhooks.deliveries()[0]
        if one.event.type == "export.failed"
    }
    assert told == {(one.has["webhook"], one.has["export"]) for one in (world.mine, world.theirs)}
