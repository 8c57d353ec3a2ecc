"""Counts the tokens of the prompts of streams whose client left before their usage was told: the engine is asked to
tokenize them, in the background.

Without that, whoever leaves after the first token would use the engine for nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from tunewright.api.gateway.routing import Target
from tunewright.api.gateway.tasks import Tasks
from tunewright.engine.http import EngineHTTP

log = logging.getLogger("tunewright.api")

_AT_ONCE = 32
"""Prompts that are being counted; further ones are not."""
_SECONDS = 30.0
_OF_A_CHAT = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})


class Prompts:
    """Used from one event loop. `engine` returns the connections to the engine at a socket."""

    def __init__(self, engine: Callable[[str], EngineHTTP]) -> None:
        self._engine = engine
        self._tasks = Tasks()

    def count(self, target: Target, path: str, body: dict[str, Any], tell: Callable[[int], None]) -> None:
        """Call `tell` with the number of tokens of the prompt once it is known; never where that fails."""
        if path not in _PATHS or len(self._tasks) >= _AT_ONCE:
            return
        self._tasks.start(self._count(target, body, tell))

    async def settle(self) -> None:
        """Wait until all are counted."""
        await self._tasks.settle()

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _count(self, target: Target, body: dict[str, Any], tell: Callable[[int], None]) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                tell(sum([await self._tokens(target, one) for one in _asked(target, body)]))
        except Exception as error:  # the request has ended; only its sum misses the prompt
            log.warning("the prompt of a stream that ended early could not be counted: %s", error)

    async def _tokens(self, target: Target, asked: int | dict[str, Any]) -> int:
        if isinstance(asked, int):
            return asked
        # by the name of its base: the adapter may be unloaded by now, and has the same tokens
        data = json.dumps({"model": target.base or target.internal_name, **asked}).encode()
        async with self._engine(target.socket).post("/tokenize", data) as upstream:
            return int(json.loads(await upstream.read())["count"])


def _asked(target: Target, body: dict[str, Any]) -> list[int | dict[str, Any]]:
    """What the engine tokenizes of a request; the length of what is tokens already."""
    if "prompt" not in body:
        asked = {name: body[name] for name in _OF_A_CHAT if name in body}
        if target.chat_template is not None:
            asked["chat_template"] = target.chat_template
        return [asked]
    prompt = body["prompt"]
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    return [len(one) if isinstance(one, list) else {"prompt": one} for one in several]
