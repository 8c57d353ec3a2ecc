"""Control requests to one vLLM server: its health, and the adapters that it holds."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from tunewright.engine.http import EngineBusy, EngineError, EngineHTTP, EngineRefused, EngineUnwell

_PROBE_TIMEOUT = 10.0
_TOKENIZE_TIMEOUT = 12.0
"""More than one chat template may take (VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT in `command`), or one text as long as the
context."""
_GENERATE_TIMEOUT = 20.0


class EngineDead(Exception):
    """vLLM's server answers, and says that its engine has ended."""


def probe(socket: Path) -> dict[str, Any] | None:
    """vLLM's model list, or None where it does not answer. Blocks, so call it in a thread. Raises EngineDead."""

    async def ask() -> dict[str, Any]:
        async with EngineHTTP(str(socket), _PROBE_TIMEOUT) as engine:
            try:
                await engine.request("GET", "/health")
            except EngineUnwell as error:
                raise EngineDead from error
            return dict(await engine.request("GET", "/v1/models"))

    try:
        return asyncio.run(ask())
    except (EngineError, ValueError, TypeError):
        return None


def find_fault(socket: Path, model: str) -> str | None:
    """Why a healthy engine cannot answer `model`, its base; None where it can. Blocks for up to 32 seconds.

    Its server renders and tokenizes in one thread, which a chat template can keep busy for ever; its engine may hang.
    An engine that is busy counts as well, as long as it computes for others.
    """

    async def ask() -> str | None:
        async with EngineHTTP(str(socket), _TOKENIZE_TIMEOUT) as engine:
            try:
                await engine.request("POST", "/tokenize", {"model": model, "prompt": "a"})
            except EngineRefused:
                pass
            except EngineBusy:
                return f"it tokenized nothing for {_TOKENIZE_TIMEOUT:.0f} s"
        async with EngineHTTP(str(socket), _GENERATE_TIMEOUT) as engine:
            before = await _progress(engine)
            try:
                await engine.request(
                    "POST", "/v1/completions", {"model": model, "prompt": [0], "max_tokens": 1}
                )
            except EngineRefused:  # a model that generates nothing
                pass
            except EngineBusy:
                if await _progress(engine) == before:
                    return f"it generated nothing for {_GENERATE_TIMEOUT:.0f} s"
            return None

    try:
        return asyncio.run(ask())
    except (EngineError, ValueError, TypeError):
        return None  # it is lost, or restarts: `probe` finds that


_PROGRESS = re.compile(r"vllm:((prompt|generation)_tokens_total|kv_cache_usage_perc)\b")
"""vLLM's counters of the tokens that it has read and generated, and the share of its cache in use, which grows with
each part of a long prompt."""


async def _progress(engine: EngineHTTP) -> list[str]:
    """What differs after each step of an engine that computes."""
    text = str(await engine.request("GET", "/metrics"))
    return [line for line in text.splitlines() if _PROGRESS.match(line)]


class EngineClient:
    """Loads, unloads and lists adapters by name. Raises EngineError."""

    def __init__(self, socket: str) -> None:
        self._http = EngineHTTP(socket)

    async def close(self) -> None:
        await self._http.close()

    async def models(self) -> set[str]:
        """Names of the models that it serves: its base and its adapters."""
        answer = await self._http.request("GET", "/v1/models")
        return {entry["id"] for entry in answer["data"]}

    async def held(self) -> set[int]:
        """Numbers of the adapters in the memory of the engine's workers, which may be more than its server lists.

        (To unload, vLLM only removes the name: its workers keep the weights until other adapters replace them.)
        """
        answers = (await self._http.request("POST", "/collective_rpc", {"method": "list_loras"}))["results"]
        return set.intersection(*({int(n) for n in re.findall(r"\d+", str(answer))} for answer in answers))

    async def load(self, name: str, folder: Path) -> int | None:
        """Load a PEFT folder under `name`. Returns its number in the engine's memory; None where it was loaded already.

        Only one load may run at a time, since the new number is recognized by comparing before and after.
        """
        if name in await self.models():
            return None
        before = await self.held()
        await self._http.request(
            "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
        )
        if name not in await self.models():  # a version of vLLM answered 200 for a missing path (vllm #18372)
            raise EngineError(f"vLLM said that it loaded {name}, but does not list it")
        added = await self.held() - before
        if len(added) != 1:
            raise EngineError(f"vLLM said that it loaded {name}, but its workers hold {sorted(added)} more")
        return added.pop()

    async def unload(self, name: str, number: int | None) -> None:
        """Unload `name` and free its memory; an adapter that is not loaded is no error.

        Raises EngineError where the engine still has it afterwards.
        """
        if name in await self.models():
            await self._http.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if number is not None:
            await self.remove(number)
        if name in await self.models():
            raise EngineError(f"vLLM said that it unloaded {name}, but still lists it")

    async def remove(self, number: int) -> None:
        """Free the memory of an adapter by its number. Raises EngineError where the workers still hold it."""
        if number in await self.held():
            await self._http.request("POST", "/collective_rpc", {"method": "remove_lora", "args": [number]})
            if number in await self.held():
                raise EngineError(
                    f"vLLM said that it removed adapter {number}, but its workers still hold it"
                )
