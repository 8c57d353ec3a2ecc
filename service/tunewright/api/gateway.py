"""Carries the bytes of a generation from vLLM to the client, in the api process and past LitServe's queue.

vLLM echoes its internal model name; that fixed string is replaced in each server-sent event, never by parsing JSON.
(Inside a JSON string the quotes around it would be escaped, so an answer's text cannot be touched.)
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tunewright.api.bodies import check_tokens, write_body
from tunewright.api.errors import error_response
from tunewright.errors import (
    EngineUnavailable,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    TooManyRequests,
    TunewrightError,
    UnsupportedFeature,
)
from tunewright.store.states import EngineState, Residency
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

_WAIT_FOR_LOADING = 30.0
_LONGEST_MESSAGE = 2000
_ENDED_BY_DONE = frozenset({"/v1/chat/completions", "/v1/completions"})
_TAKES_TEMPLATE = frozenset({"/v1/chat/completions", "/tokenize"})
_CHATS = frozenset({"/v1/chat/completions", "/v1/responses"})
_TAKES_NO_TEMPLATE = frozenset({"/v1/responses"})
_JSON = {"Content-Type": "application/json"}
_LOST = "The engine was lost while answering: try again."


@dataclass(frozen=True)
class Target:
    """Where a model's requests go."""

    socket: str
    internal_name: str
    public_name: str
    chat_template: str | None
    """The adapter's own."""
    base_has_template: bool = True
    vocabulary: int | None = None
    """Number of tokens, where the base's config has it."""


class Gateway:
    """One connection pool for each engine's socket. Opened in the event loop that serves.

    `max_requests`: generations in flight for each engine. `request_timeout`: seconds that one may take.
    """

    def __init__(self, store: Store, *, max_requests: int = 1024, request_timeout: float = 600.0) -> None:
        self._store = store
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._max_requests = max_requests
        self.request_timeout = request_timeout
        self.in_flight: Counter[str] = Counter()
        """Generations by the engine's name, those that wait for their adapter among them."""

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def find(self, name: str, held: ExitStack) -> Target:
        """The target of model `name`; waits for an adapter that is being loaded.

        The request counts as in flight until `held` is closed. Raises NotFound, InvalidRequest (it is not loaded and
        nobody asked for it), EngineUnavailable, TooManyRequests.
        """
        deadline = asyncio.get_running_loop().time() + _WAIT_FOR_LOADING
        entered = False
        while True:
            model, engine, residency = await asyncio.to_thread(self._store.models.resolve, name)
            if model is None and engine is None:
                raise NotFound(f"No such model: {name!r}.", param="model", code="model_not_found")
            if model is not None and model.kind == "full":
                raise InvalidRequest(
                    f"{name} is a fully fine-tuned model: download it with GET /v1/models/{name}/download. "
                    "It is not served by this engine.",
                    param="model",
                    code="model_not_served",
                )
            if engine is None:
                raise InvalidRequest(f"The base of {name} is not among those served here.", param="model")
            if engine.state is not EngineState.READY or engine.socket is None or engine.info is None:
                why = f": {engine.reason}" if engine.reason else ""
                raise EngineUnavailable(
                    f"The engine of {engine.name} is not ready ({engine.state.value}{why}): try again later."
                )
            if not entered:
                self._enter(engine.name, held)
                entered = True
            if model is None or (residency is not None and residency.state is Residency.LOADED):
                return Target(
                    engine.socket,
                    model.sha256 if model else engine.info["internal_name"],
                    name,
                    model.chat_template if model else None,
                    engine.info.get("has_chat_template", True),
                    engine.info.get("vocab_size"),
                )
            if model.desired != "loaded":
                raise InvalidRequest(
                    f"{name} is not loaded: load it with POST /v1/adapters/{model.id}/load.",
                    param="model",
                    code="model_not_loaded",
                )
            if residency is not None and residency.state is Residency.FAILED:
                raise EngineUnavailable(f"{name} could not be loaded: {residency.error}", retry_after=30)
            if asyncio.get_running_loop().time() > deadline:
                raise EngineUnavailable(f"{name} is still being loaded: try again.")
            await asyncio.sleep(0.1)

    def _enter(self, engine: str, held: ExitStack) -> None:
        if self.in_flight[engine] >= self._max_requests:
            raise TooManyRequests(
                f"{engine} has {self._max_requests} requests in flight, which is the limit (--max-requests): try again "
                "when some have ended."
            )
        self.in_flight[engine] += 1
        held.callback(self._leave, engine)

    def _leave(self, engine: str) -> None:
        self.in_flight[engine] -= 1

    def session(self, socket: str) -> aiohttp.ClientSession:
        session = self._sessions.get(socket)
        if session is None:
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=socket, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
                read_bufsize=1 << 18,
            )
        return session


