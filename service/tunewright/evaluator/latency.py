"""The cost of inference: times and tokens of models under stated loads, side by side.

At each load the models come one after another, so that what the machine does besides meets all of them. A load that was
measured is kept in a file, and one that is interrupted is measured again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

from tunewright.evaluator.folder import Asked, EvaluationSpec, Loads, complete_lines
from tunewright.evaluator.load import Loaded, Timed, load, timed
from tunewright.evaluator.report import EvaluationReport, LoadFigures, Percentiles
from tunewright.jobs.asking import Stopped, ask_gateway
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.gateway import Refused, Unanswered, payer_headers
from tunewright.metrics.latency import percentile, rate
from tunewright.plan.forgetting import passages

WARM_UP = 4
"""Requests before a load that are not counted, at most: the first one loads an adapter."""
_PATIENCE = 600.0
"""Seconds for which a model is waited for before its load."""
_STRIDE = 37
_MILLISECONDS = 1000.0


def loads_file(folder: JobFolder) -> Path:
    """What was measured so far, a line for each load."""
    return folder.work / "loads.jsonl"


class Loading:
    """Measures what is missing in the file of loads."""

    def __init__(self, folder: JobFolder, spec: EvaluationSpec, on_answer: Callable[[], None]) -> None:
        assert spec.loads is not None, "it is asked for"
        self._spec, self._loads, self._on_answer = spec, spec.loads, on_answer
        self._file = loads_file(folder)
        self.measured: dict[tuple[int, int], Loaded] = dict(_read(self._file))
        """By the number of the model, and the load."""

    @property
    def total(self) -> int:
        return self._loads.requests * len(self._loads.at_once) * len(self._spec.models)

    async def run(self, stopped: asyncio.Event) -> None:
        """Return when all is measured. Raises Stopped and TrainingFailed."""
        work = asyncio.create_task(self._run())
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Stopped
            await work
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)

    async def _run(self) -> None:
        connector = aiohttp.UnixConnector(path=self._spec.socket, limit=0)
        timeout = aiohttp.ClientTimeout(total=self._spec.request_timeout + 60)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=payer_headers(self._spec.project, self._spec.key)
        ) as session:
            for at_once in self._loads.at_once:
                for number, model in enumerate(self._spec.models):
                    if (number, at_once) not in self.measured:
                        found = await self._measure(session, model, at_once)
                        self._keep(number, at_once, found)

    async def _measure(self, session: aiohttp.ClientSession, model: Asked, at_once: int) -> Loaded:
        try:
            text = await self._text(session, model)
            bodies = [_body(self._loads, text, number) for number in range(WARM_UP + self._loads.requests)]
            await load(session, model, bodies[:WARM_UP], min(at_once, WARM_UP), lambda: None)
            found = await load(session, model, bodies[WARM_UP:], at_once, self._on_answer)
        except* Refused as group:
            refusal = group.exceptions[0]
            code = getattr(refusal, "code", None) or "no_answers"
            raise TrainingFailed(code, f"{model.name}: {refusal}") from refusal
        if not found.answers:
            raise TrainingFailed(
                "no_answers",
                f"{model.name} has answered nothing under a load of {at_once}: {found.first_error}",
            )
        return found

    async def _text(self, session: aiohttp.ClientSession, model: Asked) -> list[int]:
        """The tokens of the package's general text, which prompts are cut from; the model is waited for."""
        prompt = {"prompt": "\n\n".join(passages()), "add_special_tokens": False}
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                tokens = list((await ask_gateway(session, model, "/tokenize", prompt))["tokens"])
                await timed(session, model, _body(self._loads, tokens, 0))
                return tokens
            except (ValueError, Unanswered) as fault:
                why = str(fault)
            if asyncio.get_running_loop().time() > deadline:
                raise TrainingFailed("engine_unavailable", f"{model.name} cannot be asked: {why}")
            await asyncio.sleep(1.0)

    def _keep(self, number: int, at_once: int, found: Loaded) -> None:
        self.measured[number, at_once] = found
        line = json.dumps([number, at_once, asdict(found)]) + "\n"
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def report(self) -> EvaluationReport:
        spec = self._spec
        figures = [
            _figures(spec, model, at_once, self.measured[number, at_once])
            for at_once in self._loads.at_once
            for number, model in enumerate(spec.models)
        ]
        return EvaluationReport(
            rows=0, rows_in_file=0, skipped=0, metrics=[], why="latency under loads",
            max_tokens=self._loads.answer_tokens, seed=spec.seed, models=[], comparisons=[], changed=[], loads=figures,
        )  # fmt: skip

    def lines(self) -> list[str]:
        """The product: a line for each answer."""
        return [
            json.dumps(
                {
                    "model": self._spec.models[number].name,
                    "at_once": at_once,
                    "first_token_ms": one.first * _MILLISECONDS,
                    "whole_ms": one.whole * _MILLISECONDS,
                    "tokens": one.tokens,
                    "between_tokens_ms": [gap * _MILLISECONDS for gap in one.gaps],
                }
            )
            + "\n"
            for (number, at_once), found in self.measured.items()
            for one in found.answers
        ]


def _read(file: Path) -> list[tuple[tuple[int, int], Loaded]]:
    """By the number of the model, and the load."""
    found: list[tuple[tuple[int, int], Loaded]] = []
    for line in complete_lines(file):
        number, at_once, one = json.loads(line)
        answers = [Timed(**timed) for timed in one.pop("answers")]
        found.append(((number, at_once), Loaded(answers=answers, **one)))
    return found


def _body(loads: Loads, text: list[int], number: int) -> dict[str, Any]:
    """A prompt of so many tokens that begins as no other does: none is found in the engine's cache of prefixes."""
    begin = number * _STRIDE % len(text)
    prompt = [text[(begin + at) % len(text)] for at in range(loads.prompt_tokens)]
    return {"prompt": prompt, "max_tokens": loads.answer_tokens, "ignore_eos": True, "temperature": 0}


def _figures(spec: EvaluationSpec, model: Asked, at_once: int, found: Loaded) -> LoadFigures:
    assert spec.loads is not None, "it was measured"
    answers = found.answers
    tokens = [one.tokens for one in answers]
    speed = rate(tokens, [one.whole for one in answers], found.wall, spec.seed)
    price = spec.loads.price_per_hour
    return LoadFigures(
        model=model.name,
        at_once=at_once,
        requests=len(answers) + found.failed,
        failed=found.failed,
        first_error=found.first_error,
        prompt_tokens=spec.loads.prompt_tokens,
        tokens=sum(tokens),
        seconds=round(found.wall, 3),
        tokens_per_second=speed.value,
        tokens_per_second_low=speed.low,
        tokens_per_second_high=speed.high,
        first_token=_percentiles([[one.first] for one in answers], spec.seed),
        between_tokens=_percentiles([one.gaps for one in answers], spec.seed),
        whole=_percentiles([[one.whole] for one in answers], spec.seed),
        price_per_million_tokens=price / 3600 / speed.value * 1e6 if price is not None else None,
        currency=spec.loads.currency if price is not None else None,
    )


def _percentiles(requests: list[list[float]], seed: int) -> Percentiles | None:
    p50, p99 = percentile(requests, 0.5, seed), percentile(requests, 0.99, seed)
    if math.isnan(p50.value):
        return None
    in_ms = [round(number * _MILLISECONDS, 3) for number in (*p50, *p99)]
    names = ("p50", "p50_low", "p50_high", "p99", "p99_low", "p99_high")
    return Percentiles(**dict(zip(names, in_ms, strict=True)))
