"""The guard: it rolls a bad new target back, with the numbers in the history, and nothing else."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rows import PRODUCT
from tunewright.api.gateway.guard import Guard
from tunewright.registry.aliases import Alias, AliasGuard, AliasTarget
from tunewright.store.states import ModelState
from tunewright.store.store import Store
from tunewright.store.tables import models

pytestmark = pytest.mark.anyio

BOT = "support-bot"
ERRORS = AliasGuard(max_error_rate=0.1, window_seconds=600, min_requests=20)
SLOW = AliasGuard(max_p99_seconds=2.0, window_seconds=600, min_requests=100)


class Traffic:
    """Generations that have ended, as they are reported to the guard."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 0.0
        self.guard = Guard(store, lambda: self.now)

    def put(self, *targets: str, limits: AliasGuard | None = None) -> Alias:
        alias = self.store.aliases.put(BOT, [AliasTarget(model) for model in targets], guard=limits)
        self.now = alias.updated_at
        return alias

    async def end(
        self, alias: Alias, model: str, *, ok: int = 0, failed: int = 0, slow: int = 0
    ) -> Alias | None:
        """Reports this many of each; returns the alias afterwards."""
        for count, fine, seconds in ((ok, True, 0.1), (slow, True, 2.1), (failed, False, 0.1)):
            for _ in range(count):
                self.guard.observe(alias, model, ok=fine, seconds=seconds)
        await self.guard.settle()
        return self.store.aliases.get(BOT)


@pytest.fixture
def traffic(store: Store) -> Traffic:
    store.engines.declare(["tiny"])
    for number in (1, 2, 3):
        row = {**PRODUCT, "id": f"adapter-{number}", "name": f"m{number}", "sha256": f"{number:064}"}
        store.models.register({**row, "source": "upload"})
    return Traffic(store)


def version(traffic: Traffic) -> int:
    alias = traffic.store.aliases.get(BOT)
    assert alias is not None
    return alias.version


