"""`evaluate` of fine-tuning jobs over HTTP: what is refused before anything runs, and what is stored and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import Make, built, error, make, upload, worker  # noqa: F401

from rows import engine_info
from suites import write_suites
from tunewright.config import embedded_base_path
from tunewright.store.states import EngineState
from tunewright.store.store import Store

BASE = "tiny"
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    write_suites(folder)
    return folder


@pytest.fixture
def api(make: Make, store: Store, suites: Path) -> TestClient:  # noqa: F811
    client = make(base=[f"{BASE}={embedded_base_path()}"], eval_data=suites, device="cpu")
    store.engines.starting(BASE, "/tmp/s", engine_info())
    store.engines.set_state(BASE, EngineState.READY)
    return client


def create(api: TestClient, evaluate: dict[str, Any], **more: Any) -> Any:
    file = upload(api)
    given = {"data": file, **evaluate}
    asked = {name: value for name, value in given.items() if value is not None}
    return api.post(JOBS, json={"model": BASE, "training_file": file, "evaluate": asked, **more})


@pytest.mark.parametrize(
    ("evaluate", "param", "words"),
    [
        ({"data": None}, "evaluate", "give `data`, `suites`, or both"),
        ({"data": "file-none"}, "evaluate.data", "No such file"),
        ({"metrics": ["latency"]}, "evaluate.metrics", ""),
        ({"metrics": ["accuracy", "accuracy"]}, "evaluate.metrics", "at most once"),
        ({"metrics": ["schema_valid"]}, "evaluate.json_schema", "needs a `json_schema`"),
        ({"require": [{"metric": "chrf", "min": 5}], "metrics": ["accuracy"]}, "evaluate.require.0", "add it there"),
        ({"judge": {"model": "none"}}, "evaluate.judge.model", "No such model"),
        ({"at": ["end", "end"]}, "evaluate", "each of `at` once"),
        ({"at": ["end"], "select": "best"}, "evaluate", "needs `at` checkpoints"),
        ({"metric": "accuracy"}, "evaluate", "`select` best"),
        ({"metric": "chrf", "metrics": ["accuracy"], "select": "best"}, "evaluate", "not among"),
        ({"data": None, "suites": [{"name": "mmlu"}], "select": "best"}, "evaluate", "needs `data`"),
        ({"data": None, "suites": [{"name": "mmlu"}], "metrics": ["accuracy"]}, "evaluate.metrics", "of `data`"),
        ({"suites": [{"name": "mmlu", "samples": 3}]}, "evaluate.suites.0.samples", "Only humaneval"),
        ({"suites": [{"name": "humaneval"}]}, "evaluate.suites.0.name", "runs programs"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(
    api: TestClient, evaluate: dict[str, Any], param: str, words: str
) -> None:
    found = error(create(api, evaluate), 404 if words == "No such model" else 400)
    assert found["param"] == param
    assert words in found["message"]


@pytest.mark.parametrize("tuning", [{"type": "full"}, {"type": "lora", "use_dora": True}])
def test_what_is_not_served_by_itself_is_refused(api: TestClient, tuning: dict[str, Any]) -> None:
    found = error(create(api, {}, tuning=tuning), 400)
    assert (found["param"], found["code"]) == ("evaluate", "unsupported")


@pytest.mark.each_database
def test_the_evaluation_of_the_base_comes_before_the_job(api: TestClient, store: Store) -> None:
    evaluate = {"metrics": ["accuracy"], "suites": [{"name": "mmlu"}], "rows": 5, "select": "best"}
    answer = create(api, evaluate)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["evaluate"] == {**evaluate, "data": made["training_file"]}
    assert made["evaluation"] is None
    listed = api.get("/v1/evaluations").json()["data"]
    assert [(one["model"], one["against"], one["job"]) for one in listed] == [(BASE, [], made["id"])] * 2
    assert {one["suite"]["name"] if one["suite"] else one["data"] for one in listed} == {
        "mmlu",
        made["training_file"],
    }
    job = store.jobs.get(made["id"])
    assert job is not None
    assert all(store.jobs.get(one["id"]).seq < job.seq for one in listed)  # type: ignore[union-attr]

    again = create(api, evaluate, seed=3)
    assert again.status_code == 200, again.text
    assert len(api.get("/v1/evaluations").json()["data"]) == 2, "the same rows and the same base"


def test_rows_are_kept_until_the_job_has_ended(api: TestClient) -> None:
    rows = upload(api, b'{"prompt": "x", "completion": "y"}\n', "test.jsonl")
    made = create(api, {"data": rows, "at": ["end"]}).json()
    assert api.get("/v1/evaluations").json()["data"] == [], "the base is not asked for"
    assert error(api.delete(f"/v1/files/{rows}"), 400)["code"] == "file_in_use"
    assert api.post(f"{JOBS}/{made['id']}/cancel").status_code == 200
    assert api.delete(f"/v1/files/{rows}").status_code == 200


def test_a_step_that_follows_has_its_own_evaluations(api: TestClient) -> None:
    file = upload(api)
    steps = [{"training_file": file, "evaluate": {"data": file, "at": ["end"]}}]
    answer = api.post(JOBS, json={"model": BASE, "training_file": file, "steps": steps})
    assert answer.status_code == 200, answer.text
    first, second = api.get(f"/v1/fine_tuning/pipelines/{answer.json()['id']}").json()["jobs"]
    assert (first["evaluate"], second["evaluate"]) == (None, steps[0]["evaluate"])
    steps[0]["evaluate"]["data"] = "file-none"
    refused = error(api.post(JOBS, json={"model": BASE, "training_file": file, "steps": steps}), 400)
    assert refused["param"] == "steps.0.evaluate.data"


def test_steps_that_are_cancelled_together_leave_no_evaluation(api: TestClient) -> None:
    """Neither may use that of the base, since both end."""
    rows, others = upload(api), upload(api, b'{"prompt": "x", "completion": "y"}\n', "test.jsonl")
    first, second = (
        {"training_file": rows, "evaluate": {"data": id, "at": ["before"]}} for id in (rows, others)
    )
    made = api.post(JOBS, json={"model": BASE, **first, "steps": [second]}).json()
    assert len(api.get("/v1/evaluations").json()["data"]) == 2
    assert api.post(f"/v1/fine_tuning/pipelines/{made['id']}/cancel").status_code == 200
    assert {one["status"] for one in api.get("/v1/evaluations").json()["data"]} == {"cancelled"}
