"""The control side of one vLLM server, over its unix socket. The bytes of generations go through `api.gateway`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx


class EngineError(Exception):
    """vLLM refused, or does not answer; the message is its own."""


def probe(socket: Path, timeout: float = 10.0) -> dict[str, Any] | None:
    """vLLM's model list if it answers and says that it is healthy, else None.

    (`verify=False`: a unix socket has no TLS, and loading certificates for every look would cost the most.)
    """
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket), verify=False),
            base_url="http://engine",
            timeout=timeout,
            trust_env=False,
        ) as client:
            if client.get("/health").status_code != 200:
                return None
            return dict(client.get("/v1/models").raise_for_status().json())
    except (httpx.HTTPError, ValueError):
        return None


class EngineClient:
    """Loads and unloads adapters by name, and asks what is there."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, verify=False),
            base_url="http://engine",
            timeout=120.0,
            trust_env=False,
        )

    async def models(self) -> set[str]:
        """Names it answers to: its base and its adapters."""
        response = await self._request("GET", "/v1/models")
        return {entry["id"] for entry in response.json()["data"]}

    async def load(self, name: str, folder: Path) -> None:
        """Load a PEFT folder under `name`; an adapter that is there already is no error."""
        if name in await self.models():
            return
        await self._request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if name not in await self.models():  # it once answered 200 for a missing path (vllm #18372)
            raise EngineError(f"vLLM said that it loaded {name}, but does not list it")

    async def unload(self, name: str) -> None:
        """Forget `name`; an adapter that is not there is no error."""
        if name not in await self.models():
            return
        await self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if name in await self.models():
            raise EngineError(f"vLLM said that it unloaded {name}, but still lists it")

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise EngineError(f"the engine does not answer: {type(error).__name__} {error}") from error
        if response.status_code >= 400:
            raise EngineError(_message(response))
        return response


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        return f"HTTP {response.status_code}: {response.text[:500]}"
