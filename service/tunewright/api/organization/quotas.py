"""Quotas of a project: they are checked before something is stored, and refused with 429, `insufficient_quota`. What is
in the making already, a job's adapter say, is kept in any case."""

from __future__ import annotations

from tunewright.api.http.context import ServiceContext
from tunewright.errors import QuotaExceeded
from tunewright.store.records import NewJob

_MAKES_ADAPTERS = frozenset({"fine_tuning"})
"""Kinds of jobs."""


def check_bytes(context: ServiceContext, more: int) -> None:
    """Raises QuotaExceeded where the project may not store so many bytes more."""
    most = context.store.holdings.limits().stored_bytes
    if most is None:
        return
    held = context.store.holdings.stored_bytes()
    if held + more > most:
        raise QuotaExceeded(
            f"The project {context.project} may store {most} bytes, has {held}, and this would be {more} more: delete "
            "files or models, or ask the operator for more (limits.stored_bytes)."
        )


def check_adapter(context: ServiceContext) -> None:
    """Raises QuotaExceeded where the project may not have another adapter."""
    most = context.store.holdings.limits().adapters
    if most is not None and context.store.holdings.adapters() >= most:
        raise QuotaExceeded(
            f"The project {context.project} may have {most} adapters, and has them: delete one, or ask the operator "
            "for more (limits.adapters)."
        )


def check_job(context: ServiceContext, new: NewJob) -> None:
    """Raises QuotaExceeded where the project may not have another job wait, or nothing more of its product."""
    limits = context.store.holdings.limits()
    if limits.queued_jobs is not None:
        waiting = context.store.jobs.count_waiting()
        if waiting + 1 + len(new.then) > limits.queued_jobs:
            raise QuotaExceeded(
                f"{waiting} jobs of the project {context.project} wait, which may have {limits.queued_jobs}: create "
                "more when some have run, or cancel some."
            )
    if limits.stored_bytes is not None:
        check_bytes(context, 1)
    if limits.adapters is not None and new.kind in _MAKES_ADAPTERS:
        check_adapter(context)
