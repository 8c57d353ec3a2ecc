"""Cleanings over HTTP: what is accepted, what is refused before anything runs, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from rows import FILE, create_job
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.kinds.cleaning.models import CleaningResult
from tunewright.registry.workspace import Workspace
from tunewright.store.states import FileStatus, JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

CLEANINGS = "/v1/cleanings"
STEPS = [{"type": "html"}, {"type": "duplicates"}]


async def _control(_: dict[str, Any]) -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def api(built: dict[str, Any], store: Store, data: Workspace) -> TestClient:
    settings = Settings(data_dir=data.path, base=[f"tiny={embedded_base_path()}"], max_queued_jobs=3)
    if not built:
        built["server"], _ = build(settings, store)
    built["server"].app.state.context = ServiceContext(settings, store, data, _control)
    return TestClient(built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


Add = Callable[..., str]


@pytest.fixture
def add(store: Store) -> Add:
    """Lists an uploaded file, whose check has found `report`."""

    def listed(id: str, report: dict[str, Any] | None = None, purpose: str = "fine-tune") -> str:
        store.files.add(**{**FILE, "id": id, "purpose": purpose})
        if report is not None:
            found = {"container": "jsonl", "format": None, "kind": None, "rows": 1, "problem": None, **report}
            store.files.finish_check(id, FileStatus.PROCESSED, found)
        return id

    return listed


def create(api: TestClient, *steps: dict[str, Any], **fields: Any) -> Any:
    return api.post(CLEANINGS, json={"file": FILE["id"], "steps": list(steps) or STEPS, **fields})


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def test_a_cleaning_is_a_job_of_its_own(api: TestClient) -> None:
    answer = create(api, metadata={"team": "a"})
    assert answer.status_code == 200, answer.text
    cleaning = answer.json()
    assert cleaning["id"].startswith("clean-")
    assert (cleaning["object"], cleaning["status"]) == ("cleaning", "validating_files")
    assert (cleaning["file"], cleaning["filename"]) == (FILE["id"], FILE["filename"])
    assert (cleaning["steps"], cleaning["data"], cleaning["cleaned_file"]) == (STEPS, None, None)
    assert api.get(f"{CLEANINGS}/{cleaning['id']}").json() == cleaning
    assert [one["id"] for one in api.get(CLEANINGS).json()["data"]] == [cleaning["id"]]
    assert api.get(CLEANINGS, params={"metadata[team]": "b"}).json()["data"] == []
    for other in ("/v1/fine_tuning/jobs", "/v1/exports"):
        assert api.get(other).json()["data"] == []
        assert api.get(f"{other}/{cleaning['id']}").status_code == 404
    events = api.get(f"{CLEANINGS}/{cleaning['id']}/events").json()["data"]
    assert [event["message"] for event in events] == [f"Created cleaning: {cleaning['id']}"]
    assert events[0]["object"] == "cleaning.event"


def test_jobs_of_other_kinds_are_no_cleanings(api: TestClient, store: Store) -> None:
    job = create_job(store)
    assert error(api.get(f"{CLEANINGS}/{job.id}"), 404)["code"] == "cleaning_not_found"
    for action in ("cancel", "pause", "resume"):
        assert error(api.post(f"{CLEANINGS}/{job.id}/{action}"), 404)["param"] == "cleaning_id"


def test_the_same_request_makes_one_cleaning(api: TestClient) -> None:
    body, key = {"file": FILE["id"], "steps": STEPS}, {"Idempotency-Key": "k"}
    first = api.post(CLEANINGS, json=body, headers=key).json()
    assert api.post(CLEANINGS, json=body, headers=key).json() == first
    other = api.post(CLEANINGS, json={**body, "steps": STEPS[:1]}, headers=key)
    assert error(other)["code"] == "idempotency_key_reused"


def test_both_of_its_files_are_kept_while_it_needs_them(api: TestClient, add: Add) -> None:
    other = add("file-valid")
    cleaning = create(api, {"type": "leaks", "against": other}).json()
    assert cleaning["steps"] == [{"type": "leaks", "similarity": 0.85, "against": other}]
    for file in (FILE["id"], other):
        refused = error(api.delete(f"/v1/files/{file}"))
        assert refused["code"] == "file_in_use"
        assert cleaning["id"] in refused["message"]
    assert api.post(f"{CLEANINGS}/{cleaning['id']}/cancel").json()["status"] == "cancelled"
    assert error(api.post(f"{CLEANINGS}/{cleaning['id']}/cancel"))["code"] == "job_not_cancellable"
    assert api.delete(f"/v1/files/{other}").status_code == 200


def test_the_options_of_steps_are_shown_with_their_defaults(api: TestClient) -> None:
    steps = create(api, {"type": "secrets"}, {"type": "length", "min_answer": 5}).json()["steps"]
    assert steps == [
        {"type": "secrets", "action": "flag"},
        {"type": "length", "min_characters": 0, "max_characters": None, "min_answer": 5},
    ]


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"file": "file-none"}, "file", "No such file"),
        ({"steps": []}, "steps", "at least 1"),
        ({"steps": [{"type": "polish"}]}, "steps.0", "there is no polish; choose one of 'html', 'secrets'"),
        ({"steps": [{"action": "mask"}]}, "steps.0.type", "Missing parameter"),
        ({"steps": ["html"]}, "steps.0", ""),
        ({"steps": [{"type": "html", "tags": True}]}, "steps.0.tags", "tags"),
        ({"steps": [{"type": "length"}]}, "steps.0", "length needs"),
        ({"steps": [{"type": "near_duplicates", "similarity": 0.1}]}, "steps.0.similarity", "0.5"),
        ({"steps": [{"type": "balance", "by": "la\0bel"}]}, "steps.0.by", "U+0000"),
        ({"steps": [{"type": "html"}, {"type": "html"}]}, "steps", "html is there twice"),
        ({"steps": [{"type": "leaks"}]}, "steps.0.against", "against"),
        ({"steps": [{"type": "leaks", "against": "file-none"}]}, "steps.0.against", "No such file"),
        ({"steps": [{"type": "leaks", "against": FILE["id"]}]}, "steps.0.against", "compared with itself"),
        ({"data": {"columns": {"question": "q"}}}, "data.columns", "question"),
        ({"data": {"validation_share": 0.1}}, "data.validation_share", ""),
        ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
        ({"model": "tiny"}, "model", ""),
    ],
)
def test_what_makes_no_sense_is_refused(
    api: TestClient, fields: dict[str, Any], param: str, words: str
) -> None:
    refused = error(api.post(CLEANINGS, json={"file": FILE["id"], "steps": STEPS, **fields}))
    assert refused["param"] == param, refused
    assert words in refused["message"], refused
    assert api.get(CLEANINGS).json()["data"] == []


def test_a_file_that_cannot_be_read_is_refused(api: TestClient, add: Add) -> None:
    faulty = add("file-faulty", {"problem": "line 3: the row is not JSON"})
    refused = error(create(api, file=faulty))
    assert (refused["code"], refused["param"]) == ("invalid_file", "file")
    assert "line 3: the row is not JSON" in refused["message"]
    refused = error(create(api, {"type": "leaks", "against": faulty}))
    assert (refused["code"], refused["param"]) == ("invalid_against", "steps.0.against")
    results = add("file-results", purpose="fine-tune-results")
    assert "not for fine-tune" in error(create(api, file=results))["message"]


def test_rows_that_no_method_learns_from_yet_can_be_cleaned(api: TestClient, add: Add) -> None:
    kto = add("file-kto", {"format": "trl_kto", "kind": "labelled"})
    assert create(api, file=kto).status_code == 200


def test_columns_are_tried_on_the_first_rows(api: TestClient, add: Add, data: Workspace) -> None:
    faulty = add("file-csv", {"problem": "no format has these columns"})
    data.file(faulty).write_text("question,answer\n2+2=,4\n")
    columns = {"prompt": "question", "completion": "answer"}
    cleaning = create(api, file=faulty, data={"columns": columns}).json()
    assert cleaning["data"] == {"columns": columns, "tags": None, "alpaca": "auto"}
    refused = error(create(api, file=faulty, data={"columns": {**columns, "prompt": "query"}}))
    assert refused["code"] == "invalid_file"
    assert 'line 2: "prompt" is missing' in refused["message"]


def test_the_queue_is_that_of_all_jobs(api: TestClient, store: Store) -> None:
    for number in range(3):
        create_job(store, fingerprint=str(number))
    assert error(create(api), 429)["code"] == "too_many_jobs"


def test_events_logs_pause_and_resume(api: TestClient, store: Store, data: Workspace) -> None:
    id = create(api).json()["id"]
    assert api.get(f"{CLEANINGS}/{id}/logs").text == ""
    store.jobs.mark_valid(id, {"rows": 3}, "Files validated")
    assert api.post(f"{CLEANINGS}/{id}/pause").json()["status"] == "paused"
    assert api.post(f"{CLEANINGS}/{id}/resume").json()["status"] == "queued"
    data.job(id).mkdir()
    (data.job(id) / "process.log").write_text("one\ntwo\n")
    assert api.get(f"{CLEANINGS}/{id}/logs", params={"tail": 1}).text == "two\n"
    store.jobs.cancel(id)
    streamed = api.get(f"{CLEANINGS}/{id}/events", params={"stream": "true"}).text
    first = json.loads(streamed.split("\n")[1].removeprefix("data: "))
    assert (first["object"], first["id"].partition("-")[0]) == ("cleaning.event", "cleanevent")
    assert streamed.endswith("data: [DONE]\n\n")


def test_the_new_file_tells_its_lineage(api: TestClient, store: Store) -> None:
    id = create(api).json()["id"]
    store.jobs.mark_valid(id, {"rows": 3}, "Files validated")
    assert store.jobs.claim("cpu", [""]) is not None
    report = {"rows_before": 3, "rows_after": 2, "changed": 1}
    lineage = {
        "cleaning": id, "file": FILE["id"], "filename": "train.jsonl", "sha256": "0" * 64, "steps": STEPS,
        "rows_before": 3, "rows_after": 2,
    }  # fmt: skip
    row = {"id": "file-new", "filename": "n", "purpose": "fine-tune", "bytes": 9, "sha256": "1" * 64}
    assert store.jobs.succeed(
        id, CleaningResult(file="file-new"), report=report, files=[{**row, "lineage": lineage}]
    )
    cleaning = api.get(f"{CLEANINGS}/{id}").json()
    assert (cleaning["status"], cleaning["cleaned_file"]) == ("succeeded", "file-new")
    assert (cleaning["report"]["rows_before"], cleaning["report"]["rows_after"]) == (3, 2)
    assert api.get("/v1/files/file-new").json()["lineage"] == lineage
    listed = {file["id"]: file["lineage"] for file in api.get("/v1/files").json()["data"]}
    assert listed == {FILE["id"]: None, "file-new": lineage}


def test_a_cancelled_cleaning_lists_no_file(store: Store, api: TestClient) -> None:
    id = create(api).json()["id"]
    store.jobs.cancel(id)
    row = {"id": "file-new", "filename": "n", "purpose": "fine-tune", "bytes": 9, "sha256": "1" * 64}
    assert not store.jobs.succeed(id, CleaningResult(file="file-new"), files=[row])
    assert store.files.get("file-new") is None
    job = store.jobs.get(id)
    assert job is not None
    assert job.state is JobState.CANCELLED
