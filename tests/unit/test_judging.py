"""What the scheduler makes of the reference and an engine's answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from rows import PRODUCT, Publish, engine_info
from tunewright.api.adapters.parity import ParityObject
from tunewright.evaluate.folder import BaseSpec, FourBitLoss, ParitySpec, Reference, ReferenceRow, Rendering
from tunewright.scheduler.judging import judge
from tunewright.store.states import EngineState
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

TOKENS = [5, 7, 9]
PROMPT = [3, 4, 5]
PLAIN, ADAPTED = [{7: -1.0, 8: -2.0}, {9: -3.0, 8: -1.0}], [{7: -0.5, 8: -2.5}, {9: -2.0, 8: -1.5}]


async def judged(socket: Path, store: Store, reference: Reference) -> ParityObject:
    """The verdict on an engine that computes what peft does."""

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        found = ADAPTED if body["model"] == PRODUCT["sha256"] else PLAIN
        places = [None, *({str(t): {"logprob": value} for t, value in place.items()} for place in found)]
        return web.json_response({"choices": [{"prompt_logprobs": places}]})

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": "1.0"})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)

    async def tokenize(_: web.Request) -> web.Response:
        return web.json_response({"tokens": PROMPT})

    app.router.add_get("/version", version)
    app.router.add_post("/tokenize", tokenize)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    spec = ParitySpec(
        base=BaseSpec(path="/base", context=64),
        adapter_id="adapter-1",
        adapter="/a",
        rows_from="probes",
        rows=1,
    )
    engine, model = store.engines.get("tiny"), store.models.get(PRODUCT["name"])
    assert engine is not None
    assert model is not None
    try:
        found = ParityObject.of(await asyncio.to_thread(judge, engine, model, spec, reference))
    finally:
        await runner.cleanup()
    assert found is not None
    return found


def test_what_qlora_loses_is_in_the_verdict(tmp_path: Path, store: Store, publish_model: Publish) -> None:
    publish_model({})
    store.engines.declare(["tiny"])
    store.engines.starting("tiny", str(tmp_path / "engine.sock"), engine_info(path="/base"))
    store.engines.set_state("tiny", EngineState.READY)
    row = ReferenceRow(line=1, text="text", tokens=TOKENS, base=PLAIN, adapted=ADAPTED)
    reference = Reference(
        rows=[row], renderings=[], device="cpu", dtype="bfloat16", seconds=1.0, versions={"peft": "2"},
        four_bit=FourBitLoss(loss=1.0, served_loss=1.25, difference=0.25),
    )  # fmt: skip
    shown = asyncio.run(judged(tmp_path / "engine.sock", store, reference))
    assert (shown.verdict, shown.versions) == ("pass", {"vllm": "1.0", "peft": "2"})
    assert shown.four_bit is not None
    assert shown.four_bit.model_dump() == {"loss": 1.0, "served_loss": 1.25, "difference": 0.25}
    plain = asyncio.run(
        judged(tmp_path / "engine.sock", store, reference.model_copy(update={"four_bit": None}))
    )
    assert plain.four_bit is None


@pytest.mark.parametrize(("trained", "verdict"), [(PROMPT, "pass"), ([*PROMPT[:-1], 9], "fail")])
def test_a_prompt_with_other_tokens_than_in_training_fails(
    tmp_path: Path, store: Store, publish_model: Publish, trained: list[int], verdict: str
) -> None:
    """Another chat template in serving than in training, say."""
    publish_model({})
    store.engines.declare(["tiny"])
    store.engines.starting("tiny", str(tmp_path / "engine.sock"), engine_info(path="/base"))
    store.engines.set_state("tiny", EngineState.READY)
    reference = Reference(
        rows=[ReferenceRow(line=1, text="text", tokens=TOKENS, base=PLAIN, adapted=ADAPTED)],
        renderings=[Rendering(file="file-1", line=4, prompt="Why?", tokens=trained)],
        device="cpu", dtype="bfloat16", seconds=1.0, versions={},
    )  # fmt: skip
    shown = asyncio.run(judged(tmp_path / "engine.sock", store, reference))
    assert shown.verdict == verdict
    if verdict == "fail":
        assert "in line 4 of file-1 the engine makes 3 tokens" in (shown.reason or "")
        assert "differ from token 3 on" in (shown.reason or "")
