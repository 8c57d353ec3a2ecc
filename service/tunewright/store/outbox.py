"""The outbox of webhooks: an event is written in the transaction of the change that it tells, with a delivery for each
endpoint that wants it. Nothing is written where none does.

So an event is told if and only if its change was committed, whatever is killed meanwhile (`webhooks` delivers them).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from tunewright.ids import new_id
from tunewright.store.records import Job
from tunewright.store.states import DeliveryState, JobState
from tunewright.store.tables import webhook_deliveries, webhook_endpoints, webhook_events

_ENDS = ("succeeded", "failed", "cancelled")
_JOBS = {
    "fine_tuning": ("fine_tuning.job", _ENDS),
    "batch": ("batch", ("completed", "failed", "expired", "cancelled")),
    "export": ("export", _ENDS),
    "evaluation": ("evaluation", _ENDS),
    "cleaning": ("cleaning", _ENDS),
    "synthesis": ("synthesis", _ENDS),
}
"""What is told of the ends of jobs, by their kinds: the prefix, and the words of `JobResult.end` and `JobState`."""
ADAPTER_QUARANTINED = "adapter.quarantined"
ALIAS_ROLLED_BACK = "alias.rolled_back"
DEPLOYMENT_READY = "deployment.ready"
DEPLOYMENT_FAILED = "deployment.failed"
DEPLOYMENT_DELETED = "deployment.deleted"
EVENT_TYPES = (
    *(f"{prefix}.{end}" for prefix, ends in _JOBS.values() for end in ends),
    DEPLOYMENT_READY,
    DEPLOYMENT_FAILED,
    DEPLOYMENT_DELETED,
    ADAPTER_QUARANTINED,
    ALIAS_ROLLED_BACK,
)
"""All types of events; those of fine-tuning jobs and batches are OpenAI's."""


def tell_end(connection: Connection, job: Job) -> None:
    """Tell that a job has ended."""
    if job.kind in _JOBS:
        result = job.result if job.state is JobState.SUCCEEDED else None
        end = result.end if result is not None else job.state.value
        tell(connection, f"{_JOBS[job.kind][0]}.{end}", job.id, job.project)


def tell(connection: Connection, type: str, id: str, project: str, **more: str | int | None) -> None:
    """Write an event, and its deliveries to the endpoints of the project. `id` is of what the event is about; `more`
    are further fields of its data."""
    # on PostgreSQL an endpoint that is being deleted is waited for, and then not found: the change must not fail
    query = (
        select(webhook_endpoints.c.id, webhook_endpoints.c.event_types)
        .where(webhook_endpoints.c.project == project)
        .order_by(webhook_endpoints.c.seq)
        .with_for_update(read=True, key_share=True)
    )
    wanted_by = [row.id for row in connection.execute(query) if type in row.event_types]
    if not wanted_by:
        return
    now = time.time()
    event: Mapping[str, Any] = {
        "id": new_id("evt"), "project": project, "type": type, "created_at": now, "data": {"id": id, **more},
    }  # fmt: skip
    connection.execute(insert(webhook_events).values(**event))
    for endpoint_id in wanted_by:
        connection.execute(
            insert(webhook_deliveries).values(
                id=new_id("delivery"),
                project=project,
                endpoint_id=endpoint_id,
                event_id=event["id"],
                state=DeliveryState.PENDING,
                created_at=now,
                due_at=now,
                tries=0,
                attempts=[],
            )
        )
