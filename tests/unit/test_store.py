"""The store's contract, on each database."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from races import at_once
from rows import FILE, PRODUCT, Publish, create_job, engine_info
from tunewright.errors import InvalidRequest, NotFound
from tunewright.ids import result_file_id
from tunewright.jobs.kinds import JobError, JobProgress
from tunewright.kinds.fine_tuning.models import FineTuningResult
from tunewright.plan.defaults import resolve
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.store.records import EngineInfo, Job
from tunewright.store.states import JOB_MOVES, EngineState, JobState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import engines, job_events, jobs, metadata, models, residency

pytestmark = pytest.mark.each_database


def new_job(store: Store, state: JobState = JobState.VALIDATING_FILES, **values: Any) -> Job:
    return create_job(store, state=state, **values)


def offset_of(store: Store, job: Job) -> int:
    found = store.jobs.get(job.id)
    assert found is not None
    return found.events_offset


def state_of(store: Store, job: Job) -> JobState:
    found = store.jobs.get(job.id)
    assert found is not None
    return found.state


# moves


def test_the_database_itself_refuses_illegal_moves(store: Store) -> None:
    move = text("UPDATE jobs SET state = :new WHERE id = :id")
    for old, new in product(JobState, JobState):
        job = new_job(store, old, fingerprint=f"{old} to {new}")
        if new is old or new in JOB_MOVES.get(old, ()):
            with store.database.begin() as connection:
                connection.execute(move, {"new": new.value, "id": job.id})
            assert state_of(store, job) is new, (old, new)
        else:
            with pytest.raises(DBAPIError, match="illegal job move"), store.database.begin() as connection:
                connection.execute(move, {"new": new.value, "id": job.id})
            assert state_of(store, job) is old, (old, new)


def test_a_state_that_does_not_exist_is_refused(store: Store) -> None:
    job = new_job(store, JobState.RUNNING)
    with pytest.raises(DBAPIError), store.database.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'done' WHERE id = :id"), {"id": job.id})


def test_final_states_have_no_moves() -> None:
    assert {state for state in JobState if state not in JOB_MOVES} == {s for s in JobState if s.is_final}


@pytest.mark.parametrize("state", JobState)
def test_cancel_ends_any_unfinished_job_and_refuses_the_others(store: Store, state: JobState) -> None:
    job = new_job(store, state)
    if state.is_final:
        with pytest.raises(InvalidRequest, match="already ended") as refused:
            store.jobs.cancel(job.id)
        assert refused.value.code == "job_not_cancellable"
        assert state_of(store, job) is state
    else:
        cancelled = store.jobs.cancel(job.id)
        assert cancelled is not None
        assert cancelled.state is JobState.CANCELLED
        assert cancelled.finished_at is not None
        assert store.jobs.events(job.id, after=None, limit=1)[0][0].message == "The job has been cancelled."


@pytest.mark.parametrize(
    ("state", "paused"),
    [
        (JobState.QUEUED, JobState.PAUSED),
        (JobState.RUNNING, JobState.PAUSING),
        (JobState.PAUSING, JobState.PAUSING),
        (JobState.PAUSED, JobState.PAUSED),
        (JobState.VALIDATING_FILES, None),
        (JobState.SUCCEEDED, None),
        (JobState.FAILED, None),
        (JobState.CANCELLED, None),
    ],
)
def test_pause_holds_what_waits_or_runs(store: Store, state: JobState, paused: JobState | None) -> None:
    job = new_job(store, state)
    if paused is None:
        with pytest.raises(InvalidRequest) as refused:
            store.jobs.pause(job.id)
        assert refused.value.code == "job_not_pausable"
        assert state_of(store, job) is state
    else:
        store.jobs.pause(job.id)
        assert state_of(store, job) is paused


@pytest.mark.parametrize("state", JobState)
def test_only_a_paused_job_is_resumed(store: Store, state: JobState) -> None:
    job = new_job(store, state)
    if state is JobState.PAUSED:
        store.jobs.resume(job.id)
        assert state_of(store, job) is JobState.QUEUED
    else:
        with pytest.raises(InvalidRequest) as refused:
            store.jobs.resume(job.id)
        assert refused.value.code == "job_not_resumable"
        assert state_of(store, job) is state


def test_a_paused_job_frees_its_device(store: Store) -> None:
    job = new_job(store, JobState.QUEUED)
    store.jobs.claim("cpu", [job.base])
    store.jobs.pause(job.id)
    assert store.jobs.on_devices(), "its trainer is still saving"
    store.jobs.paused(job.id)
    assert state_of(store, job) is JobState.PAUSED
    assert not store.jobs.on_devices()


def test_cancel_of_an_unknown_job_is_none(store: Store) -> None:
    assert store.jobs.cancel("ftjob-none") is None


@pytest.mark.parametrize("state", JobState)
def test_a_late_failure_does_not_undo_an_end(store: Store, state: JobState) -> None:
    """A paused job has no trainer that could fail, so it stays paused."""
    job = new_job(store, state)
    store.jobs.fail(job.id, JobError(code="x", message="boom"))
    kept = state.is_final or state is JobState.PAUSED
    assert state_of(store, job) is (state if kept else JobState.FAILED)


def test_validation_does_not_revive_a_cancelled_job(store: Store) -> None:
    job = new_job(store)
    store.jobs.cancel(job.id)
    store.jobs.mark_valid(job.id, {"type": "lora"}, "fine")
    assert state_of(store, job) is JobState.CANCELLED


def test_each_warning_of_a_valid_job_is_an_event_and_a_cancelled_one_has_none(store: Store) -> None:
    found = [("few_rows", "9 rows are few."), ("rank_too_large", "rank 64 is large.")]
    job, cancelled = new_job(store), new_job(store)
    store.jobs.cancel(cancelled.id)
    for one in (job, cancelled):
        store.jobs.mark_valid(one.id, None, "fine", found)

    def warned(id: str) -> list[tuple[str, str]]:
        events = store.jobs.events(id, after=None, limit=10, ascending=True)[0]
        return [(one.data["code"], one.message) for one in events if one.level == "warn" and one.data]

    assert warned(job.id) == found
    assert warned(cancelled.id) == []


def test_requeue_frees_the_device_and_does_not_revive(store: Store) -> None:
    job = new_job(store, JobState.QUEUED)
    assert store.jobs.claim("cpu", ["tiny"]) is not None
    requeued = store.jobs.requeue(job.id, "stop")
    assert requeued is not None
    assert (requeued.state, requeued.device) == (JobState.QUEUED, None)
    store.jobs.cancel(job.id)
    store.jobs.requeue(job.id, "stop")
    assert state_of(store, job) is JobState.CANCELLED


# claims


def test_a_job_is_claimed_by_one_of_many(url: str, store: Store) -> None:
    job = new_job(store, JobState.QUEUED)
    stores = [Store.open(url) for _ in range(8)]
    claimed = [found for found in at_once(8, lambda i: stores[i].jobs.claim(f"cuda:{i}", ["tiny"])) if found]
    for opened in stores:
        opened.close()
    assert [found.id for found in claimed] == [job.id]
    assert claimed[0].state is JobState.RUNNING


def test_a_device_is_given_to_one_of_many(url: str, store: Store) -> None:
    for _ in range(8):
        new_job(store, JobState.QUEUED)
    stores = [Store.open(url) for _ in range(8)]
    claimed = [found for found in at_once(8, lambda i: stores[i].jobs.claim("cpu", ["tiny"])) if found]
    for opened in stores:
        opened.close()
    assert len(claimed) == 1


def test_claims_go_by_age_and_wait_for_the_device(store: Store) -> None:
    first, second = new_job(store, JobState.QUEUED), new_job(store, JobState.QUEUED)
    assert [job.id if (job := store.jobs.claim("cpu", ["tiny"])) else None for _ in range(2)] == [
        first.id,
        None,
    ]
    store.jobs.cancel(first.id)
    assert store.jobs.claim("cpu", ["tiny"]) is None, "its trainer may still run"
    assert [job.id for job in store.jobs.on_devices()] == [first.id]
    store.jobs.release(first.id)
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == second.id


def test_a_job_waits_for_an_older_one_whose_files_are_read_but_not_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_job(store, base="elsewhere")
    reading, ready = new_job(store), new_job(store, JobState.QUEUED)
    assert store.jobs.claim("cpu", ["tiny"]) is None
    store.jobs.mark_valid(reading.id, None, "fine")
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == reading.id
    store.jobs.cancel(reading.id)
    store.jobs.release(reading.id)
    new_job(store)
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == ready.id, "a later one is no reason to wait"

    reading, ready = new_job(store), new_job(store, JobState.QUEUED)
    assert store.jobs.claim("cuda:0", ["tiny"]) is None
    monkeypatch.setattr("tunewright.store.job_turns.ORDER_SECONDS", 0.0)
    claimed = store.jobs.claim("cuda:0", ["tiny"])
    assert claimed is not None
    assert claimed.id == ready.id


def on_gpus(number: int) -> Any:
    return resolve(
        tuning=TuningOptions(gpus=number), hyperparameters=HyperparameterOptions(), rows=64, context=1024,
        max_rank=64, device="cuda",
    )  # fmt: skip


def test_a_job_gets_all_of_its_gpus_or_none_and_younger_ones_wait_behind_it(store: Store) -> None:
    gpus = ["cuda:3", "cuda:2", "cuda:1", "cuda:0"]
    small, large, last = (new_job(store, JobState.QUEUED, resolved=on_gpus(number)) for number in (1, 4, 1))
    claimed = store.jobs.claim(gpus, ["tiny"])
    assert claimed is not None
    assert (claimed.id, claimed.devices) == (small.id, ("cuda:3",))
    assert store.jobs.claim(gpus, ["tiny"]) is None, "three are free, and kept for the large one"
    store.jobs.release(small.id)
    claimed = store.jobs.claim(gpus, ["tiny"])
    assert claimed is not None
    assert (claimed.id, sorted(claimed.devices)) == (large.id, sorted(gpus))
    events = store.jobs.events(large.id, after=None, limit=10)[0]
    assert any("started on cuda:3, cuda:2, cuda:1, cuda:0" in event.message for event in events)
    assert store.jobs.claim(gpus, ["tiny"]) is None
    store.jobs.release(large.id)
    claimed = store.jobs.claim(gpus[:2], ["tiny"])
    assert claimed is not None
    assert (claimed.id, claimed.devices) == (last.id, ("cuda:3",))


def test_gangs_of_many_schedulers_share_no_gpu_and_get_no_part_of_their_gpus(url: str, store: Store) -> None:
    for _ in range(4):
        new_job(store, JobState.QUEUED, resolved=on_gpus(2))
    stores = [Store.open(url) for _ in range(4)]
    gpus = ["cuda:0", "cuda:1", "cuda:2"]
    claimed = [found for found in at_once(4, lambda i: stores[i].jobs.claim(gpus, ["tiny"])) if found]
    for opened in stores:
        opened.close()
    assert [len(found.devices) for found in claimed] == [2]


def test_the_processes_of_a_job_share_the_cpu(store: Store) -> None:
    new_job(store, JobState.QUEUED, resolved=on_gpus(2))
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.devices == ("cpu",)


def test_a_job_whose_base_is_not_here_is_passed_over(store: Store) -> None:
    new_job(store, JobState.QUEUED, base="elsewhere")
    assert store.jobs.claim("cpu", ["tiny"]) is None
    here = new_job(store, JobState.QUEUED)
    assert store.jobs.claim("cpu", []) is None
    claimed = store.jobs.claim("cpu", ["tiny"])
    assert claimed is not None
    assert claimed.id == here.id


def test_a_claim_starts_the_count_anew_and_keeps_the_first_start(store: Store) -> None:
    job = new_job(store, JobState.QUEUED)
    first = store.jobs.claim("cpu", ["tiny"])
    assert [store.jobs.count_attempt(job.id) for _ in range(2)] == [1, 2]
    store.jobs.requeue(job.id, "stop")
    again = store.jobs.claim("cpu", ["tiny"])
    assert first is not None
    assert again is not None
    assert (again.attempt, again.started_at) == (0, first.started_at)


# reports


def report(store: Store, job: Job, offset: int, new_offset: int, step: int) -> None:
    store.jobs.take_in(
        replace(job, events_offset=offset),
        new_offset=new_offset,
        events=[{"level": "info", "type": "metrics", "message": f"step {step}", "data": {"step": step}}],
        progress={"step": step},
        last_step=step,
    )


def count(store: Store, table: Any, job: Job) -> int:
    with store.database.read() as connection:
        return int(connection.scalar(select(func.count()).where(table.c.job_id == job.id)) or 0)


def test_what_many_readers_take_in_is_there_once(url: str, store: Store) -> None:
    job = new_job(store, JobState.QUEUED)
    store.jobs.claim("cpu", ["tiny"])
    before = count(store, job_events, job)
    stores = [Store.open(url) for _ in range(8)]
    at_once(8, lambda i: report(stores[i], job, 0, 100, 1))
    for opened in stores:
        opened.close()
    assert count(store, job_events, job) - before == 1
    report(store, job, 0, 100, 1)
    assert count(store, job_events, job) - before == 1
    report(store, job, 100, 200, 2)
    found = store.jobs.get(job.id)
    assert found is not None
    assert (found.events_offset, found.last_step, found.progress) == (200, 2, JobProgress(step=2))


def test_a_new_step_forgives_earlier_crashes(store: Store) -> None:
    """Attempts count the starts without a new step in between; a long job may crash now and then."""
    job = new_job(store, JobState.QUEUED)
    store.jobs.claim("cpu", ["tiny"])
    store.jobs.count_attempt(job.id)
    store.jobs.count_attempt(job.id)
    report(store, job, 0, 10, 5)
    assert store.jobs.count_attempt(job.id) == 1
    report(store, job, 10, 20, 5)
    assert store.jobs.count_attempt(job.id) == 2, "a repeated step is no progress"


# creation


def test_an_idempotency_key_makes_one_job(url: str, store: Store) -> None:
    stores = [Store.open(url) for _ in range(8)]
    ids = {job.id for job in at_once(8, lambda i: new_job(stores[i], idempotency_key="once"))}
    for opened in stores:
        opened.close()
    assert len(ids) == 1
    assert len(store.jobs.list(kind="fine_tuning", after=None, limit=100)[0]) == 1
    assert store.jobs.earlier("once", "f", 5.0) is not None
    assert store.jobs.earlier("other", "f", 5.0) is None


def test_jobs_without_a_key_are_all_their_own(store: Store) -> None:
    assert new_job(store).id != new_job(store).id


def test_another_conflict_is_not_taken_for_idempotency(store: Store) -> None:
    job = new_job(store)
    with pytest.raises(IntegrityError):
        new_job(store, id=job.id)


def test_a_recent_twin_is_recognised(store: Store) -> None:
    """The same request again without a key within seconds is a repeat."""
    job = new_job(store, fingerprint="same")
    repeat = store.jobs.earlier(None, "same", 5.0)
    assert repeat is not None
    assert repeat.id == job.id
    assert store.jobs.earlier(None, "other", 5.0) is None
    assert store.jobs.earlier(None, "same", -1.0) is None, "it was long ago"
    store.jobs.cancel(job.id)
    assert store.jobs.earlier(None, "same", 5.0) is None, "it was ended on purpose"
    new_job(store, fingerprint="keyed", idempotency_key="k")
    assert store.jobs.earlier(None, "keyed", 5.0) is None


def test_identical_requests_at_the_same_moment_make_one_job(url: str, store: Store) -> None:
    stores = [Store.open(url) for _ in range(8)]
    made = at_once(8, lambda i: create_job(stores[i], fingerprint="same", repeat_seconds=600.0))
    ids = {job.id for job in made}
    for opened in stores:
        opened.close()
    assert len(ids) == 1


def test_events_lost_with_the_power_are_not_skipped(store: Store) -> None:
    """The file is shorter than what was read of it: what is appended next is read from its end on."""
    job = new_job(store, JobState.RUNNING)
    report(store, job, 0, 100, 3)
    store.jobs.rewind_events(job.id, 400)
    assert offset_of(store, job) == 100, "nothing was lost"
    store.jobs.rewind_events(job.id, 60)
    assert offset_of(store, job) == 60


# paging


def add_file(store: Store, id: str, purpose: str = "paged") -> None:
    store.files.add(id=id, filename="a.jsonl", purpose=purpose, size=1, sha256="0" * 64, created_at=1.0)


def test_pages_join_without_gap_or_overlap(store: Store) -> None:
    for number in range(7):
        add_file(store, f"file-p{number}")
    for ascending in (False, True):
        seen: list[str] = []
        after, more = None, True
        while more:
            rows, more = store.files.list(purpose="paged", after=after, limit=3, ascending=ascending)
            seen += [row.id for row in rows]
            after = seen[-1]
        expected = [f"file-p{number}" for number in range(7)]
        assert seen == (expected if ascending else expected[::-1])


def test_a_page_is_of_the_purpose_asked_for(store: Store) -> None:
    add_file(store, "file-a")
    add_file(store, "file-b", "other")
    assert [row.id for row in store.files.list(purpose="other", after=None, limit=5)[0]] == ["file-b"]


def test_a_page_after_an_unknown_id_is_refused(store: Store) -> None:
    job = new_job(store)
    for ask in (
        lambda: store.files.list(purpose=None, after="file-none", limit=5),
        lambda: store.jobs.list(kind="fine_tuning", after="none", limit=5),
        lambda: store.jobs.events(job.id, after="none", limit=5),
        lambda: store.jobs.checkpoints(job.id, after="none", limit=5),
        lambda: store.models.list(after="none", limit=5),
    ):
        with pytest.raises(InvalidRequest) as refused:
            ask()
        assert refused.value.param == "after"


def test_jobs_are_found_by_their_metadata(store: Store) -> None:
    wanted = new_job(store, metadata={"team": "a", "run": "1"})
    new_job(store, metadata={"team": "b"})
    new_job(store)
    assert [
        job.id for job in store.jobs.list(kind="fine_tuning", after=None, limit=9, metadata={"team": "a"})[0]
    ] == [wanted.id]
    assert (
        store.jobs.list(kind="fine_tuning", after=None, limit=9, metadata={"team": "a", "run": "2"})[0] == []
    )
    assert store.jobs.list(kind="fine_tuning", after=None, limit=9, metadata={'"]; drop': "x"})[0] == []


@pytest.mark.parametrize("missing", ["file-t", "file-v"])
def test_there_is_no_job_without_its_files(store: Store, missing: str) -> None:
    for id in {"file-t", "file-v"} - {missing}:
        add_file(store, id)
    with pytest.raises(InvalidRequest, match=f"No such file: '{missing}'") as refused:
        new_job(store, training_file="file-t", validation_file="file-v")
    assert refused.value.param == ("training_file" if missing == "file-t" else "validation_file")
    assert store.jobs.list(kind="fine_tuning", after=None, limit=9)[0] == []


def test_a_retry_gets_its_job_also_when_its_file_is_gone(store: Store) -> None:
    job = new_job(store, idempotency_key="k")
    store.jobs.cancel(job.id)
    assert store.files.delete(FILE["id"])
    assert new_job(store, idempotency_key="k").id == job.id


@pytest.mark.parametrize("needed", ["file-t", "file-v"])
@pytest.mark.parametrize("state", JobState)
def test_a_file_that_an_unfinished_job_needs_is_not_deleted(
    store: Store, needed: str, state: JobState
) -> None:
    for id in ("file-t", "file-v"):
        add_file(store, id)
    job = new_job(store, state, training_file="file-t", validation_file="file-v")
    if state.is_final:
        assert store.files.delete(needed)
        assert not store.files.delete(needed), "it is gone"
    else:
        with pytest.raises(InvalidRequest, match=job.id) as refused:
            store.files.delete(needed)
        assert refused.value.code == "file_in_use"
        assert store.files.get(needed) is not None


def test_there_is_no_job_on_top_of_what_is_not_listed(store: Store, publish_model: Publish) -> None:
    with pytest.raises(NotFound) as refused:
        new_job(store, parent_sha256="a" * 64)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    publish_model({})
    new_job(store, parent_sha256="a" * 64)


@pytest.mark.parametrize("state", JobState)
def test_a_model_that_an_unfinished_job_starts_from_is_not_deleted(
    store: Store, publish_model: Publish, state: JobState
) -> None:
    publish_model({})
    model = store.models.get(NAME)
    assert model is not None
    job = new_job(store, state, parent_sha256=model.sha256)
    if state.is_final:
        assert store.models.delete(model)
        assert not store.models.delete(model), "it is gone"
    else:
        for attempt in (store.models.refuse_needed, store.models.delete):
            with pytest.raises(InvalidRequest, match=job.id) as refused:
                attempt(model)
            assert refused.value.code == "model_in_use"
        assert store.models.get(NAME) == model


def test_weights_are_in_use_while_something_points_at_them(store: Store, publish_model: Publish) -> None:
    publish_model({}, {"name": "twin", "checkpoint_step": 1}, {"name": "other", "sha256": "c" * 64})
    job = new_job(store, parent_sha256="c" * 64)
    with store.database.begin() as connection:
        connection.execute(delete(models).where(models.c.name.in_([NAME, "other"])))
    assert store.models.weights_in_use() == {"a" * 64, "c" * 64}, "the twin's, and the job's"
    assert store.models.weights_in_use("a" * 64) == {"a" * 64}
    assert store.models.weights_in_use("c" * 64) == {"c" * 64}
    assert store.models.weights_in_use("d" * 64) == set()
    store.jobs.cancel(job.id)
    assert store.models.weights_in_use() == {"a" * 64}
    assert store.models.weights_in_use("c" * 64) == set()


# products

NAME = PRODUCT["name"]


def test_publishing_lists_the_products_and_ends_the_job(store: Store, publish_model: Publish) -> None:
    job = new_job(store, JobState.RUNNING)
    rows: list[dict[str, Any]] = [{}, {"name": "ckpt", "checkpoint_step": 2, "desired": "unloaded"}]
    assert publish_model(*rows, job=job)
    ended = store.jobs.get(job.id)
    assert ended is not None
    assert (ended.state, ended.result) == (
        JobState.SUCCEEDED,
        FineTuningResult(model=NAME, trained_tokens=7),
    )
    assert {model.name for model in store.models.list()[0]} == {NAME, "ckpt"}
    assert [model.name for model in store.models.wanted_adapters("tiny").values()] == [NAME]
    listed = store.jobs.checkpoints(job.id, after=None, limit=9)[0]
    assert [(c.step, c.model, c.metrics) for c in listed] == [(2, "ckpt", {"train_loss": 1.0})]
    assert store.files.get(result_file_id(job.id)) is not None
    assert not publish_model(*rows, job=job), "once only"


def test_nothing_is_listed_of_a_job_that_was_cancelled_meanwhile(
    store: Store, publish_model: Publish
) -> None:
    job = new_job(store, JobState.RUNNING)
    store.jobs.cancel(job.id)
    assert not publish_model({}, job=job)
    assert store.models.list()[0] == []
    assert store.files.get(result_file_id(job.id)) is None
    assert state_of(store, job) is JobState.CANCELLED


def test_a_listing_that_fails_does_not_end_the_job(store: Store, publish_model: Publish) -> None:
    job = new_job(store, JobState.RUNNING)
    with pytest.raises(IntegrityError):
        publish_model({}, {}, job=job)
    assert state_of(store, job) is JobState.RUNNING
    assert store.models.list()[0] == []


def test_cancel_and_publish_race_to_one_end(url: str, store: Store, publish_model: Publish) -> None:
    other = Store.open(url)
    for attempt in range(5):
        job, name = new_job(store, JobState.RUNNING), f"m{attempt}"

        def race(index: int, job: Job = job, name: str = name) -> bool:
            if index:
                return publish_model({"name": name}, job=job)
            try:
                other.jobs.cancel(job.id)
            except InvalidRequest:
                return False
            return True

        cancelled, published = at_once(2, race)
        assert cancelled is not published
        assert (store.models.get(name) is not None) is published
    other.close()


# engines


def test_a_new_run_of_an_engine_holds_nothing_yet(store: Store, publish_model: Publish) -> None:
    store.engines.declare(["tiny", "other"])
    publish_model({})
    first = store.engines.starting("tiny", "/tmp/s", engine_info())
    other = store.engines.starting("other", "/tmp/o", engine_info())
    for engine in (first, other):
        store.engines.set_residency(engine, "a" * 64, Residency.LOADED)
    held = store.models.resolve("ft:tiny::1")[2]
    assert held is not None
    assert held.state is Residency.LOADED
    second = store.engines.starting("tiny", "/tmp/s", engine_info())
    assert second.run == first.run + 1
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(residency)) == 1, "only the other engine's"
    assert store.engines.residents(second) == {}
    assert store.models.resolve("ft:tiny::1")[2] is None
    assert store.engines.residents(other).keys() == {"a" * 64}
    store.engines.set_residency(first, "a" * 64, Residency.LOADED)
    assert store.engines.residents(second) == {}, "a late note of the earlier run does not count"


@pytest.mark.parametrize(
    "written",
    [
        {"device": "cpu", "internal_name": "base-1", "fingerprint": "f"},  # of the first version
        {"device": "cpu", "internal_name": "base-1", "fingerprint": "f", "of_a_later_version": [1]},
    ],
)
def test_how_an_engine_was_started_is_read_as_other_versions_wrote_it(
    store: Store, written: dict[str, Any]
) -> None:
    store.engines.declare(["tiny"])
    with store.database.begin() as connection:
        connection.execute(update(engines).values(info=written))
    row = store.engines.get("tiny")
    assert row is not None
    assert row.info == EngineInfo(device="cpu", internal_name="base-1", fingerprint="f")
    assert (row.info.has_chat_template, row.info.max_adapters, row.is_deployed) == (True, 0, False)


def test_how_an_engine_was_started_is_read_as_it_was_written(store: Store) -> None:
    store.engines.declare(["tiny"])
    written = engine_info(path="/base", max_model_len=9, deployment="deployment-1", trust_remote_code=True)
    started = store.engines.starting("tiny", "/tmp/s", written)
    assert started is not None
    assert started.info == written
    longer = written.model_copy(update={"max_model_len": 99})
    store.engines.set_state("tiny", EngineState.READY, info=longer)
    store.engines.set_state("tiny", EngineState.BACKOFF, reason="it died")
    row = store.engines.get("tiny")
    assert row is not None
    assert row.info == longer, "a change of the state leaves it"
    assert row.is_deployed


def test_residency_notes_replace_each_other(store: Store) -> None:
    store.engines.declare(["tiny"])
    engine = store.engines.starting("tiny", "/tmp/s", engine_info())
    store.engines.set_residency(engine, "a", Residency.LOADING)
    store.engines.set_residency(engine, "a", Residency.FAILED, error="no such file")
    assert store.engines.residents(engine)["a"].error == "no such file"
    store.engines.set_residency(engine, "a", None)
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(residency)) == 0


def test_declaring_keeps_known_engines_and_forgets_others(store: Store) -> None:
    store.engines.declare(["a", "b"])
    store.engines.starting("a", "/tmp/s", engine_info())
    store.engines.declare(["a", "c"])
    assert {e.name: (e.state, e.run) for e in store.engines.list()} == {
        "a": (EngineState.STARTING, 1),
        "c": (EngineState.STOPPED, 0),
    }


# schema


def test_the_migrations_make_the_tables(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_upgrading_again_changes_nothing(store: Store) -> None:
    job = new_job(store)
    store.database.upgrade()
    assert store.jobs.get(job.id) == job


def test_deleting_a_job_takes_its_events_along(store: Store) -> None:
    job = new_job(store)
    with store.database.begin() as connection:
        connection.execute(delete(jobs).where(jobs.c.id == job.id))
    assert count(store, job_events, job) == 0


def test_transactions_that_read_before_they_write_do_not_fail(url: str, store: Store) -> None:
    """SQLite refuses to make a writer of a transaction that began as a reader when another wrote meanwhile."""
    job = new_job(store, seed=0)
    stores = [Store.open(url) for _ in range(4)]

    def add_one(index: int) -> None:
        for _ in range(5):
            with stores[index].database.begin() as connection:
                seed = connection.scalar(select(jobs.c.seed).where(jobs.c.id == job.id).with_for_update())
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(seed=seed + 1))

    at_once(4, add_one)
    for opened in stores:
        opened.close()
    found = store.jobs.get(job.id)
    assert found is not None
    assert found.seed == 20


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    job = new_job(store)

    def half() -> None:
        with store.database.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(seed=99))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert store.jobs.get(job.id) == job
