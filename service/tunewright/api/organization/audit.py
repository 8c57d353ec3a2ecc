"""`/v1/organization/audit_logs`: who did what. The operator is told of all projects, and an admin of a project of that
one alone."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from tunewright.api.http.context import OrganizationContext, SentBy
from tunewright.api.http.errors import responses
from tunewright.api.http.wire import After, Page, page_of
from tunewright.api.organization.audit_schemas import AuditLogObject
from tunewright.api.organization.usage import LATEST, Lists, Names
from tunewright.store.audit import AuditFilter
from tunewright.wire import Text

router = APIRouter(prefix="/v1/organization", tags=["Organization"])


@router.get("/audit_logs", summary="List audit logs", responses=responses(400))
def audit_logs(
    context: OrganizationContext,
    sender: SentBy,
    given: Lists,
    later_than: Annotated[
        int | None, Query(ge=0, le=LATEST, alias="effective_at[gt]", description="Unix seconds.")
    ] = None,
    not_before: Annotated[int | None, Query(ge=0, le=LATEST, alias="effective_at[gte]")] = None,
    earlier_than: Annotated[int | None, Query(ge=0, le=LATEST, alias="effective_at[lt]")] = None,
    not_after: Annotated[int | None, Query(ge=0, le=LATEST, alias="effective_at[lte]")] = None,
    project_ids: Names = None,
    event_types: Names = None,
    actor_ids: Names = None,
    actor_emails: Names = None,
    resource_ids: Names = None,
    after: After = None,
    before: Annotated[Text | None, Query(description="The first id of the page behind.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="desc: newest first.")] = "desc",
) -> Page[AuditLogObject]:
    """Requests that may change something, with the status of their answers, refusals, and starts of jobs. `order` and
    what is told of a request are not in OpenAI's API."""
    # whole seconds are told, so that a second is compared as a whole
    wanted = AuditFilter(
        from_time=_latest(not_before, None if later_than is None else later_than + 1),
        before_time=_earliest(earlier_than, None if not_after is None else not_after + 1),
        types=given.names("event_types"),
        projects=given.names("project_ids"),
        actors=given.names("actor_ids"),
        subjects=given.names("actor_emails"),
        resources=given.names("resource_ids"),
    )
    store = context.store if sender.is_operator else context.store.of(sender.project)
    found, more = store.audit.list(wanted, after=after, before=before, limit=limit, ascending=order == "asc")
    names = context.store.projects.names({one.project for one in found})
    return Page(**page_of([AuditLogObject.of(one, names) for one in found], more))


def _latest(*times: int | None) -> int | None:
    return max((time for time in times if time is not None), default=None)


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)
