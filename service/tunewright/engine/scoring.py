"""Asks one vLLM server how likely it finds given tokens, and how it tokenizes prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.engine.http import EngineHTTP
from tunewright.evaluate.folder import CANDIDATES, Logprobs

SCORING_TIMEOUT = 300.0
"""Seconds that one request may take: it waits behind the generations in flight."""


class Scorer:
    """Raises EngineBusy, EngineRefused, and EngineError where vLLM breaks down over it. `model`: a name in vLLM."""

    def __init__(self, engine: EngineHTTP) -> None:
        self._engine = engine

    async def version(self) -> str:
        """vLLM's."""
        return str((await self._engine.request("GET", "/version"))["version"])

    async def score(self, model: str, tokens: Sequence[int]) -> list[Logprobs]:
        """Log-probabilities of all `tokens` but the first, and of the likeliest in their places."""
        body = {
            "model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": CANDIDATES,
        }  # fmt: skip
        answer = await self._engine.request("POST", "/v1/completions", body)
        places = answer["choices"][0]["prompt_logprobs"]
        return [{int(token): float(told["logprob"]) for token, told in place.items()} for place in places[1:]]

    async def tokenize(self, model: str, prompt: dict[str, Any]) -> list[int]:
        """Tokens of a request's `prompt`, or of its `messages`, `tools`, `chat_template`, ..."""
        answer = await self._engine.request("POST", "/tokenize", {"model": model, **prompt})
        return [int(token) for token in answer["tokens"]]
