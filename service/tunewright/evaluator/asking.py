"""Asks the gateway, with so many requests at once, again where it could not answer now, and keeps each answer.

What was answered is in a file, a line each, and is not asked again by a process that is started again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from tunewright.evaluator.folder import Asked, EvaluationSpec
from tunewright.evaluator.programs import NotRun, Programs
from tunewright.evaluator.questions import Question
from tunewright.evaluator.suites import SuiteQuestion
from tunewright.jobs.asking import Patience, ask_gateway, each, first_that_fits, gateway_session
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.gateway import Refused
from tunewright.jobs.lines import AppendedLines
from tunewright.metrics.figures import Scores

Task = Literal["answer", "score", "choice", "program"]
Key = tuple[int, int, Task]
"""Number of the model, number of the question, and what it is asked for."""


@dataclass(frozen=True)
class Kept:
    """What came of one request: an answer, scores, or the reason why there is none."""

    answer: str | None = None
    finish: str | None = None
    tokens: int | None = None
    """Tokens of the answer."""
    scores: Scores | None = None
    answers: list[str] | None = None
    """Several, in the place of one."""
    passed: list[bool] | None = None
    """Whether each of them passes its tests."""
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}

    @classmethod
    def of(cls, found: dict[str, Any]) -> Kept:
        scores = found.pop("scores", None)
        return cls(**found, scores=Scores(*scores) if scores is not None else None)


class AnswersFile:
    """The answers so far, a line each."""

    def __init__(self, path: Path) -> None:
        self.kept: dict[Key, Kept] = {}
        self._lines = AppendedLines(path, self._read)

    def _read(self, line: bytes) -> None:
        try:
            model, row, task, found = json.loads(line)
            self.kept[model, row, task] = Kept.of(found)
        except (TypeError, AttributeError) as error:  # JSON of another form
            raise ValueError("the line is no answer") from error

    def keep(self, key: Key, kept: Kept) -> None:
        """Raises OSError where the disk is full: then nothing of the line is left."""
        self._lines.append(json.dumps([*key, kept.as_json()]).encode())
        self.kept[key] = kept

    def close(self) -> None:
        self._lines.close()


class Asking:
    """Asks all models for what is missing in the file of answers."""

    def __init__(
        self,
        spec: EvaluationSpec,
        rows: Sequence[Question],
        tasks: Sequence[Task],
        answers: AnswersFile,
        on_answer: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._rows = rows
        self._tasks = tasks
        self._answers = answers
        self._on_answer = on_answer
        self._ask_for: dict[Task, Callable[[aiohttp.ClientSession, Asked, Question], Awaitable[Kept]]] = {
            "answer": self._answer,
            "score": self._score,
            "choice": self._choose,
            "program": self._program,
        }
        self._programs = Programs(spec.suite.python if spec.suite else "off")

    async def run(self, stopped: asyncio.Event) -> None:
        """Return when all is answered. Raises Stopped, and TrainingFailed where a model cannot answer at all."""
        try:
            await self._run(stopped)
        finally:
            self._programs.close()

    async def _run(self, stopped: asyncio.Event) -> None:
        spec = self._spec
        async with gateway_session(spec.socket, spec.project, spec.request_timeout, key=spec.key) as session:
            for number, model in enumerate(spec.models):
                keys = [
                    key
                    for row in range(len(self._rows))
                    for task in self._tasks
                    if (key := (number, row, task)) not in self._answers.kept
                ]
                await self._ask_model(session, model, keys, stopped)

    async def _ask_model(
        self, session: aiohttp.ClientSession, model: Asked, keys: list[Key], stopped: asyncio.Event
    ) -> None:
        patience = Patience(model.name)

        async def work(key: Key) -> None:
            row, task = self._rows[key[1]], key[2]
            try:
                kept = await patience.answer(lambda: self._ask_for[task](session, model, row))
            except Refused as refusal:
                kept = Kept(error=str(refusal)[:500])
            self._answers.keep(key, kept)
            self._on_answer()

        await each(keys, min(model.at_once, len(keys)), work, stopped)

    async def _answer(self, session: aiohttp.ClientSession, model: Asked, row: Question) -> Kept:
        answer = await self._generated(session, model, row)
        choice = answer["choices"][0]
        text = choice.get("text") if row.messages is None else (choice.get("message") or {}).get("content")
        usage = answer.get("usage") or {}
        return Kept(text or "", choice.get("finish_reason"), usage.get("completion_tokens"))

    async def _generated(
        self, session: aiohttp.ClientSession, model: Asked, row: Question, **further: Any
    ) -> dict[str, Any]:
        spec = self._spec
        body: dict[str, Any] = {
            "temperature": spec.temperature,
            "seed": spec.seed + row.place,
            "max_tokens": spec.max_tokens,
        }
        if isinstance(row, SuiteQuestion):
            body["stop"] = list(row.stop)
        return await first_that_fits(
            list(row.forms()),
            lambda asked: ask_gateway(session, model, row.path, {**asked, **body, **further}),
        )

    async def _choose(self, session: aiohttp.ClientSession, model: Asked, row: Question) -> Kept:
        """The choice that is the likeliest behind the question, as lm-evaluation-harness finds it: by the sum of the
        log-probabilities of its tokens, a space before it."""
        assert isinstance(row, SuiteQuestion), "others have no choices"

        async def chosen(asked: dict[str, Any]) -> dict[str, Any]:
            prompts = [asked["prompt"]] + [f"{asked['prompt']} {choice}" for choice in row.choices]
            tokens = [
                (await ask_gateway(session, model, "/tokenize", {"prompt": one}))["tokens"] for one in prompts
            ]
            begin = len(tokens[0])
            body = {"prompt": tokens[1:], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
            answer = await ask_gateway(session, model, "/v1/completions", body)
            scored = sorted(answer["choices"], key=lambda one: int(one["index"]))
            return {
                "sums": [
                    sum(
                        place[str(token)]["logprob"]
                        for token, place in zip(
                            whole[begin:], one["prompt_logprobs"][begin : len(whole)], strict=True
                        )
                    )
                    for whole, one in zip(tokens[1:], scored, strict=True)
                ]
            }

        sums = (await first_that_fits(list(row.forms()), chosen))["sums"]
        return Kept(row.choices[sums.index(max(sums))])

    async def _program(self, session: aiohttp.ClientSession, model: Asked, row: Question) -> Kept:
        """Programs, and whether each passes its tests: `n` of them are drawn by one request."""
        suite = self._spec.suite
        assert suite is not None, "others have no tests"
        assert isinstance(row, SuiteQuestion), "others have no tests"
        answer = await self._generated(session, model, row, n=suite.samples)
        choices = sorted(answer["choices"], key=lambda one: int(one["index"]))
        texts = [str(one.get("text") or "") for one in choices]
        try:
            passed = list(await asyncio.gather(*(self._programs.passes(row, text) for text in texts)))
        except NotRun as error:
            raise TrainingFailed("programs_not_run", f"no program can be run here: {error}") from error
        finish = "length" if any(one.get("finish_reason") == "length" for one in choices) else "stop"
        return Kept(texts[0], finish, answers=texts if len(texts) > 1 else None, passed=passed)

    async def _score(self, session: aiohttp.ClientSession, model: Asked, row: Question) -> Kept:
        """The log-probabilities of the expected answer's tokens, with those that the chat template ends it with."""
        asked, whole = row.asked(), row.with_expected()
        if row.messages is not None:
            asked |= {"add_generation_prompt": True}
            whole |= {"add_generation_prompt": False}
        before = (await ask_gateway(session, model, "/tokenize", asked))["tokens"]
        tokens = (await ask_gateway(session, model, "/tokenize", whole))["tokens"]
        same = next(
            (at for at, pair in enumerate(zip(before, tokens, strict=False)) if pair[0] != pair[1]),
            len(before),
        )
        begin = max(1, min(same, len(tokens)))
        body = {"prompt": tokens, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        answer = await ask_gateway(session, model, "/v1/completions", body)
        scored = answer["choices"][0]["prompt_logprobs"]
        nll, right = 0.0, 0
        for token, place in zip(tokens[begin:], scored[begin:], strict=True):
            entry = place[str(token)]
            nll -= entry["logprob"]
            right += entry["rank"] == 1
        return Kept(scores=Scores(nll, len(tokens) - begin, right))
