"""Lets the judge of an alias's guard compare answers of new targets with those of the shadow, and has the alias rolled
back where a target loses too often.

The target is asked again with the request that was copied: the answer that its user has had is not kept. Nothing here
reaches the caller. Outcomes are in the store, and the verdict follows from them alone, so that it is the same whatever
was restarted meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunewright.api.gateway.guard import Guard
from tunewright.api.gateway.ledger import Payer
from tunewright.errors import TunewrightError
from tunewright.evaluator.folder import AskedJudge
from tunewright.evaluator.pairs import MOST_TOKENS, Comparison, Pair, judgement, winner
from tunewright.evaluator.questions import Question
from tunewright.metrics.verdicts import Verdict
from tunewright.metrics.win_rates import Outcome, win_rate
from tunewright.registry.aliases import Alias, AliasJudge
from tunewright.store.alias_judgements import MOST
from tunewright.store.store import Store

log = logging.getLogger("tunewright.api")

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LOG_INTERVAL = 60.0
"""Seconds between two warnings about comparisons that were not possible."""


class Ask(Protocol):
    def __call__(
        self, model: str, path: str, body: dict[str, Any], *, payer: Payer
    ) -> Awaitable[tuple[int, bytes]]:
        """Send a body to a path of a model, given by name, without streaming. Returns the answer's status and bytes."""


@dataclass
class _Watched:
    """The newest version of an alias of which answers were compared."""

    version: int
    is_open: dict[str, bool] = field(default_factory=dict)
    """Of each target, whether it is new and no verdict has been found."""


class ShadowJudge:
    """Used from one event loop only. `clock` returns Unix seconds, like the times of versions."""

    def __init__(self, store: Store, ask: Ask, guard: Guard, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._ask = ask
        self._guard = guard
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}
        """By project and name."""
        self._logged_at = -_LOG_INTERVAL

    async def compare(
        self, alias: Alias, model: str, path: str, request: dict[str, Any], answer: tuple[int, bytes]
    ) -> None:
        """Compare what the target `model` answers to a request with the shadow's answer, where the guard asks for it.
        Raises no error but cancellation."""
        try:
            await self._compare(alias, model, path, request, answer)
        except TunewrightError as error:
            self._warn(alias, str(error))
        except Exception:  # for example a failure of the database
            log.exception("guard: answers of %s and %s could not be compared", model, alias.name)

    async def _compare(
        self, alias: Alias, model: str, path: str, request: dict[str, Any], answer: tuple[int, bytes]
    ) -> None:
        limits, shadow = alias.guard.judge if alias.guard is not None else None, alias.shadow
        if limits is None or shadow is None or model == shadow.model or path not in (_CHAT, _COMPLETIONS):
            return
        if not await self._is_open(alias, limits, model):
            return
        theirs = _said(path, *answer)
        if theirs is None:
            return  # what fails is for the other limits of the guard
        ours = _said(path, *await self._ask(model, path, request, payer=payer_of(alias)))
        if ours is None:
            return
        pair = Pair(_question(path, request), ours, theirs)
        outcome = pair.known or await self._judged(alias, limits, pair)
        if outcome is None:
            return
        outcomes = await asyncio.to_thread(
            self._store.of(alias.project).alias_judgements.add,
            alias.name, alias.version, model=model, against=shadow.model, outcome=outcome,
        )  # fmt: skip
        found = win_rate(outcomes, limits.min_win_rate, limits.min_samples)
        if found.verdict is Verdict.NOT_ENOUGH_DATA and len(outcomes) < MOST:
            return
        watched = self._watched.get((alias.project, alias.name))
        if watched is None or watched.version != alias.version or not watched.is_open.get(model):
            return
        watched.is_open[model] = False
        why = f"answers of {model} compared with those of {shadow.model} by {limits.model}: "
        why += found.told(limits.min_win_rate)
        if found.verdict is Verdict.FAIL:
            watched.is_open[model] = not await self._guard.roll_back(alias, model, why)
        else:
            log.info("guard: %s: %s: %s", alias.name, found.verdict.value, why)

    async def _is_open(self, alias: Alias, limits: AliasJudge, model: str) -> bool:
        """Whether the model is new in this version, within its window, and no verdict was found."""
        assert alias.guard is not None, "it has limits"
        key = (alias.project, alias.name)
        watched = self._watched.get(key)
        if watched is not None and watched.version > alias.version:
            return False  # a late request to a version that was replaced
        if self._clock() - alias.updated_at > alias.guard.window_seconds:
            self._watched.pop(key, None)
            return False
        if watched is None or watched.version < alias.version:
            watched = self._watched[key] = _Watched(alias.version)
        if model not in watched.is_open:
            is_open = await asyncio.to_thread(self._look, alias, limits, model)
            watched.is_open.setdefault(model, is_open)
        return watched.is_open[model]

    def _look(self, alias: Alias, limits: AliasJudge, model: str) -> bool:
        store = self._store.of(alias.project)
        if store.aliases.version(alias.name, alias.version).rolled_back_to is not None:
            return False
        before = store.aliases.before(alias.name, alias.version)
        if before is not None and model in (target.model for target in before.targets):
            return False
        known = store.alias_judgements.of(alias.name, alias.version)
        outcomes = next((found for (name, _), found in known.items() if name == model), [])
        found = win_rate(outcomes, limits.min_win_rate, limits.min_samples)
        # one that failed was not rolled back before the api ended: the next comparison tries it again
        return found.verdict is not Verdict.PASS and len(outcomes) < MOST

    async def _judged(self, alias: Alias, limits: AliasJudge, pair: Pair) -> Outcome | None:
        """None where the judge has not said in both orders which answer is better."""
        judge = AskedJudge(
            name=limits.model, content="", at_once=1, instructions=limits.instructions, show_expected=False
        )
        first, second = [await self._verdict(alias, limits, one) for one in pair.questions(judge)]
        if first is None or second is None:
            self._warn(alias, f"{limits.model} has not said which answer is better")
            return None
        return judgement((first, second)).outcome

    async def _verdict(self, alias: Alias, limits: AliasJudge, question: Comparison) -> str | None:
        body = {"model": limits.model, **question.asked(), "temperature": 0, "max_tokens": MOST_TOKENS}
        status, answer = await self._ask(limits.model, _CHAT, body, payer=payer_of(alias))
        if status != 200:
            self._warn(alias, f"{limits.model} has answered with {status}")
        return winner(_said(_CHAT, status, answer))

    def _warn(self, alias: Alias, why: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            log.warning("guard: answers for %s could not be compared: %s", alias.name, why)


def payer_of(alias: Alias) -> Payer:
    """Whose use the requests to an alias's shadow and to its judge are."""
    return Payer(alias.project, source="shadow")


def _said(path: str, status: int, answer: bytes) -> str | None:
    """The text of the first choice, with its tool calls as JSON; None where there is no answer."""
    if status != 200:
        return None
    try:
        choice = json.loads(answer)["choices"][0]
        if path == _COMPLETIONS:
            return str(choice["text"])
        message = choice["message"]
        calls = [call.get("function") for call in message.get("tool_calls") or ()]
        text = message.get("content") or ""
        return f"{text}{json.dumps(calls) if calls else ''}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _question(path: str, request: dict[str, Any]) -> Question:
    if path == _CHAT:
        return Question(1, "", messages=request.get("messages") or [])
    prompt = request.get("prompt")
    return Question(1, "", prompt=prompt if isinstance(prompt, str) else json.dumps(prompt))
