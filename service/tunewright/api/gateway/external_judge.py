"""A judge elsewhere, which the operator has allowed: a model of an OpenAI-compatible service. Its key stays in this
process; those that evaluate reach it through the inner gateway alone."""

from __future__ import annotations

from typing import Any

import aiohttp

from tunewright.config import ServerOptions
from tunewright.errors import EngineUnavailable, Internal, InvalidRequest

_LARGEST = 2**20
"""Bytes of an answer."""
_SHOWN = 300


class ExternalJudge:
    """Asks the judge. Used from one event loop."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of(cls, options: ServerOptions) -> ExternalJudge | None:
        """None where the operator has not allowed one."""
        if options.judge_url is None or options.judge_model is None:
            return None
        key = options.judge_api_key
        return cls(options.judge_url, options.judge_model, key.get_secret_value() if key else None)

    async def ask(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """The answer to a chat completion. Redirects are not followed: they may lead where nobody has allowed it.
        Raises EngineUnavailable where it may be asked again, and InvalidRequest."""
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=True)
        try:
            async with self._session.post(
                self._url, json={**body, "model": self._model}, headers=self._headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(_LARGEST + 1)
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(
                f"The judge elsewhere cannot be reached: {type(error).__name__}."
            ) from error
        if status == 200 and len(answer) <= _LARGEST:
            return 200, answer
        text = f"The judge elsewhere answered with {status}: {answer[:_SHOWN].decode(errors='replace')}"
        if status in (408, 429, 503):
            raise EngineUnavailable(text)
        if status >= 500:
            raise Internal(text)
        # a wrong key, address or model is wrong for every row; a request that is refused may be too long
        raise InvalidRequest(text, code=None if status in (400, 413, 422) else "judge_refused")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