class Relay(Response):
    """A response that is vLLM's, streamed or not. The client's disconnect aborts the request in vLLM."""

    def __init__(self, gateway: Gateway, upstream_path: str, body: dict[str, Any]) -> None:
        self.background = None
        self._gateway = gateway
        self._path = upstream_path
        self._body = body
        self._started = self._ended = False  # the answer, towards the client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            work.cancel()  # closes its connection, and so vLLM aborts
            for task in (gone, work):
                with suppress(asyncio.CancelledError):
                    await task

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: TunewrightError
        limit = self._gateway.request_timeout
        try:
            async with asyncio.timeout(limit):
                for attempt in (1, 2):
                    with ExitStack() as held:
                        target = await self._gateway.find(self._body["model"], held)
                        if await self._relay(target, send, may_retry=attempt == 1):
                            return
        except TimeoutError:
            error = RequestTimeout(
                f"The generation took longer than {limit:g} s (--request-timeout) and was ended: ask for fewer tokens."
            )
        except TunewrightError as raised:
            error = raised
        if not self._started:
            await error_response(error)(scope, receive, send)
        elif not self._ended:
            await send(_error_event(error))

    async def _relay(self, target: Target, send: Send, *, may_retry: bool) -> bool:
        """Ask vLLM and pass on its answer; False where the adapter was unloaded meanwhile: look again."""
        body = {**self._body, "model": target.internal_name}
        if target.chat_template is not None:
            if self._path in _TAKES_TEMPLATE and "prompt" not in body:
                body["chat_template"] = target.chat_template
            elif self._path in _TAKES_NO_TEMPLATE:
                raise InvalidRequest(
                    f"{target.public_name} has a chat template of its own, which this route cannot take; use "
                    "/v1/chat/completions.",
                    param="model",
                )
        elif not target.base_has_template and self._path in _CHATS:
            raise InvalidRequest(
                f"{target.public_name} has no chat template: use /v1/completions, or fine-tune it with a "
                "`chat_template`.",
                param="model",
                code="no_chat_template",
            )
        if target.vocabulary is not None:
            check_tokens(body, target.vocabulary)
        data = write_body(body)
        try:
            session = self._gateway.session(target.socket)
            async with session.post(f"http://engine{self._path}", data=data, headers=_JSON) as upstream:
                if upstream.status >= 400:
                    text = await upstream.read()
                    if upstream.status == 404 and may_retry:
                        return False
                    raise _upstream_error(upstream.status, text, target)
                start = _start(upstream.status, upstream.headers.get("Content-Type", "application/json"))
                if upstream.content_type == "text/event-stream":
                    self._started = True
                    await send(start)
                    await self._pass_events(upstream, target, send)
                else:
                    text = _renamed(await upstream.read(), target)  # whole, or an error with its own status
                    self._started = self._ended = True
                    await send(start)
                    await send({"type": "http.response.body", "body": text})
                return True
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError) as error:
            log.warning("engine at %s: %r", target.socket, error)
            raise EngineUnavailable(_LOST) from error

    async def _pass_events(self, upstream: aiohttp.ClientResponse, target: Target, send: Send) -> None:
        """Whole events only, so that a name is never cut in two; an end without [DONE] is told as an error."""
        waiting = b""
        last = b""
        async for chunk in upstream.content.iter_any():
            waiting += chunk
            cut = waiting.rfind(b"\n\n") + 2
            if cut > 1:
                whole, waiting = waiting[:cut], waiting[cut:]
                last = whole[-32:]
                await send({"type": "http.response.body", "body": _renamed(whole, target), "more_body": True})
        self._ended = True
        if self._path in _ENDED_BY_DONE and last.rstrip().rpartition(b"\n")[2] != b"data: [DONE]":
            await send(_error_event(EngineUnavailable(_LOST)))
            return
        await send({"type": "http.response.body", "body": waiting})


async def _disconnected(receive: Receive) -> None:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return


def _start(status: int, content_type: str) -> Message:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache")]
    return {"type": "http.response.start", "status": status, "headers": headers}


def _error_event(error: TunewrightError) -> Message:
    event = b"data: " + json.dumps(error.body()).encode() + b"\n\n"
    return {"type": "http.response.body", "body": event}


def _renamed(data: bytes, target: Target) -> bytes:
    return data.replace(
        b'"model":"' + target.internal_name.encode() + b'"',
        b'"model":' + json.dumps(target.public_name).encode(),
    )


def _upstream_error(status: int, text: bytes, target: Target) -> TunewrightError:
    """vLLM's error in OpenAI's form, under the public name."""
    try:
        body = json.loads(text)
        error = body.get("error", body)
        message = str(error.get("message") or error.get("detail") or error)
        param = error.get("param")
    except (ValueError, AttributeError):
        message, param = text.decode(errors="replace")[:500] or f"HTTP {status}", None
    message = message.replace(target.internal_name, target.public_name)
    if len(message) > _LONGEST_MESSAGE:  # it may quote the whole body
        message = message[:_LONGEST_MESSAGE] + "..."
    if status == 501:
        return UnsupportedFeature(f"The engine does not offer this: {message}")
    if status >= 500:
        return EngineUnavailable(f"The engine failed: {message}")
    if status == 404 and message == "Not Found":
        return UnsupportedFeature(
            f"The engine of {target.public_name} does not offer this route.", param="model"
        )
    if status == 404:
        return NotFound(message, param="model", code="model_not_found")
    return InvalidRequest(message, param=str(param) if param else None)
