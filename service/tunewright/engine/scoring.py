"""Gets the log-probabilities of given tokens, and the tokens of prompts, from one vLLM server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunewright.engine.http import EngineHTTP
from tunewright.evaluate.folder import CANDIDATES, Logprobs

SCORING_TIMEOUT = 300.0
"""Seconds that one request may take: it waits for the generations in flight."""


class Scorer:
    """Scores and tokenizes; `model` is a name in vLLM. Raises EngineBusy, EngineRefused, and EngineError where vLLM
    fails."""

    def __init__(self, engine: EngineHTTP) -> None:
        self._engine = engine

    async def version(self) -> str:
        """The version of vLLM."""
        return str((await self._engine.request("GET", "/version"))["version"])

    async def score(self, model: str, tokens: Sequence[int]) -> list[Logprobs]:
        """Log-probabilities of all `tokens` but the first, and of the likeliest tokens at their positions."""
        body = {
            "model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": CANDIDATES,
        }  # fmt: skip
        answer = await self._engine.request("POST", "/v1/completions", body)
        positions = answer["choices"][0]["prompt_logprobs"]
        return [
            {int(token): float(entry["logprob"]) for token, entry in position.items()}
            for position in positions[1:]
        ]

    async def tokenize(self, model: str, prompt: dict[str, Any]) -> list[int]:
        """The tokens of a request's `prompt`, or of its `messages`, `tools`, `chat_template`, ..."""
        answer = await self._engine.request("POST", "/tokenize", {"model": model, **prompt})
        return [int(token) for token in answer["tokens"]]
