"""Asks the teacher, and keeps each answer: what was answered is in a file, and is not asked again by a process that is
started again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunewright.jobs.asking import Patience, ask_gateway, each, first_that_fits, gateway_session
from tunewright.jobs.gateway import Refused
from tunewright.jobs.lines import AppendedLines
from tunewright.synthesizer.folder import SynthesisSpec
from tunewright.synthesizer.questions import COMPLETIONS, Asker, Dropped, Kept

_LONGEST_MESSAGE = 500


class AnswersFile:
    """The answers so far, a line each, by the numbers of their requests."""

    def __init__(self, path: Path) -> None:
        self.kept: dict[int, Kept] = {}
        self.not_asked = 0
        """Requests in which there is nothing to ask: they have no line, and are found again at each start."""
        self._lines = AppendedLines(path, self._read)

    def _read(self, line: bytes) -> None:
        try:
            number, found = json.loads(line)
            self.kept[number] = Kept(**found)
        except TypeError as error:  # JSON of another form
            raise ValueError("the line is no answer") from error

    def keep(self, number: int, kept: Kept) -> None:
        """Raises OSError where the disk is full: then nothing of the line is left."""
        self._lines.append(json.dumps([number, kept.as_json()]).encode())
        self.kept[number] = kept

    def close(self) -> None:
        self._lines.close()


async def ask(
    spec: SynthesisSpec,
    asker: Asker,
    numbers: Sequence[int],
    answers: AnswersFile,
    on_answer: Callable[[], None],
    stopped: asyncio.Event,
) -> None:
    """Ask what has no answer yet of these numbers. Raises Stopped, and TrainingFailed where the teacher cannot answer
    at all."""
    missing = [number for number in numbers if number not in answers.kept]
    patience = Patience(spec.teacher.name)

    async def work(number: int) -> None:
        try:
            forms = list(asker.forms(number))
        except Dropped:
            answers.not_asked += 1
            on_answer()
            return
        path, sampling = asker.path(number), asker.sampling(number)
        try:
            answer = await patience.answer(
                lambda: first_that_fits(
                    forms,
                    lambda form: ask_gateway(session, spec.teacher, path, {**form, **sampling}),
                )
            )
            kept = _kept(path, answer)
        except Refused as refusal:
            kept = Kept(error=refusal.code or "request_refused", message=str(refusal)[:_LONGEST_MESSAGE])
        answers.keep(number, kept)
        on_answer()

    async with gateway_session(
        spec.socket, spec.project, spec.request_timeout, "synthesis", key=spec.key
    ) as session:
        await each(missing, min(spec.teacher.at_once, len(missing)), work, stopped)


def _kept(path: str, answer: dict[str, Any]) -> Kept:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    message: dict[str, Any] = choice.get("message") or {}
    return Kept(
        text=choice.get("text") if path == COMPLETIONS else message.get("content"),
        tool_calls=message.get("tool_calls") or None,
        refusal=message.get("refusal"),
        finish=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )
