"""The audit log: `client.audit_logs`."""

from __future__ import annotations

from collections.abc import Sequence

from .._core import audit
from ..types import AuditLog
from .http import AsyncResource
from .pager import AsyncPager


class AsyncAuditLogs(AsyncResource):
    """`client.audit_logs`: who did what. For admins of all projects, and for a project's keys with the scope admin of
    that project."""

    def list(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        project_ids: Sequence[str] = (),
        event_types: Sequence[str] = (),
        actor_ids: Sequence[str] = (),
        actor_emails: Sequence[str] = (),
        resource_ids: Sequence[str] = (),
        oldest_first: bool = False,
        after: str | None = None,
        limit: int | None = None,
    ) -> AsyncPager[AuditLog]:
        """Newest first, unless `oldest_first`; `limit` is the size of a page.

        - since, until: Unix seconds; until before then
        - actor_ids: of keys; actor_emails: subjects of tokens; resource_ids: ids and names in paths
        """
        params = {
            "effective_at[gte]": since,
            "effective_at[lt]": until,
            "project_ids": project_ids or None,
            "event_types": event_types or None,
            "actor_ids": actor_ids or None,
            "actor_emails": actor_emails or None,
            "resource_ids": resource_ids or None,
            "order": "asc" if oldest_first else None,
            "after": after,
            "limit": limit,
        }
        return self._http.page(audit.audit_logs(params))
