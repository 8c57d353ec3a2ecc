"""Counts the grammars that engines may still compile for requests that have ended, and refuses more of them in time.

vLLM (0.32) compiles grammars in a pool of threads, half as many as the machine has processors. A request that is
aborted, because it timed out or its client left, does not leave the pool: neither is its compilation ended, nor is one
that waits for a thread taken out (`v1/structured_output`). A few slow ones keep everybody's grammars waiting.

The pool takes grammars in the order in which they came. So a small request with a grammar, sent to the engine after
others have ended, is answered when all of theirs have been compiled or have a thread, and one thread is free.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from tunewright.api.gateway.bodies import write_body
from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.tools import compiled_tools
from tunewright.engine.http import EngineBusy, EngineHTTP
from tunewright.errors import TooManyRequests

log = logging.getLogger("tunewright.api")

_MOST_LEFT = 8
_PROBE_PATH = "/v1/completions"
_PROBE_AGAIN = 1.0
"""Seconds until an engine that could not be asked is asked again."""
_LONGEST = 1800.0
"""Seconds after which it is assumed that compilations have ended, where the engine cannot be asked."""


class Compilation:
    """What an engine compiles for one request, as a context that ends with the request."""

    def __init__(self, grammars: Grammars | None = None, target: Target | None = None) -> None:
        self._grammars, self._target = grammars, target

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._grammars is not None and self._target is not None:
            self._grammars.leave(self._target)

    def end(self) -> None:
        """The engine has answered, so it compiles nothing more for this request."""
        self._grammars = None


NO_COMPILATION = Compilation()


class Grammars:
    """The grammars of all engines. Used from one event loop only. `engine` returns the connections to a socket."""

    def __init__(self, engine: Callable[[str], EngineHTTP]) -> None:
        self._engine = engine
        self.left: Counter[str] = Counter()
        """Compilations that were left by their requests and may still run or wait, by the engine's socket."""
        self._probes: dict[str, asyncio.Task[None]] = {}

    def compile(self, target: Target, body: dict[str, Any]) -> Compilation:
        """Called before the request is sent. Raises TooManyRequests where it has a grammar and too many may still be
        compiled."""
        if not has_grammar(body):
            return NO_COMPILATION
        if self.left[target.socket] >= _MOST_LEFT:
            raise TooManyRequests(
                f"The engine may still compile {self.left[target.socket]} grammars (response_format, "
                "structured_outputs, strict or forced tools) of requests that timed out or whose clients left: try "
                "again when it has. Requests without a grammar are answered.",
                code="too_many_grammars",
                retry_after=5,
            )
        return Compilation(self, target)

    def leave(self, target: Target) -> None:
        """A request has ended, and what the engine compiles for it may not have."""
        self.left[target.socket] += 1
        if target.socket not in self._probes:
            self._probes[target.socket] = asyncio.get_running_loop().create_task(self._watch(target))

    async def close(self) -> None:
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    async def _watch(self, target: Target) -> None:
        """Ask the engine until nothing is left."""
        try:
            async with asyncio.timeout(_LONGEST):
                while before := self.left[target.socket]:
                    if await self._answers(target):
                        self.left[target.socket] -= before
                    else:
                        await asyncio.sleep(_PROBE_AGAIN)
        except TimeoutError:
            log.warning(
                "engine at %s compiled no grammar for %.0f s; %d that were left are counted no longer",
                target.socket, _LONGEST, self.left[target.socket],
            )  # fmt: skip
        finally:
            del self.left[target.socket], self._probes[target.socket]

    async def _answers(self, target: Target) -> bool:
        """Whether the engine answered a request with a small grammar. A refusal is an answer of a model that generates
        no text, and has no grammars."""
        body = {"model": target.base, "prompt": [0], "max_tokens": 1, "structured_outputs": {"choice": ["a"]}}
        try:
            async with self._engine(target.socket).post(_PROBE_PATH, write_body(body)) as answer:
                await answer.read()
                return answer.status < 500
        except EngineBusy:  # it is lost, and may be started again
            return False


def has_grammar(body: dict[str, Any]) -> bool:
    """Whether vLLM compiles a grammar for this request."""
    if _is_guided(body.get("response_format")) or body.get("structured_outputs"):
        return True
    text = body.get("text")
    if isinstance(text, dict) and _is_guided(text.get("format")):
        return True
    return bool(compiled_tools(body))


def _is_guided(format: Any) -> bool:
    return isinstance(format, dict) and format.get("type") not in (None, "text")
