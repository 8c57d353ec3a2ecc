"""Delivers what is due: several endpoints at once, so that one that is slow holds up no other."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from tunewright.config import WebhookOptions
from tunewright.errors import StorageUnavailable
from tunewright.store.store import Store
from tunewright.store.webhook_records import Attempt, Delivery, WebhookEndpoint
from tunewright.store.webhooks import PLACES
from tunewright.webhooks.sending import Sender, Sent
from tunewright.webhooks.signing import KeyLost, SigningKey

log = logging.getLogger("tunewright.webhooks")

_THREADS = 64
"""For the store, and for names that DNS is slow to answer: each attempt may leave one that still waits."""
_LOOK = 0.25
"""Seconds between two looks for what is due."""
_STORE_AGAIN_AFTER = 1.0
"""Seconds until the store is used again that could not be used."""
_FACTOR, _LONGEST_WAIT = 3.0, 12 * 3600.0
_JITTER = 0.25
"""Part by which a wait is longer or shorter, by chance: what failed together is not tried again together."""
_LONGEST_ASKED_WAIT = 3600.0
"""Seconds of a Retry-After that are heeded."""
_IDLE = 10.0
"""Seconds after which the process ends where nothing is due within that time either; the scheduler starts it again."""
_LAST_ANSWERS = 0.7
"""Seconds for running attempts when the process is to end; what is cut off is made again by the next."""


@dataclass(frozen=True)
class _Ended:
    """An attempt that has ended."""

    delivery: Delivery
    attempt: Attempt
    retry_at: float | None


class Deliverer:
    """Delivers until nothing is due for a while, or until it is stopped. Only one may run on a database."""

    def __init__(
        self,
        options: WebhookOptions,
        store: Store,
        open_key: Callable[[], SigningKey],
        beat: Callable[[], None],
    ) -> None:
        self._options = options
        self._store = store.webhooks
        self._open_key = open_key
        self._beat = beat
        self._sender = Sender(options.webhook_host, options.webhook_timeout)
        self._running: dict[asyncio.Task[None], tuple[Delivery, WebhookEndpoint]] = {}
        self._unrecorded: deque[_Ended] = deque()
        self._not_before = 0.0
        """Monotonic time until which the store is left alone."""
        self._must_recover = True
        """Whether attempts may be begun, in the store, that nobody makes."""
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        busy_at = time.monotonic()
        while not self.stopping.is_set():
            self._beat()
            if await self._has_begun() or self._running or self._unrecorded:
                busy_at = time.monotonic()
            elif time.monotonic() - busy_at > _IDLE and not await self._is_due_soon():
                return
            await self._wait()
        if self._running:
            await asyncio.wait(self._running, timeout=_LAST_ANSWERS)
        with suppress(Exception):  # the next process finds them as cut off
            await self._record_left()

    async def _has_begun(self) -> bool:
        """Record what has ended and begin what is due. Returns whether something was begun. Where the store cannot be
        used now, this is tried again later: attempts under way go on, and what they find out is not lost."""
        if time.monotonic() < self._not_before:
            return False
        try:
            await self._record_left()
            if self._must_recover:
                await self._recover()
            return await self._begin()
        except Exception as error:
            is_known = isinstance(error, StorageUnavailable)
            log.error("the deliveries could not be stored: %s; trying again", error, exc_info=not is_known)
            self._not_before = time.monotonic() + _STORE_AGAIN_AFTER
            self._must_recover = True
            return False

    async def _record_left(self) -> None:
        """Record the attempts that could not be recorded. Raises StorageUnavailable where they still cannot."""
        for _ in range(len(self._unrecorded)):
            try:
                await self._record(self._unrecorded[0])
            except StorageUnavailable:
                raise
            except Exception:  # of this one: the others may be recorded
                self._unrecorded.rotate(-1)
            else:
                self._unrecorded.popleft()

    async def _recover(self) -> None:
        """End the attempts that the process before this one has begun, or a claim whose answer was lost."""
        ours = [one.id for one, _ in self._running.values()] + [one.delivery.id for one in self._unrecorded]
        found = await asyncio.to_thread(self._store.recover, self._options.webhook_attempts, ours)
        self._must_recover = False
        if found:
            log.info("%d deliveries were cut off before their answer; trying again", found)

    async def _record(self, ended: _Ended) -> None:
        await asyncio.to_thread(self._store.ended, ended.delivery, ended.attempt, ended.retry_at)

    async def _begin(self) -> bool:
        """Begin the attempts that are due and for which there is a place. Returns whether there was one."""
        if len(self._running) >= PLACES:
            return False
        under_way = [endpoint for _, endpoint in self._running.values()]
        claimed = await asyncio.to_thread(self._store.claim, under_way)
        for delivery, endpoint in claimed:
            task = asyncio.create_task(self._deliver(delivery, endpoint))
            self._running[task] = delivery, endpoint
            task.add_done_callback(self._running.pop)
        return bool(claimed)

    async def _wait(self) -> None:
        """Until an attempt has ended, it is time to look again, or the process is to end."""
        stop = asyncio.create_task(self.stopping.wait())
        await asyncio.wait([stop, *self._running], timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    async def _is_due_soon(self) -> bool:
        due_at = await asyncio.to_thread(self._store.next_due)
        return due_at is not None and due_at < time.time() + _IDLE

    async def _deliver(self, delivery: Delivery, endpoint: WebhookEndpoint) -> None:
        """Make one attempt and record it. What cannot be recorded now is kept, and is recorded in a later round."""
        began = time.time()
        try:
            sent = await self._send(delivery, endpoint)
        except Exception as error:  # one delivery must not end the others, nor be under way for ever
            log.exception("the delivery %s could not be made", delivery.id)
            sent = Sent(Attempt(began, time.time() - began, None, f"{type(error).__name__}: {error}"))
        retry_at = self._retry_at(delivery, sent)
        ended = _Ended(delivery, sent.attempt, retry_at)
        try:
            await self._record(ended)
        except Exception as error:
            log.error("the delivery %s could not be recorded yet: %s; trying again", delivery.id, error)
            self._unrecorded.append(ended)
        if sent.attempt.error is not None:
            end = "it is a dead letter now" if retry_at is None else "it is tried again"
            log.warning(
                "%s of %s to %s failed (attempt %d): %s; %s",
                delivery.event.type, delivery.event.data.get("id"), endpoint.id, delivery.tries, sent.attempt.error,
                end,
            )  # fmt: skip

    async def _send(self, delivery: Delivery, endpoint: WebhookEndpoint) -> Sent:
        now = time.time()
        try:
            secrets = self._open_key().secrets_of(endpoint, now)
        except (KeyLost, OSError, ValueError) as error:
            return Sent(Attempt(now, 0.0, None, str(error)))
        return await self._sender.send(endpoint.url, delivery.event, secrets)

    def _retry_at(self, delivery: Delivery, sent: Sent) -> float | None:
        if sent.attempt.error is None or sent.is_final or delivery.tries >= self._options.webhook_attempts:
            return None
        wait = backoff(delivery.tries, self._options.webhook_retry_delay)
        asked = min(sent.retry_after or 0.0, _LONGEST_ASKED_WAIT)
        return time.time() + max(wait, asked)


def backoff(tries: int, first: float) -> float:
    """Seconds to wait after so many attempts (from 1) have failed."""
    wait = min(_LONGEST_WAIT, first * _FACTOR ** (tries - 1))
    return wait * random.uniform(1 - _JITTER, 1 + _JITTER)
