"""Whether a healthy engine can answer, and how it says that it has lost its engine process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fake_engine import Handler, engine_at
from tunewright.engine import client
from tunewright.engine.client import EngineDead, find_fault, probe

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TOKENIZE_TIMEOUT", 0.3)
    monkeypatch.setattr(client, "_GENERATE_TIMEOUT", 0.3)


TOKENS = "vllm:generation_tokens_total"


def engine(*, hangs: str = "", counts: str = "") -> Handler:
    """One in which the path `hangs` does; `counts`: its metric that changes meanwhile."""
    looked = iter(range(100))

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path == hangs:
            await asyncio.sleep(30)
        if request.path == "/metrics":
            return web.Response(text=f'{counts or TOKENS}{{engine="0"}} {next(looked) if counts else 0}\n')
        return web.json_response({"choices": []})

    return answer


async def fault(socket: Path, handler: Handler) -> str | None:
    async with engine_at(socket, handler):
        return await asyncio.to_thread(find_fault, socket, "base")


async def test_an_engine_that_answers_has_no_fault(tmp_path: Path) -> None:
    assert await fault(tmp_path / "s", engine()) is None


async def test_a_renderer_that_hangs_is_a_fault(tmp_path: Path) -> None:
    assert await fault(tmp_path / "s", engine(hangs="/tokenize")) == "it tokenized nothing for 0 s"


async def test_an_engine_that_generates_nothing_is_a_fault(tmp_path: Path) -> None:
    assert await fault(tmp_path / "s", engine(hangs="/v1/completions")) == "it generated nothing for 0 s"


@pytest.mark.parametrize("counts", [TOKENS, "vllm:prompt_tokens_total", "vllm:kv_cache_usage_perc"])
async def test_an_engine_that_is_busy_with_others_is_none(tmp_path: Path, counts: str) -> None:
    """The use of the cache grows while a prompt is read that is longer than one step takes."""
    assert await fault(tmp_path / "s", engine(hangs="/v1/completions", counts=counts)) is None


async def test_metrics_that_always_change_are_no_sign_of_work(tmp_path: Path) -> None:
    told = await fault(tmp_path / "s", engine(hangs="/v1/completions", counts="process_cpu_seconds_total"))
    assert told == "it generated nothing for 0 s"


async def test_a_model_that_generates_nothing_is_none(tmp_path: Path) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    assert await fault(tmp_path / "s", refuse) is None


async def test_a_server_that_lost_its_engine_is_known_at_once(tmp_path: Path) -> None:
    async def unwell(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=503)

    async with engine_at(tmp_path / "s", unwell):
        with pytest.raises(EngineDead):
            await asyncio.to_thread(probe, tmp_path / "s")
