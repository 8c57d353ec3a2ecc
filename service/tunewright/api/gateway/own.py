"""The generations that the service asks for itself: for shadows, graders and evaluations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from tunewright import tracing
from tunewright.api.gateway.engine_errors import LOST
from tunewright.api.gateway.grammars import Grammars
from tunewright.api.gateway.ledger import Ledger, Payer
from tunewright.api.gateway.reply import Rename
from tunewright.api.gateway.routing import Router, Target
from tunewright.api.gateway.turns import Caller, sequences
from tunewright.api.gateway.upstream import upstream_body
from tunewright.api.gateway.usage import usage_of
from tunewright.api.http.threads import Threads
from tunewright.engine.http import EngineBusy, EngineHTTP
from tunewright.errors import EngineUnavailable, InvalidRequest
from tunewright.tracing import Span

_GENERATES_NOTHING = frozenset({"/tokenize", "/detokenize"})
_END = 2048
"""Bytes of the end of a stream, in which its usage is."""


class OwnRequests:
    """Used from the event loop of the gateway, which sets what it needs."""

    router: Router
    grammars: Grammars
    ledger: Ledger
    bodies: Threads
    request_timeout: float
    max_generated_tokens: int | None

    def engine(self, socket: str) -> EngineHTTP:
        raise NotImplementedError

    async def ask(
        self,
        model: str,
        path: str,
        body: dict[str, Any],
        *,
        payer: Payer,
        content: str | None = None,
        project: str | None = None,
    ) -> tuple[int, bytes]:
        """Send a request that is not streamed, and return the answer's status and bytes. `payer`: whose use it is;
        `content`: what the model must be (`Target.content`); `project`: whose model it must be, where that was not seen
        to already. Raises TunewrightError."""
        caller = Caller("", project=payer.project)
        with ExitStack() as held:
            target = await self._found(model, content, held, caller, project)
            data = await self.bodies.run(
                upstream_body, path, body, target, self.max_generated_tokens, in_parts=True
            )
            await take_turn(path, body, target, caller, held)
            compilation = held.enter_context(self.grammars.compile(target, body))
            try:
                with engine_span(target) as span:
                    async with self.engine(target.socket).post(path, data, span.headers()) as upstream:
                        answer = await upstream.read()
            except EngineBusy as error:
                raise EngineUnavailable(LOST) from error
            compilation.end()
            if upstream.status < 400:
                self.ledger.note(payer, path, target.public_name, usage_of(answer))
            return upstream.status, Rename(target)(answer)

    async def ask_for(
        self, model: str, path: str, body: dict[str, Any], *, payer: Payer
    ) -> tuple[int, bytes]:
        """`ask` for a model that the payer's project may use."""
        return await self.ask(model, path, body, payer=payer, project=payer.project)

    async def stream(
        self,
        model: str,
        path: str,
        body: dict[str, Any],
        write: Callable[[bytes], Awaitable[None]],
        *,
        payer: Payer,
        content: str | None = None,
    ) -> tuple[int, bytes]:
        """As `ask`, of a streamed answer that has its usage, which `write` gets as the engine sends it, with the
        engine's own name of the model. Returns the status, and the text where that is an error."""
        end, caller = b"", Caller("", project=payer.project)
        with ExitStack() as held:
            target = await self._found(model, content, held, caller)
            data = await self.bodies.run(
                upstream_body, path, body, target, self.max_generated_tokens, in_parts=True
            )
            await take_turn(path, body, target, caller, held)
            try:
                async with self.engine(target.socket).post(path, data) as upstream:
                    if upstream.status != 200:
                        return upstream.status, Rename(target)(await upstream.read())
                    while part := await upstream.part():
                        end = (end + part)[-_END:]
                        await write(part)
            except EngineBusy as error:
                raise EngineUnavailable(LOST) from error
            self.ledger.note(payer, path, target.public_name, usage_of(end))
            return 200, b""

    async def _found(
        self, model: str, content: str | None, held: ExitStack, caller: Caller, project: str | None = None
    ) -> Target:
        """The model, which must have the weights `content`."""
        target = await self.router.find(model, held, caller, project=project)
        if content is not None and target.content != content:
            raise InvalidRequest(
                f"{model} is another model now than it was.", param="model", code="model_changed"
            )
        return target

    async def ask_by_name(
        self, body: dict[str, Any], project: str, key: str | None = None
    ) -> tuple[int, bytes]:
        """`ask` for a chat completion of the project's model or alias that the body names, as a use of the key."""
        async with asyncio.timeout(self.request_timeout):
            model, _ = await self.router.choose(body["model"], None, project)
            payer = Payer(project, key, source="grader")
            return await self.ask(model, "/v1/chat/completions", body, payer=payer, project=project)


async def take_turn(path: str, body: dict[str, Any], target: Target, caller: Caller, held: ExitStack) -> None:
    """Wait for the request's turn at the engine, which it has until `held` is closed."""
    if target.line is not None and path not in _GENERATES_NOTHING:
        with tracing.span("admission", {"tunewright.waiting": target.line.waiting}):
            size = await target.line.take(caller, sequences(body))
        held.callback(target.line.give_back, size, caller)


def engine_span(target: Target) -> AbstractContextManager[Span]:
    return tracing.span("engine", {"gen_ai.response.model": target.public_name}, "CLIENT")
