"""Rolls an alias back by itself when a new target of it answers badly.

Lives in the api's event loop and counts there: after a restart of the api the requests are counted from nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tunewright.errors import TunewrightError
from tunewright.registry.aliases import Alias, AliasGuard
from tunewright.store.aliases import AliasStore

log = logging.getLogger("tunewright.api")


@dataclass
class _Seen:
    """Of one target of one version: the requests that ended within the window, which begins when the version is put."""

    requests: int = 0
    errors: int = 0
    slow: int = 0
    judged: bool = False


@dataclass
class _Watched:
    """The newest version of an alias that a request was seen of."""

    version: int
    targets: dict[str, _Seen] = field(default_factory=dict)


class Guard:
    """`clock` gives Unix seconds, as versions have them."""

    def __init__(self, aliases: AliasStore, clock: Callable[[], float] = time.time) -> None:
        self._aliases = aliases
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def observe(self, alias: Alias, model: str, *, ok: bool, seconds: float) -> None:
        """A generation through `alias` ended, which `model` answered.

        `ok` is False where the engine failed (5xx, a stream that was cut), not where the client did. `seconds`: until
        the first byte of the answer, or until it failed.
        """
        watched = self._watched.get(alias.name)
        if watched is not None and watched.version > alias.version:
            return  # a late request of a version that was replaced
        limits = alias.guard
        if limits is None or self._clock() - alias.updated_at > limits.window_seconds:
            self._watched.pop(alias.name, None)
            return
        if watched is None or watched.version < alias.version:
            watched = self._watched[alias.name] = _Watched(alias.version)
        seen = watched.targets.setdefault(model, _Seen())
        seen.requests += 1
        seen.errors += not ok
        seen.slow += limits.max_p99_seconds is not None and seconds > limits.max_p99_seconds
        if seen.judged or seen.requests < limits.min_requests:
            return
        why = _fault(model, seen, limits)
        if why is not None:
            seen.judged = True
            task = asyncio.get_running_loop().create_task(self._judge(alias, model, why, seen))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for the rollbacks that are under way."""
        await asyncio.gather(*self._tasks)

    async def _judge(self, alias: Alias, model: str, why: str, seen: _Seen) -> None:
        try:
            await asyncio.to_thread(self._roll_back, alias, model, why)
        except TunewrightError as error:
            log.error("guard: %s is left at version %d, though %s: %s", alias.name, alias.version, why, error)
        except Exception:  # the database, say
            log.exception("guard: %s could not be rolled back, though %s", alias.name, why)
            seen.judged = False

    def _roll_back(self, alias: Alias, model: str, why: str) -> None:
        if self._aliases.version(alias.name, alias.version).rolled_back_to is not None:
            return  # an engine that fails everybody must not take the alias back to its first version
        before = self._aliases.before(alias.name, alias.version)
        if before is None:
            log.warning("guard: %s, and %s has no earlier version to go back to", why, alias.name)
            return
        if model in (target.model for target in before.targets):
            return
        now = self._aliases.rollback(
            alias.name, before.version, who="guard", because=why, expected_version=alias.version
        )
        log.warning(
            "guard: rolled %s back from version %d to version %d, as version %d: %s",
            alias.name, alias.version, before.version, now.version, why,
        )  # fmt: skip


def _fault(model: str, seen: _Seen, limits: AliasGuard) -> str | None:
    """What is wrong, with its numbers. The 99th percentile is over its limit when more than 1 % of the requests are."""
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
