"""The gateway for processes of the service itself: on a unix socket in a folder that only the service's user can enter,
as the engines' sockets are, so that no key is needed and none is handed on.

It takes `POST /ask` with `{"model", "content", "path", "body"}` and sends `body` to `path` (of `PATHS`) of the engine
that has the model, as a use of the project and the key that the headers of `jobs.gateway` name; `POST /stream` does the
same with an answer that is streamed. Leases, loading on demand, turns, limits and plain control tokens are as for every
generation. It knows no aliases, and answers only while the model has the weights `content`: an evaluated model or a
teacher stays one thing, whatever is flipped, deleted or deployed meanwhile.

`POST /batch?path=PATH&sticky=TEXT&project=PROJECT&key=KEY` takes the body of a generation and answers it as the public
route does, with the models and aliases of the project, below all live traffic (`below.py`).

`POST /sample` is for the processes of jobs that learn from what their own model answers (`policies.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from tunewright.api.gateway.below import BelowLive
from tunewright.api.gateway.external_judge import ExternalJudge
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.policies import Policies
from tunewright.api.gateway.proxy import Gateway
from tunewright.errors import EngineUnavailable, InvalidRequest, RequestTimeout, TunewrightError
from tunewright.evaluator.folder import EXTERNAL
from tunewright.jobs.gateway import KEY_HEADER, PROJECT_HEADER, SOURCE_HEADER
from tunewright.store.policies import PolicyStore
from tunewright.store.tables import DEFAULT_PROJECT
from tunewright.store.usage import UsageSource

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/tokenize"})
_LARGEST = 32 * 2**20
_ALL_OF_BATCHES = 4 * _LARGEST
"""Bytes of the requests of batches that are here: each waits for hours where live traffic does not end, and takes three
times its bytes."""
_SOURCES: dict[str, UsageSource] = {"synthesis": "synthesis", "grader": "grader"}
_TOO_LONG = "The generation took longer than --request-timeout."


class InnerGateway:
    """Serves in the event loop in which it is started. `judge` is asked in the place of a model whose content is
    `EXTERNAL`."""

    def __init__(
        self,
        gateway: Gateway,
        socket: Path,
        judge: ExternalJudge | None = None,
        media_domains: Collection[str] = (),
        policies: PolicyStore | None = None,
    ) -> None:
        self._gateway = gateway
        self._below = BelowLive(gateway, media_domains)
        self._policies = Policies(self._below, policies) if policies is not None else None
        self._socket = socket
        self._judge = judge
        self._of_batches = 0
        """Bytes of the bodies of requests of batches that are here."""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises OSError."""
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_post("/ask", self._ask)
        app.router.add_post("/stream", self._stream)
        app.router.add_post("/batch", self._batch)
        if self._policies is not None:
            app.router.add_post("/sample", self._sample)
        # a process that is killed takes its requests back
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        with suppress(FileNotFoundError):
            self._socket.unlink()  # that of an api that was killed
        await web.UnixSite(self._runner, str(self._socket)).start()
        os.chmod(self._socket, 0o600)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._judge is not None:
            await self._judge.close()

    async def _ask(self, request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            status, answer = await self._answer(asked, _payer(request))
        except TunewrightError as error:
            return web.json_response(error.body(), status=error.status)
        except ValueError:
            return web.json_response(InvalidRequest("The body is no JSON.").body(), status=400)
        return web.Response(body=answer, status=status, content_type="application/json")

    async def _batch(self, request: web.Request) -> web.Response:
        size = request.content_length or 0
        if self._of_batches and self._of_batches + size > _ALL_OF_BATCHES:
            busy = EngineUnavailable("Other requests of batches wait, which take much memory: try again.")
            return web.json_response(busy.body(), status=busy.status)
        self._of_batches += size
        try:
            raw = await request.read()
            query = request.query
            payer = Payer(query.get("project", ""), query.get("key") or None, source="batch")
            answer = await self._below.ask(query.get("path", ""), raw, query.get("sticky"), payer)
        except TunewrightError as error:
            return web.json_response(error.body(), status=error.status)
        finally:
            self._of_batches -= size
        return web.Response(body=answer, content_type="application/json")

    async def _sample(self, request: web.Request) -> web.Response:
        assert self._policies is not None, "the route is there only with them"
        try:
            raw = await request.read()
            payer = replace(_payer(request), source="training")
            answer = await self._policies.sample(json.loads(raw), len(raw), payer)
        except TunewrightError as error:
            return web.json_response(error.body(), status=error.status)
        except (ValueError, LookupError):
            return web.json_response(InvalidRequest("The body is no such request.").body(), status=400)
        return web.Response(body=answer, content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """As `/ask`, of an answer whose events are passed on as they arrive; the connection is closed where it breaks
        off."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

        async def write(part: bytes) -> None:
            if not response.prepared:
                await response.prepare(request)
            await response.write(part)

        try:
            asked = await request.json()
            _check_path(asked["path"])
            async with asyncio.timeout(self._gateway.request_timeout):
                status, text = await self._gateway.stream(
                    asked["model"],
                    asked["path"],
                    asked["body"],
                    write,
                    payer=_payer(request),
                    content=asked["content"],
                )
        except (TunewrightError, TimeoutError, ValueError) as error:
            if response.prepared:
                if request.transport is not None:
                    request.transport.abort()
                return response
            told = error if isinstance(error, TunewrightError) else InvalidRequest(str(error))
            if isinstance(error, TimeoutError):
                told = RequestTimeout(_TOO_LONG)
            return web.json_response(told.body(), status=told.status)
        if status != 200:
            return web.Response(body=text, status=status, content_type="application/json")
        await response.write_eof()
        return response

    async def _answer(self, asked: dict[str, Any], payer: Payer) -> tuple[int, bytes]:
        _check_path(asked["path"])
        try:
            async with asyncio.timeout(self._gateway.request_timeout):
                if asked["content"] == EXTERNAL:
                    return await self._ask_judge(asked)
                return await self._gateway.ask(
                    asked["model"], asked["path"], asked["body"], payer=payer, content=asked["content"]
                )
        except TimeoutError as error:
            raise RequestTimeout(_TOO_LONG) from error

    async def _ask_judge(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        if self._judge is None:
            raise InvalidRequest("The operator allows no judge elsewhere any more.", code="judge_refused")
        return await self._judge.ask(asked["body"])


def _payer(request: web.Request) -> Payer:
    headers = request.headers
    source = _SOURCES.get(headers.get(SOURCE_HEADER, ""), "evaluation")
    project, key = headers.get(PROJECT_HEADER, DEFAULT_PROJECT), headers.get(KEY_HEADER) or None
    return Payer(project, key, source=source)


def _check_path(path: str) -> None:
    if path not in PATHS:
        raise InvalidRequest(f"{path} is not answered here.", param="path")
