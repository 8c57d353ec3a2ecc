"""Sends one event to one endpoint: no redirects, no proxies, no cookies, and an answer of bounded size and time."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial

import aiohttp
from yarl import URL

from tunewright import __version__
from tunewright.errors import InvalidRequest, cut
from tunewright.store.webhook_records import Attempt, WebhookEvent
from tunewright.webhooks.addresses import AllowedHosts, check_url, open_socket
from tunewright.webhooks.signing import signed_headers

_LARGEST_ANSWER, _BODY_SECONDS = 2**16, 1.0
"""Bytes of the body that are read, and for how long, so that the receiver is not disturbed; nothing is kept of them."""
_LONGEST_LINE = 8190
_LONGEST_ERROR = 300
GONE = 410


@dataclass(frozen=True)
class Sent:
    """An attempt, and what it says of the next."""

    attempt: Attempt
    retry_after: float | None = None
    """Seconds that the endpoint asked to wait."""

    @property
    def is_final(self) -> bool:
        """Whether the endpoint says that it is not there any more."""
        return self.attempt.status == GONE


class Sender:
    """Sends events. Use it in one event loop."""

    def __init__(self, hosts: Sequence[str], timeout: float) -> None:
        self._allowed = AllowedHosts(hosts)
        self._timeout = timeout
        self._certificates = ssl.create_default_context()

    async def send(self, url: str, event: WebhookEvent, secrets: Sequence[str]) -> Sent:
        """One attempt. Never raises for what the endpoint or the network does."""
        began, clock = time.time(), time.monotonic()
        status, error, retry_after = None, None, None
        try:
            check_url(url, self._allowed)  # the options may have changed since it was created
            async with asyncio.timeout(self._timeout):
                status, retry_after = await self._post(url, event, secrets, int(began))
            if not 200 <= status < 300:
                error = f"It answered with {status}" + (
                    ", and redirects are not followed." if 300 <= status < 400 else "."
                )
        except TimeoutError:
            error = f"It did not take the event and answer within {self._timeout:g} s."
        except InvalidRequest as refused:
            error = refused.message
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            error = f"{type(failed).__name__}: {failed}"
        error = cut(error, _LONGEST_ERROR) if error is not None else None
        return Sent(Attempt(began, round(time.monotonic() - clock, 3), status, error), retry_after)

    async def _post(
        self, url: str, event: WebhookEvent, secrets: Sequence[str], timestamp: int
    ) -> tuple[int, float | None]:
        body = body_of(event)
        headers = {
            "content-type": "application/json",
            "user-agent": f"Tunewright/{__version__}",
            "accept-encoding": "identity",
            **signed_headers(event.id, timestamp, body, secrets),
        }
        host = URL(url).host or ""
        connector = aiohttp.TCPConnector(
            resolver=aiohttp.ThreadedResolver(),
            ssl=self._certificates,
            force_close=True,
            use_dns_cache=False,
            socket_factory=partial(open_socket, host, self._allowed),
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_LONGEST_LINE,
                max_field_size=_LONGEST_LINE,
                timeout=aiohttp.ClientTimeout(total=self._timeout),
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            status, retry_after = answer.status, _seconds(answer.headers.get("retry-after"))
            left = _LARGEST_ANSWER
            # the status is the answer, whatever becomes of the body
            with suppress(aiohttp.ClientError, OSError):  # OSError: also TimeoutError
                async with asyncio.timeout(_BODY_SECONDS):
                    while left > 0 and (piece := await answer.content.read(left)):
                        left -= len(piece)
            return status, retry_after


def body_of(event: WebhookEvent) -> bytes:
    """The event as OpenAI's event object: the same bytes in each attempt."""
    shown = {
        "id": event.id,
        "object": "event",
        "created_at": int(event.created_at),
        "type": event.type,
        "data": event.data,
    }
    return json.dumps(shown, separators=(",", ":")).encode()


def _seconds(retry_after: str | None) -> float | None:
    """Seconds from a Retry-After header, which has seconds or a date; None where it has neither."""
    if retry_after is None:
        return None
    try:
        return float(min(max(0, int(retry_after)), 10**6))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
