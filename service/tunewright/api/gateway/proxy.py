"""The gateway: streams a generation from vLLM to the client, in the api process and without LitServe's queue.

vLLM echoes its internal model name. That fixed string is replaced in each server-sent event without parsing the JSON.
(Inside a JSON string the quotes around it would be escaped, so the text of an answer is never changed.)
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from contextlib import ExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunewright import tracing
from tunewright.api.gateway.bodies import LARGE
from tunewright.api.gateway.engine_errors import LOST, engine_error, is_dead
from tunewright.api.gateway.grammars import NO_COMPILATION, Compilation, Grammars
from tunewright.api.gateway.guard import Guard
from tunewright.api.gateway.ledger import Entry, Ledger, Payer
from tunewright.api.gateway.own import OwnRequests, engine_span, take_turn
from tunewright.api.gateway.prompts import Prompts
from tunewright.api.gateway.rates import Admitted, Limited, Rates
from tunewright.api.gateway.reply import Rename, Reply, answer_headers, disconnected
from tunewright.api.gateway.routing import Router, Target
from tunewright.api.gateway.shadow import Shadow
from tunewright.api.gateway.shadow_judge import ShadowJudge
from tunewright.api.gateway.turns import Caller, caller_of
from tunewright.api.gateway.upstream import ENDED_BY_DONE, upstream_body
from tunewright.api.gateway.usage import with_usage
from tunewright.api.http.threads import Threads
from tunewright.api.telemetry.counts import FAILED, LEFT, Counts
from tunewright.engine.connections import Answer
from tunewright.engine.http import EngineBusy, EngineHTTP
from tunewright.errors import EngineUnavailable, RequestTimeout, TooManyRequests, TunewrightError
from tunewright.registry.aliases import Alias
from tunewright.store.store import Store
from tunewright.tracing import NO_SPAN, Span

log = logging.getLogger("tunewright.api")

_STREAMS = frozenset({*ENDED_BY_DONE, "/v1/responses"})
_HAS_OUTPUT = b"response.output"
"""In the first event of a response that comes from the model; others come before, as soon as vLLM has the request."""


class Gateway(OwnRequests):
    """Sends generations to the engines, with one connection pool for each. Bound to the serving event loop.

    `request_timeout` is the time that a generation may take, in seconds; `max_generated_tokens`, what one request may
    ask for in all its choices; `most_names`, of how many models requests are counted one by one.
    """

    def __init__(
        self,
        router: Router,
        store: Store,
        *,
        request_timeout: float = 600.0,
        max_generated_tokens: int | None = None,
        most_names: int = 100,
    ) -> None:
        self.router = router
        self.counts = Counts(most_names)
        self.guard = Guard(store)
        self.ledger = Ledger(store)
        self.rates = Rates()
        self.prompts = Prompts(self.engine)
        self.shadow = Shadow(
            store, self.ask_for, timeout=request_timeout, judge=ShadowJudge(store, self.ask_for, self.guard)
        )
        self.grammars = Grammars(self.engine)
        self.request_timeout = request_timeout
        self.max_generated_tokens = max_generated_tokens
        self.bodies = Threads("bodies", 2)
        """Where large bodies are parsed and written."""
        self._engines: dict[str, EngineHTTP] = {}

    async def close(self) -> None:
        await self.shadow.close()
        await self.grammars.close()
        await self.prompts.close()
        await self.ledger.close()
        for engine in self._engines.values():
            await engine.close()
        self.router.close()

    def engine(self, socket: str) -> EngineHTTP:
        engine = self._engines.get(socket)
        if engine is None:
            engine = self._engines[socket] = EngineHTTP(socket)
        return engine


class Relay(Response):
    """A response that passes on vLLM's answer, streamed or not. A client's disconnect aborts the request in vLLM.

    `project`: whose models and aliases it may name, and whose use it is; `key`: the id of the key; `limited`: the
    rates that hold for it. `sticky`: requests with the same key get the same target of an alias. `size`: bytes of the
    body, where they are known; a large one is written by a thread, and a small one has no text that is too long.
    """

    def __init__(
        self,
        gateway: Gateway,
        upstream_path: str,
        body: dict[str, Any],
        sticky: str | None = None,
        *,
        project: str,
        key: str | None = None,
        size: int | None = None,
        limited: Limited = (),
    ) -> None:
        self.background = None
        self._project = project
        self._payer = Payer(project, key)
        self._entry: Entry | None = None
        self._asked: Target | None = None
        """Where the request was sent."""
        self._gateway = gateway
        self._path = upstream_path
        self._body, hides_usage = with_usage(upstream_path, body)
        self._counted = gateway.counts.begin(upstream_path)
        self._counted.hides_usage = hides_usage
        self._sticky = sticky
        self._size = size
        self._limited = limited
        self._admitted: Admitted | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._limited:
            await self._run(scope, receive, send)
            return
        try:
            with self._gateway.rates.admit(self._limited) as self._admitted:
                await self._run(scope, receive, self._admitted.sending(send))
        finally:
            self._counted.end(TooManyRequests.status)  # where it was refused

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(scope, receive, send)
        answering = asyncio.current_task()
        assert answering is not None, "the server runs each request in a task"
        has_left = False

        async def watch() -> None:
            nonlocal has_left
            await disconnected(receive)
            if not reply.has_ended:
                has_left = True
                answering.cancel()  # closes the connection to vLLM, which aborts the request

        watching = asyncio.create_task(watch())
        try:
            await self._answer(scope, reply)
        except asyncio.CancelledError:
            if not has_left:
                raise  # the server stops
        finally:
            watching.cancel()
            self._counted.end(LEFT if has_left else FAILED)  # if it has not been ended
            self._pay(has_left)
        if has_left and answering.uncancel():
            raise asyncio.CancelledError  # it stops at the same moment

    async def _answer(self, scope: Scope, reply: Reply) -> None:
        error: TunewrightError | None = None
        limit = self._gateway.request_timeout
        began = time.monotonic()
        model, alias = "", None
        try:
            async with asyncio.timeout(limit):
                model, alias = await self._gateway.router.choose(
                    self._body["model"], self._sticky, self._project
                )
                self._counted.named(model, alias.label if alias else "")
                self._entry = self._gateway.ledger.begin(self._payer, self._path, model, self._counted)
                if tracing.is_on():
                    named = {"gen_ai.request.model": self._body["model"], "gen_ai.response.model": model}
                    tracing.current().set(named | {"tunewright.alias": alias.name if alias else None})
                if alias is not None:
                    self._gateway.shadow.copy(alias, model, self._path, self._body)
                if self._path in _STREAMS and self._body.get("stream") is True:
                    reply.keep_open(functools.partial(answer_headers, model, alias))
                await self._ask(model, alias, caller_of(scope, self._body, self._project), reply)
        except TimeoutError:
            error = RequestTimeout(
                f"The generation took longer than {limit:g} s (--request-timeout) and was ended: ask for fewer tokens."
            )
        except TunewrightError as raised:
            error = raised
        finally:
            await reply.close()
        if alias is not None:
            seconds = (reply.began_at or time.monotonic()) - began
            self._gateway.guard.observe(alias, model, ok=error is None or error.status < 500, seconds=seconds)
        self._counted.end(200 if error is None else error.status)
        if tracing.is_on():
            _tell(tracing.current(), self._counted.usage, error)
        if error is not None:
            await reply.fail(error, is_response=self._path == "/v1/responses")

    def _pay(self, has_left: bool) -> None:
        """The request has ended, in whatever way: count what was used."""
        if self._entry is None:
            return
        used = self._entry.end()
        if used is not None and self._admitted is not None:
            self._admitted.used(used.input_tokens + used.output_tokens)
        if used is not None and has_left and self._counted.usage is None and self._asked is not None:
            self._gateway.prompts.count(self._asked, self._path, self._body, self._add_prompt)

    def _add_prompt(self, tokens: int) -> None:
        assert self._entry is not None, "it has ended"
        self._entry.add_prompt(tokens)
        if self._admitted is not None:
            self._admitted.used(tokens)

    async def _ask(self, model: str, alias: Alias | None, caller: Caller, reply: Reply) -> None:
        for attempt in (1, 2):
            with ExitStack() as held:
                target = await self._gateway.router.find(model, held, caller, project=self._project)
                data = await self._data(target)
                await take_turn(self._path, self._body, target, caller, held)
                compilation = held.enter_context(self._gateway.grammars.compile(target, self._body))
                if await self._relay(target, data, compilation, alias, reply, may_retry=attempt == 1):
                    return

    async def _data(self, target: Target) -> bytes:
        """The body for vLLM. Raises InvalidRequest."""
        most = self._gateway.max_generated_tokens
        if self._size is None or self._size <= LARGE:
            return upstream_body(self._path, self._body, target, most, size=self._size)
        return await self._gateway.bodies.run(
            upstream_body, self._path, self._body, target, most, size=self._size, in_parts=True
        )

    async def _relay(
        self,
        target: Target,
        data: bytes,
        compilation: Compilation,
        alias: Alias | None,
        reply: Reply,
        *,
        may_retry: bool,
    ) -> bool:
        """Send the request to vLLM and pass on its answer.

        Returns False where the engine does not have the adapter (any more) and the caller should resolve it again.
        """
        self._asked = target
        try:
            with engine_span(target) as span:
                engine = self._gateway.engine(target.socket)
                async with engine.post(self._path, data, span.headers()) as upstream:
                    if upstream.status < 400:
                        await self._pass_on(upstream, target, compilation, alias, reply, span)
                        return True
                    text = await upstream.read()
                    compilation.end()
                    if upstream.status == 404 and may_retry:
                        return False
                    if upstream.status == 404 and target.internal_name.encode() in text:
                        raise EngineUnavailable(
                            f"The engine does not know {target.public_name} now: try again."
                        )
                    raise engine_error(upstream.status, text, target, self._path, self._body)
        except EngineBusy as error:
            log.warning("engine at %s: %s", target.socket, error)
            raise EngineUnavailable(LOST) from error

    async def _pass_on(
        self,
        upstream: Answer,
        target: Target,
        compilation: Compilation,
        alias: Alias | None,
        reply: Reply,
        span: Span,
    ) -> None:
        content_type = upstream.headers.get("content-type", "application/json")
        headers = answer_headers(target.public_name, alias, content_type)
        if upstream.content_type == "text/event-stream":
            await reply.begin(upstream.status, headers)
            await self._pass_events(upstream, target, reply, compilation, span)
        else:
            # Read as a whole, so that a failure still gets a status of its own.
            text = Rename(target)(await upstream.read())
            compilation.end()
            self._counted.whole(text)
            await reply.begin(upstream.status, headers)
            await reply.end(text)

    async def _pass_events(
        self,
        upstream: Answer,
        target: Target,
        reply: Reply,
        compilation: Compilation = NO_COMPILATION,
        span: Span = NO_SPAN,
    ) -> None:
        """Pass on whole events only, so that no model name is split between two chunks.

        Raises EngineUnavailable where the stream ends without [DONE].
        """
        renamed = Rename(target)
        buffered = last = b""
        awaits_token = bool(span)
        while chunk := await upstream.part():
            buffered += chunk
            cut = buffered.rfind(b"\n\n") + 2
            if cut > 1:
                whole, buffered = buffered[:cut], buffered[cut:]
                last = whole[-32:]
                if is_dead(whole):
                    raise EngineUnavailable(LOST)
                if self._path in ENDED_BY_DONE or _HAS_OUTPUT in whole:
                    compilation.end()
                if shown := self._counted.part(renamed(whole)):
                    await reply.part(shown)
                if awaits_token and self._counted.has_token:
                    span.event("first token")
                    awaits_token = False
        if self._path in ENDED_BY_DONE and last.rstrip().rpartition(b"\n")[2] != b"data: [DONE]":
            raise EngineUnavailable(LOST)
        await reply.end(buffered)


def _tell(span: Span, usage: tuple[int, int] | None, error: TunewrightError | None) -> None:
    if usage is not None:
        span.set({"gen_ai.usage.input_tokens": usage[0], "gen_ai.usage.output_tokens": usage[1]})
    if error is not None:
        span.fail(error.code or str(error.status))  # its message may quote the request
