"""The LitSpec: registers the generation routes, and puts control operations on LitServe's queue.

Generations do not use the queue (measured at half the throughput, see docs/decisions); control operations do, since
they have one writer, the worker that owns adapter residency.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from fastapi import Request
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem
from starlette.responses import Response

from tunewright.api.gateway import Gateway, Relay
from tunewright.errors import EngineUnavailable, InvalidRequest, UnsupportedFeature

ROUTES = {
    "/v1/chat/completions": "/v1/chat/completions",
    "/v1/completions": "/v1/completions",
    "/v1/responses": "/v1/responses",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
}
"""What of vLLM can be reached, and under which of its paths. Never loading, collective_rpc, sleep or metrics."""

_CONTROL_TIMEOUT = 180.0


class GenerationSpec(LitSpec):  # type: ignore[misc]
    """Lives in the api process; the copy that is pickled into the worker carries nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.api_path = "/v1/chat/completions"  # LitServe keys its queue by it
        self.gateway: Gateway | None = None
        self.worker: Callable[[], int | None] = lambda: None
        """Process id of the worker that takes operations off the queue now."""
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
            "worker": None,
        }

    def _endpoint(self, path: str, upstream: str) -> Any:
        async def endpoint(request: Request) -> Response:
            body = _parse(await request.body())
            assert self.gateway is not None, "the gateway is opened before the first request"
            return Relay(self.gateway, upstream, body)

        endpoint.__name__ = path.removeprefix("/v1/").replace("/", "_")
        return endpoint

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Have the worker carry out `operation`. Raises EngineUnavailable where it does not answer in time.

        Operations may be repeated: one that a killed worker took with it is put on the queue again for the next.
        """
        uid = str(uuid.uuid4())
        item = ResponseBufferItem(event=asyncio.Event())
        self.response_buffer[uid] = item
        deadline = asyncio.get_running_loop().time() + _CONTROL_TIMEOUT
        try:
            while item.response is None:
                worker = self.worker()
                await asyncio.to_thread(
                    self.request_queue.put, (self.response_queue_id, uid, time.monotonic(), operation)
                )
                while item.response is None and self.worker() == worker:
                    if asyncio.get_running_loop().time() > deadline:
                        raise EngineUnavailable("The engine worker did not answer in time.", retry_after=10)
                    await _look(item)
        except (OSError, EOFError) as error:  # the queue's own process was killed; this one ends for it soon
            raise EngineUnavailable(
                "The control queue was lost; it is being restarted.", retry_after=3
            ) from error
        finally:
            self.response_buffer.pop(uid, None)
        answer, status = item.response
        if status != LitAPIStatus.OK or not isinstance(answer, dict):
            raise EngineUnavailable("The engine worker was lost; it is being restarted.", retry_after=3)
        return answer


async def _look(item: ResponseBufferItem) -> None:
    """LitServe's monitor sets the event from another thread, which does not wake the loop: look now and then."""
    try:
        await asyncio.wait_for(item.event.wait(), 0.5)
    except TimeoutError:
        pass


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_refuse)
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("Name a model: `model` is missing or not a string.", param="model")
    if "chat_template" in body:
        raise UnsupportedFeature(
            "A request cannot bring a chat template; train with one and its model uses it.",
            param="chat_template",
        )
    return body


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")
