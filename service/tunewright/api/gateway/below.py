"""Generations below live traffic: those of batches, and those from which jobs learn. They go to an engine only where no
other request waits for it (`turns.py`). Those of batches are what a client could send, with a model or an alias.

A request that waits holds neither an adapter nor a deployment: it may wait for hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from tunewright.api.gateway.bodies import LARGE, parse_body
from tunewright.api.gateway.engine_errors import LOST, engine_error
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.media import check_media
from tunewright.api.gateway.proxy import Gateway
from tunewright.api.gateway.reply import Rename
from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.turns import BATCHES, sequences
from tunewright.api.gateway.upstream import upstream_body
from tunewright.api.gateway.usage import usage_of
from tunewright.engine.http import EngineBusy
from tunewright.errors import EngineUnavailable, Internal, InvalidRequest, RequestTimeout

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})


class BelowLive:
    """Used from the event loop of the gateway."""

    def __init__(self, gateway: Gateway, media_domains: Collection[str] = ()) -> None:
        self._gateway = gateway
        self._media_domains = frozenset(media_domains)

    async def ask(self, path: str, raw: bytes, sticky: str | None, payer: Payer) -> bytes:
        """The answer to a body of the payer's project. It waits for its turn without a limit, and then for as long as a
        generation may take. Raises TunewrightError."""
        if path not in PATHS:
            raise InvalidRequest(f"{path[:100]} is not answered here.", param="path")
        bodies = self._gateway.bodies
        body = await bodies.run(parse_body, raw) if len(raw) > LARGE else parse_body(raw)
        if body.get("stream") or body.get("background"):
            raise InvalidRequest(
                "A request of a batch is neither streamed nor answered later.", param="stream"
            )
        check_media(body, self._media_domains)
        project = payer.project
        model, _ = await self._gateway.router.choose(body["model"], sticky, project)
        return await self.send(model, path, body, len(raw), payer=payer, project=project)

    async def send(
        self,
        model: str,
        path: str,
        body: dict[str, Any],
        size: int,
        *,
        payer: Payer,
        project: str | None,
        content: str | None = None,
        patience: float | None = None,
    ) -> bytes:
        """The model's answer. `project`: whose model it must be; `content`: the weights that it must have; `patience`:
        seconds that it may wait for its turn. Raises TunewrightError."""
        while True:
            with ExitStack() as held:
                target = await self._gateway.router.find(model, held, BATCHES, project=project)
            line = target.line
            assert line is not None, "the router gives each target its line"
            data = await self._body(target, path, body, size)  # what is refused does not wait
            try:
                async with asyncio.timeout(patience):
                    taken = await line.take_below(sequences(body))
            except TimeoutError as error:
                raise EngineUnavailable("The engine has no place below live traffic: try again.") from error
            try:
                async with asyncio.timeout(self._gateway.request_timeout):
                    with ExitStack() as held:
                        checked = target
                        target = await self._gateway.router.find(model, held, BATCHES, project=project)
                        if target.line is line:  # else another engine has it by now
                            if content is not None and target.content != content:
                                raise EngineUnavailable("The engine has other weights now: try again.")
                            if target != checked:
                                data = await self._body(target, path, body, size)
                            return await self._ask(target, path, body, data, held, payer)
            except TimeoutError as error:
                raise RequestTimeout("The generation took longer than --request-timeout.") from error
            finally:
                line.give_back_below(taken)

    async def _ask(
        self, target: Target, path: str, body: dict[str, Any], data: bytes, held: ExitStack, payer: Payer
    ) -> bytes:
        """`data`: the body for the target."""
        gateway = self._gateway
        compilation = held.enter_context(gateway.grammars.compile(target, body))
        try:
            async with gateway.engine(target.socket).post(path, data) as upstream:
                answer = await upstream.read()
        except EngineBusy as error:
            raise Internal(LOST, code="engine_failed") from error  # so that it is not asked for ever
        compilation.end()
        if upstream.status < 400:
            gateway.ledger.note(payer, path, target.public_name, usage_of(answer))
            return Rename(target)(answer)
        if upstream.status == 404 and target.internal_name.encode() in answer:
            raise EngineUnavailable(f"The engine does not know {target.public_name} now: try again.")
        told = engine_error(upstream.status, answer, target, path, body)
        raise Internal(told.message, code="engine_failed") if isinstance(told, EngineUnavailable) else told

    async def _body(self, target: Target, path: str, body: dict[str, Any], size: int) -> bytes:
        """Raises InvalidRequest."""
        gateway = self._gateway
        most = gateway.max_generated_tokens
        return await gateway.bodies.run(upstream_body, path, body, target, most, size=size, in_parts=True)
