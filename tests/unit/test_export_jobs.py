"""Exports in the store: jobs of another kind, whose models cannot be removed."""

from __future__ import annotations

from typing import Any

import pytest

from rows import PRODUCT, create_export, create_job
from tunewright.errors import InvalidRequest, NotFound
from tunewright.jobs.kinds import JobError
from tunewright.kinds.export.models import ExportReport
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

FIRST, SECOND = "1" * 64, "2" * 64


def register(store: Store, sha256: str, **values: Any) -> str:
    name = f"ft:tiny::{sha256[0]}"
    row = {
        **PRODUCT,
        "id": f"adapter-{sha256[0]}",
        "name": name,
        "sha256": sha256,
        "source": "upload",
        **values,
    }
    store.models.register({**row, "desired": "unloaded"})
    return name


def export(store: Store, *hashes: str, **values: Any) -> Job:
    return create_export(store, *((f"ft:tiny::{sha256[0]}", sha256) for sha256 in hashes), **values)


def test_kinds_of_jobs_are_listed_apart(store: Store) -> None:
    register(store, FIRST)
    made, job = export(store, FIRST), create_job(store)
    assert made.id.startswith("export-")
    assert job.id.startswith("ftjob-")
    jobs = store.jobs
    assert [j.id for j in jobs.list(kind="fine_tuning", after=None, limit=9)[0]] == [job.id]
    assert [j.id for j in jobs.list(kind="export", after=None, limit=9)[0]] == [made.id]
    assert jobs.get(made.id, "fine_tuning") is None
    assert jobs.get(made.id, "export") == jobs.get(made.id)


def test_they_wait_in_one_queue(store: Store) -> None:
    register(store, FIRST)
    jobs = store.jobs
    waiting = [export(store, FIRST), create_job(store)]
    for job in waiting:
        jobs.mark_valid(job.id, None, "Files validated")
    claimed = jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == waiting[0].id
    assert jobs.claim("cpu", ["tiny"]) is None
    assert [e.message for e in jobs.events(claimed.id, after=None, limit=1)[0]] == ["Export started on cpu"]


@pytest.mark.parametrize("sha256", [FIRST, SECOND])
def test_all_that_it_is_made_of_is_kept_until_it_has_ended(store: Store, sha256: str) -> None:
    for one in (FIRST, SECOND):
        register(store, one, checkpoint_step=8, job_id="ftjob-1")
    assert len(store.models.idle_checkpoints()) == 2
    job = export(store, FIRST, SECOND)
    model = store.models.by_sha256(sha256)
    assert model is not None
    with pytest.raises(InvalidRequest, match=job.id):
        store.models.refuse_needed(model, force=True)
    assert store.models.idle_checkpoints() == []
    assert not store.models.delete_idle_checkpoint(model.id)
    store.jobs.cancel(job.id)
    store.models.refuse_needed(model)
    assert store.models.delete_idle_checkpoint(model.id)


@pytest.mark.parametrize("missing", [FIRST, SECOND])
def test_what_was_deleted_just_now_makes_no_export(store: Store, missing: str) -> None:
    register(store, SECOND if missing == FIRST else FIRST)
    with pytest.raises(NotFound, match=f"ft:tiny::{missing[0]}"):
        export(store, FIRST, SECOND)


def test_what_was_measured_is_kept_however_it_ends(store: Store) -> None:
    register(store, FIRST)
    row = {"name": "merged", "loss": None, "kl": 1.0, "top1_agreement": 0.5}
    measured = {"source": "adapter", "models": [row], "rows": 8, "tokens": 9, "rows_from": "probes"}
    gate = {"max_kl": 0.1, "noise": None, "kl": 1.0, "passed": False, "forced": False}
    report = ExportReport(quality=measured, gate=gate)
    held_back = export(store, FIRST, state=JobState.RUNNING)
    error = JobError(code="quality_gate_failed", message="too far")
    store.jobs.fail(held_back.id, error, report=report.model_dump())
    published = export(store, FIRST, state=JobState.RUNNING)
    row = {**PRODUCT, "name": "ft:tiny:merged:9", "kind": "full", "sha256": "9" * 64, "source": "export"}
    assert store.models.publish([row], job_id=published.id, report=report.model_dump())
    for job, state in ((held_back, JobState.FAILED), (published, JobState.SUCCEEDED)):
        found = store.jobs.get(job.id)
        assert found is not None
        assert (found.state, found.report) == (state, report)
    messages = [e.message for e in store.jobs.events(published.id, after=None, limit=2)[0]]
    assert messages == ["The job has successfully completed", "New model created: ft:tiny:merged:9"]
