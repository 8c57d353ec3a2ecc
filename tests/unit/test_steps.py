"""Jobs that follow each other in one request: created together, each from the model of the one before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, api, built, error, make, worker  # noqa: F401
from tests.unit.test_file_checks import upload

from preferences import as_openai, text_rows
from rows import FILE, Publish
from tunewright.jobs.kinds import JobError
from tunewright.kinds import FINE_TUNING
from tunewright.kinds.fine_tuning.models import PARENT, FineTuningRequest
from tunewright.scheduler.steps import advance, waits
from tunewright.store.records import Job, JobInput, NewJob
from tunewright.store.states import JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

SUPERVISED = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in text_rows(8)]
PAIRS = [as_openai(row) for row in text_rows(8)]


def new_job(**request: Any) -> NewJob:
    asked = FineTuningRequest(model="tiny", **request)
    inputs = (JobInput("training_file", file_id=FILE["id"]),)
    return NewJob(kind=FINE_TUNING.name, base="tiny", request=asked, seed=1, inputs=inputs, fingerprint="f")


def pipeline(store: Store, number: int = 3, **columns: Any) -> list[Job]:
    first = replace(new_job(), then=tuple(new_job(method="dpo") for _ in range(number - 1)), **columns)
    return list(store.jobs.of_pipeline(store.jobs.create(first, repeat_seconds=5).id))


def at(store: Store, job: Job) -> Job:
    found = store.jobs.get(job.id)
    assert found is not None
    return found


def run(store: Store, job: Job) -> Job:
    store.jobs.mark_valid(job.id, None, "fine")
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == job.id
    return claimed


def test_jobs_that_follow_are_created_together_and_once(store: Store) -> None:
    first, second, third = pipeline(store, idempotency_key="k")
    assert [job.after for job in (first, second, third)] == [None, first.id, second.id]
    assert {job.pipeline for job in (first, second, third)} == {first.id}
    assert [job.id for job in pipeline(store, idempotency_key="k")] == [first.id, second.id, third.id]
    assert not waits(first)
    assert waits(second)


def test_a_job_goes_on_from_the_model_of_the_one_before_when_that_is_there(
    store: Store, publish_model: Publish
) -> None:
    first, second, third = pipeline(store)
    advance(store, second)
    advance(store, third)
    assert at(store, second) == second, "the first one has not ended"

    assert publish_model({"name": "ft:tiny::one", "sha256": "1" * 64}, job=run(store, first))
    advance(store, at(store, second))
    advance(store, at(store, third))

    now = at(store, second)
    assert now.state is JobState.VALIDATING_FILES
    assert now.weights(PARENT) == ["1" * 64]
    assert isinstance(now.request, FineTuningRequest)
    assert now.request.model == "ft:tiny::one"
    assert not waits(now)
    assert at(store, third) == third
    before = store.jobs.events(second.id, after=None, limit=10)[0]
    assert f"{first.id} has succeeded; going on from ft:tiny::one" in [event.message for event in before]
    assert not store.jobs.follow(second.id, PARENT, store.models.get("ft:tiny::one")), "once"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("end", "code"), [("failed", "earlier_step_failed"), ("cancelled", "earlier_step_cancelled")]
)
def test_where_one_ends_without_a_model_those_after_it_fail_with_the_reason(
    store: Store, end: str, code: str
) -> None:
    first, second, third = pipeline(store)
    if end == "failed":
        store.jobs.fail(first.id, JobError(code="out_of_memory", message="too large"))
    else:
        store.jobs.cancel(first.id)
    for job in (second, third):
        advance(store, at(store, job))
    second, third = at(store, second), at(store, third)
    assert (second.state, third.state) == (JobState.FAILED, JobState.FAILED)
    assert second.error is not None
    assert third.error is not None
    assert (second.error.code, third.error.code) == (code, "earlier_step_failed")
    assert first.id in second.error.message
    assert ("too large" in second.error.message) == (end == "failed")


def test_where_the_model_was_deleted_the_next_one_fails(store: Store, publish_model: Publish) -> None:
    first, second, _ = pipeline(store)
    assert publish_model({"name": "ft:tiny::one"}, job=run(store, first))
    made = store.models.get("ft:tiny::one")
    assert made is not None
    store.models.delete(made)
    advance(store, second)
    failed = at(store, second)
    assert failed.error is not None
    assert failed.error.code == "earlier_step_deleted"


def test_all_are_cancelled_at_once_and_what_was_made_stays(store: Store, publish_model: Publish) -> None:
    first, second, _ = pipeline(store)
    assert publish_model({"name": "ft:tiny::one"}, job=run(store, first))
    states = [job.state for job in store.jobs.cancel_pipeline(first.id)]
    assert states == [JobState.SUCCEEDED, JobState.CANCELLED, JobState.CANCELLED]
    assert store.models.get("ft:tiny::one") is not None
    assert [job.state for job in store.jobs.cancel_pipeline(first.id)] == states
    assert not store.jobs.cancel_pipeline(second.id), "no pipeline's id"


def test_a_job_that_waits_holds_up_no_other(store: Store) -> None:
    pipeline(store)
    for job in store.jobs.in_states(JobState.VALIDATING_FILES):
        if job.after is None:
            store.jobs.cancel(job.id)
    other = store.jobs.create(replace(new_job(), fingerprint="g"))
    store.jobs.mark_valid(other.id, None, "fine")
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == other.id


# requests


def asked(api: TestClient, *steps: dict[str, Any], **more: Any) -> Any:  # noqa: F811
    def file(rows: list[Any]) -> str:
        return str(upload(api, "".join(json.dumps(row) + "\n" for row in rows).encode())["id"])

    found = [{"training_file": file(PAIRS), "method": {"type": "dpo"}} | step for step in steps]
    body = {"model": BASE, "training_file": file(SUPERVISED), "steps": found, "seed": 7, **more}
    return api.post("/v1/fine_tuning/jobs", json=body)


def test_one_request_creates_all_jobs_and_shows_them(api: TestClient) -> None:  # noqa: F811
    answer = asked(api, {"suffix": "polite"}, suffix="first", metadata={"team": "a"})
    assert answer.status_code == 200, answer.text
    first = answer.json()
    shown = api.get(f"/v1/fine_tuning/pipelines/{first['id']}").json()
    assert (shown["id"], shown["status"], shown["fine_tuned_model"]) == (
        first["id"],
        "validating_files",
        None,
    )
    assert [job["method"]["type"] for job in shown["jobs"]] == ["supervised", "dpo"]
    assert [job["suffix"] for job in shown["jobs"]] == ["first", "polite"]
    assert [job["seed"] for job in shown["jobs"]] == [7, 7]
    assert [job["metadata"] for job in shown["jobs"]] == [{"team": "a"}, {"team": "a"}]
    assert shown["jobs"][1]["after"] == first["id"]
    assert shown["jobs"][1]["tuning"]["type"] == "lora"

    cancelled = api.post(f"/v1/fine_tuning/pipelines/{first['id']}/cancel").json()
    assert [job["status"] for job in cancelled["jobs"]] == ["cancelled", "cancelled"]
    assert cancelled["status"] == "cancelled"


def test_all_weights_are_followed_by_all_weights(api: TestClient) -> None:  # noqa: F811
    first = asked(api, {}, tuning={"type": "full"}).json()
    shown = api.get(f"/v1/fine_tuning/pipelines/{first['id']}").json()
    assert [job["tuning"]["type"] for job in shown["jobs"]] == ["full", "full"]


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("step", "param", "why"),
    [
        ({"tuning": {"rank": 4}}, "steps.0.tuning.rank", "for the first one"),
        ({"tuning": {"type": "full"}}, "steps.0.tuning.type", "type lora"),
        ({"method": {"type": "kto"}}, "steps.0.training_file", "the method kto cannot learn from"),
        ({"tuning": {"loss_type": "none"}}, "steps.0.tuning.loss_type", "sigmoid"),
        ({"model": "other"}, "steps.0.model", "Unknown parameter"),
    ],
)
def test_a_step_that_cannot_succeed_is_refused_and_nothing_is_created(
    api: TestClient,  # noqa: F811
    step: dict[str, Any],
    param: str,
    why: str,
) -> None:
    answer = asked(api, step)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert why in answer.json()["error"]["message"]
    assert api.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_a_pipeline_that_is_none_is_not_found(api: TestClient) -> None:  # noqa: F811
    answer = api.get("/v1/fine_tuning/pipelines/ftjob-none")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "pipeline_not_found")
