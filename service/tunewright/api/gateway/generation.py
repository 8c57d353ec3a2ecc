"""The LitSpec: registers the generation routes, and puts control operations on LitServe's queue.

Generations do not use the queue (measured at half the throughput, see docs/decisions); control operations do, since
they have one writer, the worker that owns adapter residency.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection
from typing import Any

from fastapi import Request
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from starlette.responses import Response

from tunewright.api.gateway.bodies import LARGE, parse_body
from tunewright.api.gateway.media import check_media
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.api.http.threads import Threads
from tunewright.errors import EngineUnavailable

ROUTES = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
    "/v1/responses": "/v1/responses",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
}
"""The routes of vLLM that clients can reach, and its path for each. Never loading, collective_rpc, sleep or metrics."""

_CONTROL_TIMEOUT = 180.0
"""Seconds until a control operation that was not answered fails."""
_PUT_AGAIN_AFTER = 2.0
"""Seconds until an operation that was not answered is put on the queue again."""


class GenerationSpec(LitSpec):  # type: ignore[misc]
    """Used in the api process only; the copy that is pickled into the worker has no endpoints and no gateway."""

    def __init__(self, media_domains: Collection[str] = ()) -> None:
        super().__init__()
        self._media_domains = frozenset(media_domains)
        self.api_path = "/v1/chat/completions"  # the key of its queue in LitServe
        self.gateway: Gateway | None = None
        self._queue_threads = Threads("queue", 2)
        for path, upstream in ROUTES.items():
            self.add_endpoint(path, self._endpoint(path, upstream), ["POST"])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_endpoints": [],
            "api_path": self.api_path,
            "gateway": None,
            "_server": None,
            "_max_batch_size": 1,
            "response_buffer": None,
            "request_queue": None,
            "response_queue_id": self.response_queue_id,
        }

    def _endpoint(self, path: str, upstream: str) -> Any:
        async def endpoint(request: Request) -> Response:
            assert self.gateway is not None, "the gateway is opened before the first request"
            sender = request.state.principal
            if limited := sender.limited:
                self.gateway.rates.check(limited)  # before the body is read
            raw = await request.body()
            body = await self.gateway.bodies.run(parse_body, raw) if len(raw) > LARGE else parse_body(raw)
            if b"_url" in raw or b"\\u" in raw:  # names may be written with escapes
                check_media(body, self._media_domains)
            user = body.get("user")
            sticky = request.headers.get("x-tunewright-sticky") or (user if isinstance(user, str) else None)
            return Relay(
                self.gateway,
                upstream,
                body,
                sticky,
                project=sender.project,
                key=sender.key,
                size=len(raw),
                limited=limited,
            )

        endpoint.__name__ = path.removeprefix("/v1/").replace("/", "_")
        return endpoint

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Have the worker carry out `operation`. Raises EngineUnavailable where it does not answer in time.

        A worker that is killed loses its operation, and those that the queue delivers to it for a second afterwards.
        So an operation is put on the queue again until it is answered; a worker carries out each one only once.
        """
        uid = str(uuid.uuid4())
        item = ResponseBufferItem(event=asyncio.Event())
        self.response_buffer[uid] = item
        deadline = time.monotonic() + _CONTROL_TIMEOUT
        try:
            while item.response is None:
                if time.monotonic() > deadline:
                    raise EngineUnavailable("The engine worker did not answer in time.", retry_after=10)
                message = (self.response_queue_id, uid, time.monotonic(), {**operation, "id": uid})
                await self._queue_threads.run(self.request_queue.put, message)
                again = time.monotonic() + _PUT_AGAIN_AFTER
                while item.response is None and time.monotonic() < again:
                    await _wait_for_answer(item)
        except (OSError, EOFError) as error:
            # The process of the queue was killed; the api ends soon because of it.
            raise EngineUnavailable(
                "The control queue was lost; it is being restarted.", retry_after=3
            ) from error
        finally:
            self.response_buffer.pop(uid, None)
        answer, status = item.response
        if status != LitAPIStatus.OK or not isinstance(answer, dict):
            raise EngineUnavailable("The engine worker was lost; it is being restarted.", retry_after=3)
        return answer


async def _wait_for_answer(item: ResponseBufferItem) -> None:
    """Wait for the event for up to half a second.

    LitServe's monitor sets it from another thread, which does not wake the event loop, so the caller must poll.
    """
    try:
        await asyncio.wait_for(item.event.wait(), 0.5)
    except TimeoutError:
        pass
