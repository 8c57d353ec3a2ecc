"""The control side of one vLLM server, over its unix socket. The bytes of generations go through `api.gateway`."""

from __future__ import annotations

import re
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

    async def held(self) -> set[int]:
        """Numbers of the adapters in the engine's memory: what its workers hold, not what its server lists.

        (vLLM forgets only the name when it unloads: its workers keep the weights until others push them out.)
        """
        response = await self._request("POST", "/collective_rpc", {"method": "list_loras"})
        answers = response.json()["results"]
        return set.intersection(*({int(n) for n in re.findall(r"\d+", str(answer))} for answer in answers))

    async def load(self, name: str, folder: Path) -> int | None:
        """Load a PEFT folder under `name`. Returns its number in the engine's memory; None where it was there already.

        One load at a time: the number is the one that came.
        """
        if name in await self.models():
            return None
        before = await self.held()
        await self._request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if name not in await self.models():  # it once answered 200 for a missing path (vllm #18372)
            raise EngineError(f"vLLM said that it loaded {name}, but does not list it")
        came = await self.held() - before
        if len(came) != 1:
            raise EngineError(f"vLLM said that it loaded {name}, but its workers hold {sorted(came)} more")
        return came.pop()

    async def unload(self, name: str, number: int | None) -> None:
        """Forget `name` and free its memory; an adapter that is not there is no error.

        Raises EngineError where the engine was asked and still has it.
        """
        if name in await self.models():
            await self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if number is not None:
            await self.remove(number)
        if name in await self.models():
            raise EngineError(f"vLLM said that it unloaded {name}, but still lists it")

    async def remove(self, number: int) -> None:
        """Free the memory of an adapter by its number. Raises EngineError where the workers still hold it."""
        if number in await self.held():
            await self._request("POST", "/collective_rpc", {"method": "remove_lora", "args": [number]})
            if number in await self.held():
                raise EngineError(
                    f"vLLM said that it removed adapter {number}, but its workers still hold it"
                )

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise EngineError(f"the engine does not answer: {type(error).__name__} {error}") from error
        if response.status_code >= 400:
            raise EngineError(message_of(response))
        return response


def message_of(response: httpx.Response) -> str:
    """vLLM's own words for an error."""
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        return f"HTTP {response.status_code}: {response.text[:500]}"
