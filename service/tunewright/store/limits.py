"""What a project or a key may have at most. What is not set is not limited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Rates and quotas. Those behind `gpu_hours_per_month` are a project's alone."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    concurrent_requests: int | None = None
    """Generations in flight, streamed or not."""
    gpu_hours_per_month: int | None = None
    """For which jobs have GPUs, times their number, in a calendar month (UTC)."""
    queued_jobs: int | None = None
    """Jobs of every kind that wait."""
    running_jobs: int | None = None
    stored_bytes: int | None = None
    """Of files, models and parts of uploads."""
    adapters: int | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Limits:
        """The limits as the database has them; fields that this version does not know are left out."""
        if not stored:
            return NO_LIMITS
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in (stored or {}).items() if name in known})

    def stored(self) -> dict[str, int] | None:
        """As the database has them: those that are set; None for none."""
        return {name: value for name, value in asdict(self).items() if value is not None} or None

    @property
    def has_rates(self) -> bool:
        rates = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
        return any(rate is not None for rate in rates)


NO_LIMITS = Limits()
