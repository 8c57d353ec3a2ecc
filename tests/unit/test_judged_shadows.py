"""The guard's judge: answers of a new target against those of the shadow, its verdict, and the rollback."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from rows import PRODUCT
from tunewright.api.gateway.guard import Guard
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.shadow import Shadow
from tunewright.api.gateway.shadow_judge import ShadowJudge
from tunewright.metrics.verdicts import Verdict
from tunewright.metrics.win_rates import Outcome, win_rate
from tunewright.registry.aliases import Alias, AliasGuard, AliasJudge, AliasShadow, AliasTarget
from tunewright.store.store import Store

BOT, PATH = "support-bot", "/v1/chat/completions"
LIMITS = AliasJudge("judge", min_win_rate=0.45, min_samples=8)


class Engines:
    """`m1` is the old model, `m2` the new one; the judge prefers `better`, or with None says nothing of use."""

    def __init__(self, better: str | None = "m1") -> None:
        self.better = better
        self.asked: list[str] = []

    async def __call__(
        self, model: str, path: str, body: dict[str, Any], *, payer: Payer
    ) -> tuple[int, bytes]:
        assert payer.source == "shadow"
        self.asked.append(model)
        said = f"I am {model}"
        if model == "judge":
            text = body["messages"][-1]["content"]
            is_first = f"[Answer A]\nI am {self.better}" in text
            said = json.dumps({"winner": "A" if is_first else "B"}) if self.better else "both are fine"
        return 200, json.dumps({"choices": [{"message": {"content": said}}]}).encode()


class Traffic:
    """Requests through an alias that has a shadow, and whose guard has a judge."""

    def __init__(self, store: Store, engines: Engines) -> None:
        self.store, self.engines = store, engines
        self.again()

    def again(self) -> None:
        """As after a restart of the api."""
        judge = ShadowJudge(self.store, self.engines, Guard(self.store), lambda: self.now)
        self.shadow = Shadow(self.store, self.engines, judge=judge)

    def put(self, *targets: str, limits: AliasJudge = LIMITS) -> Alias:
        alias = self.store.aliases.put(
            BOT, [AliasTarget(model) for model in targets], AliasShadow("m1"), AliasGuard(judge=limits)
        )
        self.now = alias.updated_at
        return alias

    async def ask(self, alias: Alias, model: str, number: int, path: str = PATH) -> Alias:
        for _ in range(number):
            self.shadow.copy(
                alias, model, path, {"model": BOT, "messages": [{"role": "user", "content": "?"}]}
            )
            await self.shadow.settle()
        found = self.store.aliases.get(BOT)
        assert found is not None
        return found

    def outcomes(self, alias: Alias) -> list[Outcome]:
        return list(self.store.alias_judgements.of(BOT, alias.version).get(("m2", "m1"), []))


@pytest.fixture
def models(store: Store) -> None:
    store.engines.declare(["tiny", "judge"])
    for number in (1, 2, 3):
        row = {**PRODUCT, "id": f"adapter-{number}", "name": f"m{number}", "sha256": f"{number:064}"}
        store.models.register({**row, "source": "upload"})


@pytest.mark.anyio
@pytest.mark.each_database
async def test_a_new_target_that_loses_is_rolled_back_with_the_numbers(store: Store, models: None) -> None:
    traffic = Traffic(store, Engines(better="m1"))
    traffic.put("m1", "m3")
    flipped = traffic.put("m1", "m2", "m3")
    await traffic.ask(flipped, "m1", 1)
    assert traffic.engines.asked == [], "the shadow is a target, and has answered that itself"
    await traffic.ask(flipped, "m3", 1)
    assert traffic.engines.asked == ["m1"], "another old target is not compared"
    assert (await traffic.ask(flipped, "m2", 5)).version == 2
    traffic.again()
    assert (await traffic.ask(flipped, "m2", 2)).version == 2, "fewer than min_samples"

    now = await traffic.ask(flipped, "m2", 1)

    assert (now.version, [target.model for target in now.targets]) == (3, ["m1", "m3"])
    newest = store.aliases.history(BOT)[0][0]
    assert (newest.who, newest.rolled_back_to) == ("guard", 1)
    assert newest.why == (
        "rollback to version 1: answers of m2 compared with those of m1 by judge: win rate 0.0% (0.0% to 38.6%) in 8 "
        "comparisons: 0 wins, 0 ties, 8 losses; min_win_rate is 45.0%"
    )
    asked = len(traffic.engines.asked)
    await traffic.ask(flipped, "m2", 1)
    assert traffic.engines.asked[asked:] == ["m1"], "a late request to the version before is not compared"


@pytest.mark.anyio
async def test_one_that_wins_stays_and_is_compared_no_more(store: Store, models: None) -> None:
    traffic = Traffic(store, Engines(better="m2"))
    traffic.put("m3")
    flipped = traffic.put("m2")
    assert (await traffic.ask(flipped, "m2", 8)).version == 2
    asked = len(traffic.engines.asked)
    traffic.again()
    await traffic.ask(flipped, "m2", 1)
    assert traffic.engines.asked[asked:] == ["m1"], "also after a restart"
    assert traffic.outcomes(flipped) == ["win"] * 8


@pytest.mark.anyio
async def test_what_was_not_judged_is_no_sample(store: Store, models: None) -> None:
    traffic = Traffic(store, Engines(better=None))
    traffic.put("m3")
    flipped = traffic.put("m2")
    await traffic.ask(flipped, "m2", 3)
    assert traffic.engines.asked[-2:] == ["judge", "judge"]
    await traffic.ask(flipped, "m2", 1, "/v1/embeddings")
    traffic.now += 601
    await traffic.ask(flipped, "m2", 1)
    assert traffic.outcomes(flipped) == []
    assert traffic.engines.asked[-1] == "m1", "outside of the window nothing is compared"


@pytest.mark.anyio
async def test_a_guard_without_a_judge_compares_nothing(store: Store, models: None) -> None:
    traffic = Traffic(store, Engines())
    traffic.put("m3")
    flipped = store.aliases.put(BOT, [AliasTarget("m2")], AliasShadow("m1"), AliasGuard(max_error_rate=0.1))
    await traffic.ask(flipped, "m2", 1)
    assert traffic.engines.asked == ["m1"]


def test_a_verdict_is_that_of_the_first_look_that_decides() -> None:
    lost: list[Outcome] = ["loss"] * 30
    assert win_rate(lost[:29], 0.45, 30).verdict is Verdict.NOT_ENOUGH_DATA
    assert win_rate(lost, 0.45, 30).verdict is Verdict.FAIL
    later = win_rate([*lost, *["win"] * 500], 0.45, 30)
    assert (later.verdict, later.samples) == (Verdict.FAIL, 30), "what comes later changes nothing"
    tied: list[Outcome] = ["tie"] * 400
    found = win_rate(tied, 0.35, 30)
    assert (found.verdict, found.value, found.ties) == (Verdict.PASS, 0.5, 120)
    assert win_rate(tied, 0.5, 30).verdict is Verdict.NOT_ENOUGH_DATA
    assert win_rate([], 0.5, 30).told(0.5) == "not enough data to tell"


def test_all_looks_together_err_in_five_percent() -> None:
    """A target whose win rate is at the limit is rolled back in few of its versions, however often it is looked at."""
    chance = random.Random(7)
    wrong = {Verdict.PASS: 0, Verdict.FAIL: 0, Verdict.NOT_ENOUGH_DATA: 0}
    for _ in range(400):
        outcomes: list[Outcome] = chance.choices(["win", "tie", "loss"], [0.35, 0.2, 0.45], k=480)
        wrong[win_rate(outcomes, 0.45, 30).verdict] += 1
    assert wrong[Verdict.FAIL] + wrong[Verdict.PASS] <= 20, wrong
    worse: list[Verdict] = []
    for _ in range(100):
        outcomes = chance.choices(["win", "tie", "loss"], [0.15, 0.2, 0.65], k=240)
        worse.append(win_rate(outcomes, 0.45, 30).verdict)
    assert worse.count(Verdict.FAIL) >= 95