async def test_a_new_target_that_fails_is_rolled_back(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m1", "m2", limits=ERRORS)
    await traffic.end(flipped, "m2", ok=17, failed=2)
    assert version(traffic) == 2, "too few requests yet"
    now = await traffic.end(flipped, "m2", failed=1)
    assert now is not None
    assert (now.version, now.targets, now.guard) == (3, (AliasTarget("m1"),), None)
    newest = traffic.store.aliases.history(BOT)[0][0]
    assert (newest.who, newest.rolled_back_to) == ("guard", 1)
    assert newest.why == (
        "rollback to version 1: 3 of 20 requests to m2 failed (15.0%; max_error_rate is 10.0%)"
    )


async def test_an_error_rate_at_its_limit_is_within_it(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)
    await traffic.end(flipped, "m2", ok=180, failed=20)
    assert version(traffic) == 2
    await traffic.end(flipped, "m2", failed=1)
    assert version(traffic) == 3


async def test_a_new_target_that_is_slow_is_rolled_back(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=SLOW)
    await traffic.end(flipped, "m2", ok=98, slow=1)
    await traffic.end(flipped, "m2", ok=1)
    assert version(traffic) == 2, "1 of 100 is the 99th percentile's own"
    await traffic.end(flipped, "m2", slow=1)
    assert version(traffic) == 3
    why = traffic.store.aliases.history(BOT)[0][0].why
    assert why == (
        "rollback to version 1: 2 of 101 requests to m2 took longer than 2 s to begin to answer, which is "
        "max_p99_seconds"
    )


async def test_each_limit_is_of_its_own(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=SLOW)
    await traffic.end(flipped, "m2", failed=500)
    assert version(traffic) == 2
    flipped = traffic.put("m3", limits=ERRORS)
    await traffic.end(flipped, "m3", slow=500)
    assert version(traffic) == 3


async def test_a_target_that_was_there_before_is_not_blamed(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m1", "m2", limits=ERRORS)
    await traffic.end(flipped, "m1", failed=100)
    assert version(traffic) == 2
    await traffic.end(flipped, "m2", failed=20)
    assert version(traffic) == 3, "and does not cover up for another"


async def test_targets_are_counted_apart(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", "m3", limits=ERRORS)
    await traffic.end(flipped, "m2", ok=1000)
    await traffic.end(flipped, "m3", failed=19)
    assert version(traffic) == 2
    await traffic.end(flipped, "m3", failed=1)
    assert version(traffic) == 3


async def test_after_the_window_nobody_looks(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)
    await traffic.end(flipped, "m2", failed=19)
    traffic.now += 600.5
    await traffic.end(flipped, "m2", failed=100)
    assert version(traffic) == 2
    assert traffic.guard._watched == {}


async def test_within_the_window_it_does(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)
    traffic.now += 599.5
    await traffic.end(flipped, "m2", failed=20)
    assert version(traffic) == 3


async def test_without_a_guard_nothing_happens(traffic: Traffic) -> None:
    traffic.put("m1", limits=ERRORS)
    flipped = traffic.put("m2")
    await traffic.end(flipped, "m2", failed=1000)
    assert version(traffic) == 2


async def test_a_rollback_is_not_rolled_back(traffic: Traffic) -> None:
    """Otherwise, where the engine fails every request, the alias would go back through all of its history."""
    traffic.put("m3")
    traffic.put("m1", limits=ERRORS)
    flipped = traffic.put("m2", limits=ERRORS)
    now = await traffic.end(flipped, "m2", failed=20)
    assert now is not None
    assert (now.version, now.targets, now.guard) == (4, (AliasTarget("m1"),), ERRORS)
    await traffic.end(now, "m1", failed=1000)
    assert version(traffic) == 4


async def test_one_that_was_rolled_back_may_be_tried_again(traffic: Traffic) -> None:
    traffic.put("m1")
    await traffic.end(traffic.put("m2", limits=ERRORS), "m2", failed=20)
    again = traffic.put("m2", limits=ERRORS)
    await traffic.end(again, "m2", ok=500)
    assert version(traffic) == 4
    await traffic.end(again, "m2", failed=500)
    assert version(traffic) == 5


async def test_late_requests_of_a_version_before_count_for_nothing(traffic: Traffic) -> None:
    plain, first = traffic.put("m1"), traffic.put("m2", limits=ERRORS)
    second = traffic.put("m3", limits=ERRORS)
    await traffic.end(second, "m3", failed=19)
    await traffic.end(first, "m2", failed=100)
    await traffic.end(plain, "m1", failed=100)
    assert version(traffic) == 3
    await traffic.end(second, "m3", failed=1)
    assert version(traffic) == 4, "and forget nothing"


async def test_who_changes_the_alias_first_is_heard(traffic: Traffic) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)
    traffic.put("m3")
    await traffic.end(flipped, "m2", failed=50)
    assert version(traffic) == 3
    traffic.store.aliases.delete(BOT)
    await traffic.end(flipped, "m2", failed=50)
    assert traffic.store.aliases.get(BOT) is None


async def test_one_rollback_however_many_fail_meanwhile(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    rollback = traffic.store.aliases.rollback
    monkeypatch.setattr(
        type(traffic.store.aliases),
        "rollback",
        lambda _, *args, **kwargs: calls.append(args) or rollback(*args, **kwargs),
    )
    traffic.put("m1")
    await traffic.end(traffic.put("m2", limits=ERRORS), "m2", failed=500)
    assert calls == [(BOT, 1)]
    assert version(traffic) == 3


async def test_there_may_be_nothing_to_go_back_to(traffic: Traffic, caplog: pytest.LogCaptureFixture) -> None:
    first = traffic.put("m1", limits=ERRORS)
    with caplog.at_level(logging.WARNING):
        await traffic.end(first, "m1", failed=100)
    assert version(traffic) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "guard: 20 of 20 requests to m1 failed (100.0%; max_error_rate is 10.0%), and support-bot has no earlier "
        "version to go back to"
    ]


async def test_a_rollback_is_logged(traffic: Traffic, caplog: pytest.LogCaptureFixture) -> None:
    traffic.put("m1")
    with caplog.at_level(logging.WARNING):
        await traffic.end(traffic.put("m2", limits=ERRORS), "m2", failed=20)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "rolled support-bot back from version 2 to version 1, as version 3" in record.getMessage()


async def test_what_cannot_be_gone_back_to_is_told(
    traffic: Traffic, caplog: pytest.LogCaptureFixture
) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)
    with traffic.store.database.begin() as connection:
        connection.execute(models.update().where(models.c.name == "m1").values(state=ModelState.QUARANTINED))
    await traffic.end(flipped, "m2", failed=50)
    assert version(traffic) == 2
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "m1 is quarantined" in record.getMessage()


async def test_a_database_that_fails_is_asked_again(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traffic.put("m1")
    flipped = traffic.put("m2", limits=ERRORS)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no database")

    with monkeypatch.context() as patched:
        patched.setattr(type(traffic.store.aliases), "rollback", broken)
        await traffic.end(flipped, "m2", failed=20)
    assert "could not be rolled back" in caplog.text
    await traffic.end(flipped, "m2", failed=1)
    assert version(traffic) == 3
