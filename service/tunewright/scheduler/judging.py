"""Scores in an engine the tokens that the reference process scored with transformers and peft, and compares."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tunewright.engine.http import EngineHTTP, EngineRefused
from tunewright.engine.scoring import SCORING_TIMEOUT, Scorer
from tunewright.evaluate.compare import Mismatch, common, compare
from tunewright.evaluate.folder import ParitySpec, Reference, Rendering
from tunewright.store.records import Engine, TunedModel


def judge(engine: Engine, model: TunedModel, spec: ParitySpec, reference: Reference) -> dict[str, Any]:
    """The content of a model's `parity`. The engine must hold the model. Raises EngineError. Blocks, so call it in a
    thread."""
    return asyncio.run(_judge(engine, model, spec, reference))


async def _judge(engine: Engine, model: TunedModel, spec: ParitySpec, reference: Reference) -> dict[str, Any]:
    assert engine.socket is not None and engine.info is not None, "a ready engine has both"
    base = engine.info.internal_name
    async with EngineHTTP(engine.socket, SCORING_TIMEOUT) as http:
        scorer = Scorer(http)
        rows, mismatches = [], []
        for row in reference.rows:
            plain = await scorer.score(base, row.tokens)
            rows.append(common(row, plain, await scorer.score(model.sha256, row.tokens)))
        for rendering in reference.renderings:
            if mismatch := await _mismatch(scorer, base, model, rendering):
                mismatches.append(mismatch)
        version = await scorer.version()
    return {
        **compare(rows, mismatches).as_dict(),
        "checked_at": time.time(),
        "rows_from": spec.rows_from,
        "prompts": len(reference.renderings),
        "reference": {"device": reference.device, "dtype": reference.dtype, "seconds": reference.seconds},
        "versions": {"vllm": version, **reference.versions},
        "four_bit": reference.four_bit.model_dump() if reference.four_bit else None,
    }


async def _mismatch(scorer: Scorer, base: str, model: TunedModel, rendering: Rendering) -> Mismatch | None:
    """How a request's prompt differs from the prompt in training; None where it does not."""
    prompt: dict[str, Any] = {"prompt": rendering.prompt}
    if rendering.messages is not None:
        prompt = {"messages": rendering.messages, "add_generation_prompt": rendering.add_generation_prompt}
        prompt |= {"tools": rendering.tools} if rendering.tools else {}
        prompt |= {"chat_template": model.chat_template} if model.chat_template else {}
    try:
        tokens = await scorer.tokenize(base, prompt)
    except EngineRefused as refusal:
        return Mismatch(rendering.line, f"the engine refuses the prompt: {refusal}", rendering.file)
    if tokens == rendering.tokens:
        return None
    pairs = zip(tokens, rendering.tokens, strict=False)
    place = next(
        (at for at, (got, wanted) in enumerate(pairs) if got != wanted),
        min(len(tokens), len(rendering.tokens)),
    )
    return Mismatch(
        rendering.line,
        f"the engine makes {len(tokens)} tokens of the prompt, training made {len(rendering.tokens)}; they differ from "
        f"token {place + 1} on",
        rendering.file,
    )
