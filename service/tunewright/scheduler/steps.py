"""Jobs that follow another one: they wait for its product, and end with it where it has none."""

from __future__ import annotations

from tunewright.jobs.kinds import JobError
from tunewright.kinds import kind_of
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store


def waits(job: Job) -> bool:
    """Whether the job has to wait for the one that it follows (`advance`)."""
    role = kind_of(job.kind).follows_with
    return job.after is not None and role is not None and not job.weights(role)


def advance(store: Store, job: Job) -> None:
    """Give a job that waits the product that it goes on from, once that is there; fail it where there will be none."""
    assert job.after is not None, "it waits"
    before = store.jobs.get(job.after)
    if before is not None and not before.state.is_final:
        return
    model = store.models.get(before.model) if before is not None and before.model is not None else None
    if before is not None and before.state is JobState.SUCCEEDED and model is not None:
        role = kind_of(job.kind).follows_with
        assert role is not None, "its kind follows others"
        store.jobs.follow(job.id, role, model)
        return
    if before is None or before.state is JobState.SUCCEEDED:
        code, what = "earlier_step_deleted", "and its model were deleted"
    elif before.state is JobState.CANCELLED:
        code, what = "earlier_step_cancelled", "was cancelled"
    else:
        code, what = (
            "earlier_step_failed",
            f"has failed ({before.error.message if before.error else 'no reason'})",
        )
    text = f"it goes on from the model of {job.after}, which {what}"
    store.jobs.fail(job.id, JobError(code=code, message=text))
