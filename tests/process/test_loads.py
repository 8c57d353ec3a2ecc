"""Latency under loads with a stand-in for the gateway, whose times are known: figures, faults, and a killed process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_evaluator import Gateway, Run

from tunewright.evaluator.folder import Asked, Evaluated, EvaluationSpec, Loads, results_file
from tunewright.evaluator.latency import loads_file
from tunewright.evaluator.report import EvaluationReport, LoadFigures

FIRST, BETWEEN, TOKENS = 0.03, 0.005, 6


class Streams(Gateway):
    """Answers `/stream` with tokens at known times, `slow` twice as late; `/ask` with the tokens of a text."""

    def __init__(self, socket: Path) -> None:
        self.streamed: list[dict[str, Any]] = []
        self.break_off: set[int] = set()
        self.refuses = False
        super().__init__(socket)
        self.answer = lambda model, body: {"tokens": list(range(500))}

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/stream", self._stream)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.streamed.append(asked)
        breaks_off = len(self.streamed) in self.break_off
        if self.refuses:
            return web.json_response(
                {"error": {"message": "it is gone", "code": "model_changed"}}, status=400
            )
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            while self.free_answers <= 0:
                await asyncio.sleep(0.01)
            self.free_answers -= 1
            return await self._tokens(request, asked, 2 if asked["model"] == "slow" else 1, breaks_off)
        finally:
            self._now -= 1

    async def _tokens(
        self, request: web.Request, asked: dict[str, Any], times: int, breaks_off: bool
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        await asyncio.sleep(FIRST * times)
        await response.prepare(request)
        count = asked["body"]["max_tokens"]
        for number in range(count):
            if number:
                await asyncio.sleep(BETWEEN * times)
            if breaks_off and number == 2:
                return response
            await response.write(b'data: {"choices": [{"text": "a"}]}\n\n')
        usage = {"choices": [], "usage": {"completion_tokens": count}}
        await response.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        return response


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Streams]:
    made = Streams(tmp_path / "g.sock")
    yield made
    made.close()


def evaluation(folder: Path, gateway: Streams, **fields: Any) -> Run:
    loads = {"at_once": [1, 5], "prompt_tokens": 20, "answer_tokens": TOKENS, "requests": 12, **fields}
    spec = {
        "job_id": "eval-1", "socket": str(gateway.socket), "request_timeout": 60, "file": None, "seed": 5,
        "models": [Asked(name=name, content=name, at_once=1) for name in ("quick", "slow")],
        "loads": Loads.model_validate(loads), "max_tokens": TOKENS, "memory_bytes": 2**31,
    }  # fmt: skip
    return Run(folder, EvaluationSpec.model_validate(spec))


def figures(report: EvaluationReport) -> dict[tuple[str, int], LoadFigures]:
    assert report.loads is not None
    return {(one.model, one.at_once): one for one in report.loads}


def test_figures_are_those_of_the_times(tmp_path: Path, gateway: Streams) -> None:
    run = evaluation(tmp_path / "job", gateway, price_per_hour=3.6, currency="EUR")

    found = figures(run.report())

    assert list(found) == [("quick", 1), ("slow", 1), ("quick", 5), ("slow", 5)], "side by side at each load"
    for (model, _), one in found.items():
        times = 2 if model == "slow" else 1
        assert one.first_token is not None
        assert one.between_tokens is not None
        assert one.whole is not None
        assert one.first_token.p50 >= 1000 * FIRST * times
        assert one.between_tokens.p50 >= 1000 * BETWEEN * times * 0.8, "an event may be read late"
        assert one.whole.p50 >= 1000 * (FIRST + (TOKENS - 1) * BETWEEN) * times
        for shown in (one.first_token, one.between_tokens, one.whole):
            assert shown.p50_low <= shown.p50 <= shown.p50_high
            assert shown.p50 <= shown.p99
        assert (one.requests, one.failed, one.tokens) == (12, 0, 12 * TOKENS)
        assert one.tokens_per_second == pytest.approx(12 * TOKENS / one.seconds, rel=0.01)
        assert one.price_per_million_tokens == pytest.approx(0.001 / one.tokens_per_second * 1e6)
        assert one.currency == "EUR"
    assert found["quick", 5].tokens_per_second > 1.5 * found["quick", 1].tokens_per_second
    assert gateway.most_at_once == 5
    bodies = [one["body"] for one in gateway.streamed if one["model"] == "quick"]
    assert all(
        (len(body["prompt"]), body["max_tokens"], body["ignore_eos"]) == (20, TOKENS, True) for body in bodies
    )
    of_load = [tuple(body["prompt"]) for body in bodies[-12:]]
    assert len({prompt[:1] for prompt in of_load}) == 12, "no prefix is in the cache"
    lines = [json.loads(line) for line in results_file(run.folder).read_text().splitlines()]
    assert len(lines) == 48
    assert {len(line["between_tokens_ms"]) for line in lines} == {TOKENS - 1}


def test_answers_that_break_off_are_counted_and_in_no_figure(tmp_path: Path, gateway: Streams) -> None:
    gateway.break_off = {8, 9}  # of the requests of `quick`, six of which are measured after five others

    report = evaluation(tmp_path / "job", gateway, at_once=[2], requests=6).report()

    found = figures(report)
    assert (found["quick", 2].failed, found["slow", 2].failed) == (2, 0)
    assert found["quick", 2].requests == 6
    assert found["quick", 2].first_error == "the answer broke off"
    assert found["quick", 2].tokens == 4 * TOKENS


def test_a_model_that_is_another_one_by_now_ends_it(tmp_path: Path, gateway: Streams) -> None:
    gateway.refuses = True

    ended = evaluation(tmp_path / "job", gateway).end()

    assert (ended.status, ended.error_code) == ("failed", "model_changed")
    assert ended.error_message is not None
    assert "it is gone" in ended.error_message


def test_killed_it_measures_what_is_missing(tmp_path: Path, gateway: Streams) -> None:
    run = evaluation(tmp_path / "job", gateway)
    gateway.free_answers = (
        2 * (1 + 4 + 12) + 9
    )  # two loads, each with what goes before it, and a part of the third
    process = run.start()
    deadline = time.monotonic() + 60
    while not loads_file(run.folder).exists() or loads_file(run.folder).read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = loads_file(run.folder).read_bytes()
    with loads_file(run.folder).open("ab") as file:
        file.write(b'[0, 5, {"answ')  # what a kill within a write leaves
    gateway.streamed.clear()
    gateway.free_answers = 10**9

    assert run.start().wait(60) == 0

    assert loads_file(run.folder).read_bytes().startswith(kept)
    assert len(gateway.streamed) == 2 * (1 + 4 + 12), "the two loads that are missing"
    ended = run.folder.read_result(Evaluated)
    assert ended is not None
    assert len(figures(EvaluationReport.model_validate(ended.report))) == 4
