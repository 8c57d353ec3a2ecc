"""Sends copies of an alias's requests to its shadow, in the background, and records the answers.

Failures are logged or recorded as answers; none of them affects the request that was copied.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tunewright import tracing
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.shadow_judge import Ask, ShadowJudge, payer_of
from tunewright.api.gateway.tasks import Tasks
from tunewright.errors import Internal, RequestTimeout, TunewrightError
from tunewright.registry.aliases import Alias
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

LONGEST = 2**16
"""Characters of JSON that are kept of a request, and of an answer."""
_LOG_INTERVAL = 60.0
"""Seconds between two warnings about dropped copies."""


class Shadow:
    """Sends and records the copies. Used from one event loop only.

    `at_once` limits the copies in flight for all aliases together; further ones are dropped. `timeout` is in seconds.
    `chance` returns uniform random numbers in [0, 1). `judge` compares the answers, where a guard asks for that.
    """

    def __init__(
        self,
        store: Store,
        ask: Ask,
        *,
        at_once: int = 16,
        timeout: float = 600.0,
        chance: Callable[[], float] = random.random,
        judge: ShadowJudge | None = None,
    ) -> None:
        self._store = store
        self._ask = ask
        self._at_once = at_once
        self._timeout = timeout
        self._chance = chance
        self._judge = judge
        self._tasks = Tasks()
        self._logged_at = -_LOG_INTERVAL
        self.dropped: Counter[str] = Counter()
        """Number of copies that were not sent because too many were in flight, by alias."""

    def copy(self, alias: Alias, answered_by: str, path: str, body: dict[str, Any]) -> None:
        """Send a copy of the request to the alias's shadow, if it falls into the shadow's share, and the shadow has not
        answered it itself, as a target.

        `body` is not changed.
        """
        if alias.shadow is None or alias.shadow.model == answered_by or self._chance() >= alias.shadow.share:
            return
        if len(self._tasks) >= self._at_once:
            self._drop(alias.name)
            return
        request = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        self._tasks.start(self._send(alias, alias.shadow.model, answered_by, path, request))

    async def settle(self) -> None:
        """Wait until all copies in flight have ended."""
        await self._tasks.settle()

    async def close(self) -> None:
        """Cancel all copies in flight."""
        await self._tasks.cancel()

    def _drop(self, alias: str) -> None:
        self.dropped[alias] += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            log.warning(
                "shadow: %d copies are in flight, which is the limit; %d of %s were dropped until now",
                self._at_once, self.dropped[alias], alias,
            )  # fmt: skip

    async def _send(
        self, alias: Alias, model: str, answered_by: str, path: str, request: dict[str, Any]
    ) -> None:
        at, began = time.time(), time.monotonic()
        with tracing.span("shadow", {"gen_ai.response.model": model}):
            payer = payer_of(alias)
            status, answer = await self._answer(model, path, request, payer)
        seconds = time.monotonic() - began

        def record() -> None:
            self._store.of(alias.project).shadow_answers.add(
                alias=alias.name,
                model=model,
                answered_by=answered_by,
                path=path,
                at=at,
                seconds=seconds,
                status=status,
                request=_cut(request),
                answer=_cut(_parsed(answer)),
            )

        try:
            await asyncio.to_thread(record)
        except Exception as error:  # for example a full disk
            log.error("shadow: an answer of %s for %s could not be recorded: %s", model, alias.name, error)
        if self._judge is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._judge.compare(alias, answered_by, path, request, (status, answer))

    async def _answer(
        self, model: str, path: str, request: dict[str, Any], payer: Payer
    ) -> tuple[int, bytes]:
        failed: TunewrightError
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(model, path, request, payer=payer)
        except TunewrightError as error:
            failed = error
        except TimeoutError:
            failed = RequestTimeout(f"The shadow took longer than {self._timeout:g} s.")
        except Exception:
            log.exception("shadow: %s failed on a copy of a request", model)
            failed = Internal("The service hit a fault of its own; its log has the details.")
        return failed.status, json.dumps(failed.body()).encode()


def _parsed(answer: bytes) -> Any:
    """The parsed JSON, or the text itself where it is not JSON."""
    text = answer.decode(errors="replace")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")


def _cut(value: Any) -> Any:
    """`value` itself, or where it is too long the beginning of its text (of its JSON, where it is not a string)."""
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= LONGEST else text[:LONGEST]
