"""The scores that models give to answers, for graders of type `score_model`.

The models are asked through the service's gateway, several requests at a time. A request has a seed from the job's and
its own content, and its outcome is kept in the job folder with the step: a step that is repeated by a process that is
started again has the scores that it had.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from tunewright.graders import score_model
from tunewright.graders.calling import requests_of_batch
from tunewright.graders.grading import Answered, Item
from tunewright.graders.models import AnyGrader, ScoreModelGrader, singles
from tunewright.graders.outcome import GraderErrors, Outcome, failed
from tunewright.graders.templates import Sample
from tunewright.jobs.asking import Patience, ask_gateway, each, gateway_session
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.gateway import AskedModel, Refused
from tunewright.jobs.lines import AppendedLines
from tunewright.jobs.process import rank
from tunewright.trainer.ranks import number_of_ranks
from tunewright.trainer.spec import GradingModels

_BEAT = 1.0
_STOPS_AFTER = 10.0
"""Seconds without a score after which a job that is to stop does not wait for more: it goes on at its checkpoint."""
_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class _Question:
    """A request to a model that grades."""

    grader: ScoreModelGrader
    model: AskedModel
    body: dict[str, Any]


class ModelScores:
    """`go_on` is called every second, and raises `stopped` where the job is to stop; that is raised only where no model
    answers."""

    def __init__(
        self,
        grader: AnyGrader,
        models: GradingModels,
        seed: int,
        folder: JobFolder,
        go_on: Callable[[], None],
        stopped: type[Exception],
    ) -> None:
        self._grader = grader
        self._models = models
        self._seed = seed
        self._go_on = go_on
        self._stopped = stopped
        self._answered_at = 0.0
        self._kept: dict[int, dict[str, Outcome]] = defaultdict(dict)
        """By step, and the hash of the request."""
        folder.scores.mkdir(exist_ok=True)
        self._lines = AppendedLines(folder.scores / f"{rank()}.jsonl", self._read)

    def answered(
        self, step: int, samples: Sequence[Sample], items: Sequence[Item], beat: Callable[[], None]
    ) -> list[Answered]:
        """What the models have answered about each answer, by the names of the graders. A model that refuses a request,
        or fails at it again and again, leaves an outcome that says so. Raises TrainingFailed where a model answers
        nothing at all."""
        for before in [one for one in self._kept if one < step]:
            del self._kept[before]
        questions: dict[str, _Question] = {}
        keys: list[dict[str, str | Outcome]] = []
        for asked in requests_of_batch(self._grader, samples, items, beat):
            keys.append({})
            for name, body in asked.items():
                if isinstance(body, Outcome):
                    keys[-1][name] = body
                    continue
                question = self._question(name, body)
                key = keys[-1][name] = _hash([name, question.model.content, question.body])
                questions[key] = question  # requests that are the same are one
        missing = {key: one for key, one in questions.items() if key not in self._kept[step]}
        if missing:
            asyncio.run(self._ask(step, missing))
        kept = self._kept[step]
        return [
            {name: found if isinstance(found, Outcome) else kept[found] for name, found in one.items()}
            for one in keys
        ]

    def _question(self, name: str, body: dict[str, Any]) -> _Question:
        grader = singles(self._grader)[name]
        assert isinstance(grader, ScoreModelGrader), "others ask no model"
        if "seed" not in body:
            body["seed"] = int(_hash([self._seed, name, body])[:8], 16) >> 1
        return _Question(grader, self._models.by_grader[name], body)

    def _read(self, line: bytes) -> None:
        try:
            step, key, reward, errors, tokens = json.loads(line)
            self._kept[int(step)][str(key)] = Outcome(
                float(reward), GraderErrors(**errors), tokens=dict(tokens)
            )
        except TypeError as error:  # JSON of another form
            raise ValueError("the line is no score") from error

    def _keep(self, step: int, key: str, outcome: Outcome) -> None:
        errors = outcome.errors.model_dump(exclude_defaults=True)
        line = [step, key, outcome.reward, errors, dict(outcome.tokens)]
        self._lines.append(json.dumps(line).encode())
        self._kept[step][key] = outcome
        self._answered_at = time.monotonic()

    async def _ask(self, step: int, questions: Mapping[str, _Question]) -> None:
        self._answered_at = time.monotonic()
        asking = asyncio.create_task(self._ask_all(step, questions))
        try:
            while not (await asyncio.wait({asking}, timeout=_BEAT))[0]:
                try:
                    self._go_on()
                except self._stopped:
                    # of several ranks, the first one decides when to stop, at the end of a step
                    is_silent = time.monotonic() - self._answered_at > _STOPS_AFTER
                    if is_silent and number_of_ranks() == 1:
                        raise
            await asking
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _ask_all(self, step: int, questions: Mapping[str, _Question]) -> None:
        models = self._models
        of_model: dict[AskedModel, list[str]] = defaultdict(list)
        for key, question in questions.items():
            of_model[question.model].append(key)
        async with gateway_session(
            models.socket, models.project, models.request_timeout, "grader", key=models.key
        ) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    for model, keys in of_model.items():
                        group.create_task(self._ask_model(session, step, model, keys, questions))
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None

    async def _ask_model(
        self,
        session: aiohttp.ClientSession,
        step: int,
        model: AskedModel,
        keys: Sequence[str],
        questions: Mapping[str, _Question],
    ) -> None:
        patience = Patience(model.name)

        async def work(key: str) -> None:
            grader, body = questions[key].grader, questions[key].body
            try:
                answer = await patience.answer(lambda: ask_gateway(session, model, _PATH, body))
                outcome = score_model.outcome_of(grader, answer)
            except Refused as refusal:
                outcome = failed("model_grader_server_error", f"{model.name}: {refusal}")
            self._keep(step, key, outcome)

        at_once = max(1, model.at_once // number_of_ranks())
        await each(keys, min(at_once, len(keys)), work, asyncio.Event())


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
