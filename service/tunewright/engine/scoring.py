"""Asks one vLLM server how likely it finds given tokens, and how it tokenizes prompts. Blocks: for threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import httpx

from tunewright.engine.client import EngineError, message_of
from tunewright.evaluate.folder import CANDIDATES, Logprobs

_TIMEOUT = 300.0


class EngineBusy(EngineError):
    """vLLM does not answer, or says that it cannot now: ask again."""


class EngineRefused(EngineError):
    """vLLM will not take what it was asked."""


class Scorer:
    """Use as a context manager. All raise EngineBusy, EngineRefused, and EngineError where vLLM breaks down over it."""

    def __init__(self, socket: str) -> None:
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket, verify=False),
            base_url="http://engine",
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """vLLM's."""
        return str(self._request("GET", "/version")["version"])

    def score(self, model: str, tokens: Sequence[int]) -> list[Logprobs]:
        """Of all `tokens` but the first, and of the likeliest in their places. `model` is a name inside vLLM."""
        body = {
            "model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": CANDIDATES,
        }  # fmt: skip
        places = self._request("POST", "/v1/completions", body)["choices"][0]["prompt_logprobs"]
        return [{int(token): float(told["logprob"]) for token, told in place.items()} for place in places[1:]]

    def tokenize(self, model: str, prompt: dict[str, Any]) -> list[int]:
        """Of a request's `prompt`, or of its `messages`, `tools`, `chat_template`, ..."""
        return [
            int(token) for token in self._request("POST", "/tokenize", {"model": model, **prompt})["tokens"]
        ]

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise EngineBusy(f"the engine does not answer: {type(error).__name__} {error}") from error
        if response.status_code in (429, 503):
            raise EngineBusy(message_of(response))
        if response.status_code >= 500:
            raise EngineError(message_of(response))
        if response.status_code >= 400:
            raise EngineRefused(message_of(response))
        return dict(response.json())
