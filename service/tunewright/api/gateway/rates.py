"""Rates of projects and keys: how many requests and tokens a minute, and how many generations at a time.

A rate is a bucket that holds a minute's worth and is refilled all the time. A request takes one from that of requests;
what it has used is taken from that of tokens at its end, so that the bucket may be below zero, and refuses requests
until it is above again. In the long run no more than the limit is used, and at once at most a minute's worth and what
the requests in flight still use. The buckets are in memory: after a restart they are full.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Message, Send

from tunewright.errors import TooManyRequests
from tunewright.store.limits import Limits

_MINUTE = 60.0
_MOST_KEPT = 10_000
"""Projects and keys whose buckets are kept. One that is full again need not be."""
_BUSY_RETRY = 1.0
"""Seconds after which a client may try again where it has too many generations in flight."""

Limited = tuple[tuple[str, Limits], ...]
"""What holds for a request: the limits, each with the name of whose they are ("project proj-..." or "key key-...")."""


class Bucket:
    """At most `most` at once, and so many a minute. Times are monotonic seconds."""

    __slots__ = ("_at", "_level", "most")

    def __init__(self, most: int, now: float) -> None:
        self.most = most
        self._level = float(most)
        self._at = now

    def level(self, now: float) -> float:
        """What is left; below zero, what was used too much."""
        self._level = min(float(self.most), self._level + (now - self._at) * self.most / _MINUTE)
        self._at = now
        return self._level

    def limit(self, most: int, now: float) -> None:
        """From now on another limit holds. What was used stays used."""
        if most != self.most:
            self._level = self.level(now) + most - self.most
            self.most = most

    def take(self, number: int, now: float) -> None:
        self._level = self.level(now) - number

    def wait(self, level: float, now: float) -> float:
        """Seconds until so much is left."""
        return max(0.0, (level - self.level(now)) * _MINUTE / self.most)


@dataclass
class _Account:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    in_flight: int = 0

    def adjust(self, limits: Limits, now: float) -> None:
        self.requests = _adjusted(self.requests, limits.requests_per_minute, now)
        self.tokens = _adjusted(self.tokens, limits.tokens_per_minute, now)

    def is_fresh(self, now: float) -> bool:
        """Whether a new one would be the same."""
        buckets = (self.requests, self.tokens)
        return self.in_flight == 0 and all(b is None or b.level(now) >= b.most for b in buckets)


def _adjusted(bucket: Bucket | None, most: int | None, now: float) -> Bucket | None:
    if most is None:
        return None
    if bucket is None:
        return Bucket(most, now)
    bucket.limit(most, now)
    return bucket


@dataclass
class Admitted:
    """A request that goes on. `headers` are those of its answer."""

    headers: list[tuple[bytes, bytes]]
    _accounts: Sequence[_Account] = field(repr=False)
    _clock: Callable[[], float] = field(repr=False)

    def used(self, tokens: int) -> None:
        """What the request has used, of its prompt or of its answer."""
        now = self._clock()
        for account in self._accounts:
            if account.tokens is not None:
                account.tokens.take(tokens, now)

    def sending(self, send: Send) -> Send:
        """`send`, which adds the headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        return with_headers


class Rates:
    """Used from one event loop. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def check(self, limited: Limited) -> None:
        """Raises TooManyRequests where a request would be refused now. Nothing is taken."""
        self._check(self._of(limited), self._clock())

    @contextmanager
    def admit(self, limited: Limited) -> Iterator[Admitted]:
        """Let a request go on, which is in flight until the end. Raises TooManyRequests."""
        found, now = self._of(limited), self._clock()
        self._check(found, now)
        accounts = [account for _, _, account in found]
        for account in accounts:
            account.in_flight += 1
            if account.requests is not None:
                account.requests.take(1, now)
        told = [(name.encode(), value.encode()) for name, value in _headers(accounts, now).items()]
        try:
            yield Admitted(told, accounts, self._clock)
        finally:
            for account in accounts:
                account.in_flight -= 1

    def _of(self, limited: Limited) -> list[tuple[str, Limits, _Account]]:
        now, found = self._clock(), []
        for name, limits in limited:
            account = self._accounts.pop(name, None) or _Account()
            account.adjust(limits, now)
            self._accounts[name] = account  # the last one is the one that was used last
            found.append((name, limits, account))
        if len(self._accounts) > _MOST_KEPT:
            self._accounts = {name: one for name, one in self._accounts.items() if not one.is_fresh(now)}
        return found

    def _check(self, found: Sequence[tuple[str, Limits, _Account]], now: float) -> None:
        accounts = [account for _, _, account in found]
        for name, limits, account in found:
            for bucket, least, what in (
                (account.requests, 1.0, "requests a minute"),
                (account.tokens, 1.0, "tokens a minute"),
            ):
                if bucket is not None and bucket.level(now) < least:
                    wait = bucket.wait(least, now)
                    raise _limited(
                        f"The {name} may have {bucket.most} {what}, and has had them: try again in {_duration(wait)}.",
                        wait,
                        _headers(accounts, now),
                    )
            most = limits.concurrent_requests
            if most is not None and account.in_flight >= most:
                raise _limited(
                    f"The {name} may have {most} generations in flight, and has them: try again when one has ended.",
                    _BUSY_RETRY,
                    _headers(accounts, now),
                )


def _limited(text: str, wait: float, headers: Mapping[str, str]) -> TooManyRequests:
    return TooManyRequests(text, code="rate_limit_exceeded", retry_after=max(1.0, wait), headers=headers)


def _headers(accounts: Sequence[_Account], now: float) -> dict[str, str]:
    """OpenAI's headers, each kind of those limits of which the least is left."""
    headers = {}
    for what, buckets in (
        ("requests", [account.requests for account in accounts]),
        ("tokens", [account.tokens for account in accounts]),
    ):
        known = [bucket for bucket in buckets if bucket is not None]
        if known:
            least = min(known, key=lambda bucket: bucket.level(now))
            headers[f"x-ratelimit-limit-{what}"] = str(least.most)
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(least.level(now))))
            headers[f"x-ratelimit-reset-{what}"] = _duration(least.wait(float(least.most), now))
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{f'{int(minutes)}m' if minutes else ''}{round(rest, 3):g}s"
