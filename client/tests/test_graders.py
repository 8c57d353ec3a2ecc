"""Graders: what is sent, and how the answers are read."""

from __future__ import annotations

import asyncio

import pytest
from fake_server import FakeServer, ok, refuse

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
GRADER = {"type": "string_check", "name": "exact", "operation": "eq", "input": "a", "reference": "b"}
ANSWER = {
    "reward": 0.5,
    "sub_rewards": {"exact": 0.5},
    "metadata": {
        "name": "exact",
        "type": "multi",
        "errors": {"other_error": True, "other_error_details": "no", "sample_parse_error": False},
        "execution_time": 0.1,
        "scores": {},
        "token_usage": None,
        "sampled_model_name": None,
    },
    "model_grader_token_usage_per_model": {},
}


def test_a_grader_is_run(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", RUN, ok(ANSWER))
    found = client.graders.run(GRADER, "x", {"a": 1})
    assert isinstance(found, tw.GraderRun)
    assert (found.reward, found.sub_rewards) == (0.5, {"exact": 0.5})
    assert found.metadata.failures == ["other_error", "no"]
    assert server.requests[-1].json == {"grader": GRADER, "model_sample": "x", "item": {"a": 1}}

    async def run() -> float:
        async with AsyncTunewright(server.url) as other:
            return (await other.graders.run(GRADER, "x")).reward

    assert asyncio.run(run()) == 0.5
    assert server.requests[-1].json == {"grader": GRADER, "model_sample": "x", "item": None}


def test_a_grader_is_checked(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", VALIDATE, ok({"grader": GRADER}), refuse(400))
    assert client.graders.validate(GRADER) == GRADER
    assert server.requests[-1].json == {"grader": GRADER}
    with pytest.raises(tw.BadRequestError) as refused:
        client.graders.validate(GRADER)
    assert refused.value.param == "p"
