"""Quotas of a project: they are checked before something is stored, and refused with 429, `insufficient_quota`. What is
in the making already, a job's adapter say, is kept in any case."""

from __future__ import annotations

from datetime import UTC, datetime

from tunewright.api.http.context import ServiceContext
from tunewright.errors import QuotaExceeded
from tunewright.jobs.kinds import kind_named
from tunewright.store.limits import NO_LIMITS, Limits
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


def check_adapters(context: ServiceContext, limits: Limits, adapters: int) -> None:
    """Raises QuotaExceeded where a project with so many adapters may not have another."""
    if limits.adapters is not None and adapters >= limits.adapters:
        raise QuotaExceeded(
            f"The project {context.project} may have {limits.adapters} adapters, and has {adapters}: delete one, or "
            "ask the operator for more (limits.adapters)."
        )


def check_waiting(context: ServiceContext, limits: Limits, new: NewJob, waiting: int) -> None:
    """Raises QuotaExceeded where a project of which so many jobs wait may not have another wait."""
    if limits.queued_jobs is not None and waiting + 1 + len(new.then) > limits.queued_jobs:
        raise QuotaExceeded(
            f"{waiting} jobs of the project {context.project} wait, which may have {limits.queued_jobs}: create "
            "more when some have run, or cancel some."
        )


def check_job(context: ServiceContext, limits: Limits, new: NewJob) -> None:
    """Raises QuotaExceeded where the project may have nothing more of what the job takes or makes."""
    if kind_named(new.kind).needs_base:  # others get no device
        _check_gpu_hours(context, limits)
    if limits.stored_bytes is not None:
        check_bytes(context, 1)
    if limits.adapters is not None and new.kind in _MAKES_ADAPTERS:
        check_adapters(context, limits, context.store.holdings.adapters())


def _check_gpu_hours(context: ServiceContext, limits: Limits) -> None:
    """Raises QuotaExceeded where the jobs of the project, or those of the request's key, have had GPUs for as long in
    this month as they may. What runs already goes on."""
    key = context.store.keys.get(context.key) if context.key is not None else None
    of_key = key.limits if key is not None else NO_LIMITS
    month = _month()
    for whose, most, id in (
        (f"project {context.project}", limits.gpu_hours_per_month, None),
        (f"key {context.key}", of_key.gpu_hours_per_month, context.key),
    ):
        if most is None:
            continue
        used = context.store.usage.gpu_hours(int(month.timestamp()), key=id)
        if used >= most:
            raise QuotaExceeded(
                f"Jobs of the {whose} may have GPUs for {most} hours in a month, and have had them for {used:.2f} "
                f"since {month:%Y-%m-%d} (UTC), with those that run: wait for the next month, or ask the operator for "
                "more (limits.gpu_hours_per_month)."
            )


def _month() -> datetime:
    """When the present month began."""
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
