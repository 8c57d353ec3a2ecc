"""The alias guard: rolls an alias back automatically when a new target fails or is slow.

It runs in the api's event loop and keeps its counts in memory, so they start at zero after a restart of the api.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tunewright.api.gateway.tasks import Tasks
from tunewright.errors import TunewrightError
from tunewright.registry.aliases import Alias, AliasGuard
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")


@dataclass
class _Counts:
    """The requests to one target of one version that ended within the window. It begins when the version is set."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    exceeded: bool = False
    """A limit was exceeded, and the rollback was started."""


@dataclass
class _Watched:
    """The newest version of an alias for which a request has ended, with the counts of its targets."""

    version: int
    targets: dict[str, _Counts] = field(default_factory=dict)


class Guard:
    """Counts the requests of guarded aliases, and rolls an alias back when a limit is exceeded.

    `clock` returns Unix seconds, like the times of versions.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}
        """By project and name."""
        self._tasks = Tasks()

    def observe(self, alias: Alias, model: str, *, ok: bool, seconds: float) -> None:
        """Count a generation through `alias` that `model` answered and that has ended.

        `ok` is False where the engine failed (5xx, a truncated stream), not where the client did. `seconds` is the
        time to the first byte of the answer, or to the failure.
        """
        key = (alias.project, alias.name)
        watched = self._watched.get(key)
        if watched is not None and watched.version > alias.version:
            return  # a late request to a version that was replaced
        limits = alias.guard
        if limits is None or self._clock() - alias.updated_at > limits.window_seconds:
            self._watched.pop(key, None)
            return
        if watched is None or watched.version < alias.version:
            watched = self._watched[key] = _Watched(alias.version)
        seen = watched.targets.setdefault(model, _Counts())
        seen.requests += 1
        seen.errors += not ok
        seen.slow += limits.max_p99_seconds is not None and seconds > limits.max_p99_seconds
        if seen.exceeded or seen.requests < limits.min_requests:
            return
        why = _exceeded_limit(model, seen, limits)
        if why is not None:
            seen.exceeded = True
            self._tasks.start(self._try_rollback(alias, model, why, seen))

    async def settle(self) -> None:
        """Wait until all rollbacks in progress have ended."""
        await self._tasks.settle()

    async def roll_back(self, alias: Alias, model: str, why: str) -> bool:
        """Roll back the version that has brought the model. False where it is to be tried again."""
        try:
            await asyncio.to_thread(self._roll_back, alias, model, why)
        except TunewrightError as error:
            log.error("guard: %s is left at version %d, though %s: %s", alias.name, alias.version, why, error)
        except Exception:  # for example a failure of the database
            log.exception("guard: %s could not be rolled back, though %s", alias.name, why)
            return False
        return True

    async def _try_rollback(self, alias: Alias, model: str, why: str, seen: _Counts) -> None:
        seen.exceeded = await self.roll_back(alias, model, why)

    def _roll_back(self, alias: Alias, model: str, why: str) -> None:
        aliases = self._store.of(alias.project).aliases
        if aliases.version(alias.name, alias.version).rolled_back_to is not None:
            return  # an engine that fails all models must not roll the alias back to its first version
        before = aliases.before(alias.name, alias.version)
        if before is None:
            log.warning("guard: %s, and %s has no earlier version to go back to", why, alias.name)
            return
        if model in (target.model for target in before.targets):
            return
        now = aliases.rollback(
            alias.name, before.version, who="guard", because=why, expected_version=alias.version
        )
        log.warning(
            "guard: rolled %s back from version %d to version %d, as version %d: %s",
            alias.name, alias.version, before.version, now.version, why,
        )  # fmt: skip


def _exceeded_limit(model: str, seen: _Counts, limits: AliasGuard) -> str | None:
    """The limit that is exceeded, with the numbers, or None.

    The 99th percentile exceeds its limit when more than 1 % of the requests do.
    """
    rate = seen.errors / seen.requests
    if limits.max_error_rate is not None and rate > limits.max_error_rate:
        return (
            f"{seen.errors} of {seen.requests} requests to {model} failed ({rate:.1%}; max_error_rate is "
            f"{limits.max_error_rate:.1%})"
        )
    if limits.max_p99_seconds is not None and seen.slow > seen.requests // 100:
        return (
            f"{seen.slow} of {seen.requests} requests to {model} took longer than {limits.max_p99_seconds:g} s to "
            "begin to answer, which is max_p99_seconds"
        )
    return None
