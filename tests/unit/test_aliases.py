"""Aliases: which target a request goes to, their history, and their routes of the API."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from starlette.testclient import TestClient

from races import at_once
from rows import PRODUCT, Publish, create_job, engine_info
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings
from tunewright.errors import InvalidRequest, NotFound
from tunewright.registry.aliases import Alias, AliasGuard, AliasShadow, AliasTarget, is_alias_name, pick
from tunewright.registry.workspace import Workspace
from tunewright.store import shadow_answers as shadow_store
from tunewright.store.states import Desired, EngineState, JobState, ModelState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import models

pytestmark = pytest.mark.each_database

BOT = "support-bot"


def target(model: str, weight: float = 1.0) -> AliasTarget:
    return AliasTarget(model, weight)


def alias(weights: dict[str, float], name: str = BOT) -> Alias:
    targets = tuple(target(model, weight) for model, weight in weights.items())
    return Alias(name, 1, targets, None, None, 0.0, 0.0)


# picking

WEIGHTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4), st.floats(0.001, 1000), min_size=1, max_size=6
)
KEYS = [f"caller-{number}" for number in range(1500)]


def examples(number: int) -> settings:
    """The same callers every time: the tests are of frequencies, and random ones would fail some day."""
    return settings(max_examples=number, derandomize=True, database=None, deadline=None)


def shares(weights: dict[str, float]) -> dict[str, float]:
    return {model: weight / sum(weights.values()) for model, weight in weights.items()}


def assigned(weights: dict[str, float], keys: list[str] = KEYS) -> dict[str, str]:
    of = alias(weights)
    return {key: pick(of, key, 0.5) for key in keys}


def assert_about(got: float, wanted: float, count: int) -> None:
    """Within five standard deviations of `count` draws, and one draw."""
    assert abs(got - wanted) <= 5 * math.sqrt(wanted * (1 - wanted) / count) + 1 / count


@examples(100)
@given(WEIGHTS, st.one_of(st.none(), st.text()), st.floats(0, 1, exclude_max=True))
def test_a_target_is_picked_and_nothing_else(
    weights: dict[str, float], sticky: str | None, chance: float
) -> None:
    assert pick(alias(weights), sticky, chance) in weights


@examples(50)
@given(WEIGHTS)
def test_chance_gives_each_target_its_share_of_the_line(weights: dict[str, float]) -> None:
    steps = 500
    found = Counter(pick(alias(weights), None, (step + 0.5) / steps) for step in range(steps))
    for model, share in shares(weights).items():
        assert abs(found[model] / steps - share) <= 1 / steps


@examples(20)
@given(WEIGHTS)
def test_sticky_callers_are_spread_by_the_weights(weights: dict[str, float]) -> None:
    found = Counter(assigned(weights).values())
    for model, share in shares(weights).items():
        assert_about(found[model] / len(KEYS), share, len(KEYS))


@examples(100)
@given(WEIGHTS, st.text(), st.floats(0, 1, exclude_max=True), st.randoms(use_true_random=False))
def test_a_caller_stays_whatever_the_order_and_the_chance(
    weights: dict[str, float], key: str, chance: float, random: Any
) -> None:
    shuffled = list(weights.items())
    random.shuffle(shuffled)
    assert pick(alias(weights), key, 0.0) == pick(alias(dict(shuffled)), key, chance)
    assert pick(alias(weights), None, chance) == pick(alias(dict(shuffled)), None, chance)
    scaled = {model: weight * 8 for model, weight in weights.items()}
    assert pick(alias(scaled), key, chance) == pick(alias(weights), key, chance)


@examples(25)
@given(WEIGHTS, st.data())
def test_as_few_callers_move_as_can(weights: dict[str, float], data: Any) -> None:
    """One weight changes, or a target comes or goes: callers move to it or away from it, and no others."""
    changed = data.draw(st.sampled_from([*sorted(weights), "new"]))
    new = data.draw(st.one_of(st.none(), st.floats(0.001, 1000)))
    after = {model: weight for model, weight in weights.items() if model != changed}
    if new is not None or not after:
        after[changed] = new or 1.0
    old, now = assigned(weights), assigned(after)
    moved = [key for key in KEYS if old[key] != now[key]]
    grew = shares(after).get(changed, 0.0) - shares(weights).get(changed, 0.0)
    for key in moved:
        assert changed in (old[key], now[key])
        assert (now[key] == changed) is (grew > 0)
    assert_about(len(moved) / len(KEYS), abs(grew), len(KEYS))


def test_each_alias_spreads_callers_anew() -> None:
    """Otherwise the same callers would get the canary of every alias."""
    weights = {"a": 1.0, "b": 1.0}
    first = {key: pick(alias(weights, "one"), key, 0.5) for key in KEYS}
    same = sum(first[key] == pick(alias(weights, "two"), key, 0.5) for key in KEYS)
    assert_about(same / len(KEYS), 0.5, len(KEYS))


def test_where_a_caller_goes_is_the_same_in_every_version_of_the_service() -> None:
    keys = [pick(alias({"a": 1.0, "b": 3.0}), f"caller-{n}", 0.0) for n in range(64)]
    assert hashlib.sha256("".join(keys).encode()).hexdigest()[:16] == "0d3ed12e15cd96e0"


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1e308])
def test_extreme_weights_are_weights(weight: float) -> None:
    found = Counter(pick(alias({"a": weight, "b": weight}), key, 0.0) for key in KEYS)
    assert_about(found["a"] / len(KEYS), 0.5, len(KEYS))
    assert {pick(alias({"a": weight, "b": weight}), None, c) for c in (0.1, 0.9)} == {"a", "b"}


def test_a_caller_may_be_half_a_character() -> None:
    assert pick(alias({"a": 1.0}), "\ud800", 0.0) == "a"


@pytest.mark.parametrize("name", ["a", "support-bot", "Org/model.v2:prod_1", "a" * 128, "history", "gpt-4o"])
def test_alias_names(name: str) -> None:
    assert is_alias_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "-a", "a b", "ä", "a\n", "a" * 129, "ft:tiny:x:1", "FT:x", "a/", "/a", "a//b", "a/../b", "a/.b", "a?b",
        "x/history", "x/rollback", "x/shadow", "x/download", "a%2Fb",
    ],
)  # fmt: skip
def test_no_alias_names(name: str) -> None:
    assert not is_alias_name(name)


# the store


@pytest.fixture
def each(store: Store) -> Store:
    """A store with the base `tiny` and the adapters m1, m2 and m3."""
    store.engines.declare(["tiny"])
    for number in (1, 2, 3):
        register(store, f"m{number}")
    return store


def register(store: Store, name: str, **changes: Any) -> None:
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    row = {**PRODUCT, "id": f"adapter-{name}", "name": name, "sha256": sha256, "source": "upload"}
    store.models.register({**row, **changes})


def set_state(store: Store, name: str, state: ModelState) -> None:
    with store.database.begin() as connection:
        connection.execute(update(models).where(models.c.name == name).values(state=state))


def history_of(store: Store, name: str = BOT) -> list[tuple[int, list[str], str]]:
    """The history: versions, their models, and why."""
    found, _ = store.aliases.history(name)
    return [(v.version, [t.model for t in v.targets], v.why) for v in found]


def test_an_alias_is_what_was_put(each: Store) -> None:
    guard, shadow = AliasGuard(0.1, 2.0, 60, 5), AliasShadow("m3", 0.5)
    first = each.aliases.put(BOT, [target("m2", 9), target("m1")], shadow, guard, who="ann")
    assert (first.version, first.targets) == (1, (target("m1"), target("m2", 9)))
    assert each.aliases.get(BOT) == first
    second = each.aliases.put(BOT, [target("tiny")], who="bob", why="because")
    assert (second.version, second.shadow, second.guard) == (2, None, None)
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at
    newest, oldest = each.aliases.history(BOT)[0]
    assert (newest.version, newest.who, newest.why, newest.rolled_back_to) == (2, "bob", "because", None)
    assert (oldest.shadow, oldest.guard, oldest.targets, oldest.at) == (
        shadow, guard, first.targets, first.updated_at,
    )  # fmt: skip
    assert each.aliases.get("other") is None
    assert each.aliases.history("other") == ([], False)


def test_what_changes_nothing_makes_no_version(each: Store) -> None:
    first = each.aliases.put(BOT, [target("m1"), target("m2")], AliasShadow("m3"), expected_version=0)
    again = each.aliases.put(BOT, [target("m2"), target("m1")], AliasShadow("m3"), expected_version=0)
    assert again == first, "a repeated request"
    assert len(history_of(each)) == 1
    assert each.aliases.put(BOT, [target("m1"), target("m2")], AliasShadow("m3", 0.5)).version == 2


def test_only_the_expected_version_is_replaced(each: Store) -> None:
    for expected in (1, 7):
        with pytest.raises(InvalidRequest, match="does not exist") as refused:
            each.aliases.put(BOT, [target("m1")], expected_version=expected)
        assert (refused.value.param, refused.value.code) == ("expected_version", "alias_version_conflict")
    each.aliases.put(BOT, [target("m1")], expected_version=0)
    each.aliases.put(BOT, [target("m2")], expected_version=1)
    for expected in (0, 1, 3):
        with pytest.raises(InvalidRequest, match="is at version 2"):
            each.aliases.put(BOT, [target("m1")], expected_version=expected)
    assert history_of(each) == [(2, ["m2"], "set"), (1, ["m1"], "set")]


def test_of_two_who_expect_the_same_version_one_is_heard(url: str, each: Store) -> None:
    each.aliases.put(BOT, [target("tiny")])
    stores = [Store.open(url) for _ in range(6)]

    def flip(index: int) -> bool:
        try:
            stores[index].aliases.put(BOT, [target("m1", index + 1)], expected_version=1)
        except InvalidRequest:
            return False
        return True

    assert sum(at_once(6, flip)) == 1
    for index, opened in enumerate(stores):
        opened.aliases.put(f"alias-{index}", [target("m1")])
        opened.close()
    assert [version for version, *_ in history_of(each)] == [2, 1]


def test_versions_of_many_at_once_have_no_gaps(url: str, each: Store) -> None:
    stores = [Store.open(url) for _ in range(6)]
    at_once(6, lambda i: stores[i].aliases.put(BOT, [target("m1", i + 1)]))
    for opened in stores:
        opened.close()
    assert [version for version, *_ in history_of(each)] == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("targets", "param", "message"),
    [
        ([], "targets", "1 to 32 targets; got 0"),
        ([target(f"m{n}") for n in range(33)], "targets", "got 33"),
        ([target("m1"), target("m1", 2)], "targets", "m1 is given twice"),
        ([target("m1", 0.0)], "targets", "weight of m1"),
        ([target("m1", -1.0)], "targets", "weight of m1"),
        ([target("m1", math.inf)], "targets", "weight of m1"),
        ([target("m1", math.nan)], "targets", "weight of m1"),
        ([target("m1"), target("none")], "targets", "No such model: 'none'"),
        ([target("other-alias")], "targets", "other-alias is an alias itself"),
        ([target("full")], "targets", "full is a full model, and not deployed"),
        ([target("orphan")], "targets", "The base of orphan"),
        ([target("bad")], "targets", "bad is quarantined"),
        ([target("m1"), target("checking")], "targets", "checking is checking: wait"),
        ([target("m1"), target("checkpoint")], "targets", "checkpoint is unchecked: load it"),
    ],
)
def test_targets_that_are_refused(each: Store, targets: list[AliasTarget], param: str, message: str) -> None:
    each.aliases.put("other-alias", [target("m1")])
    register(each, "full", kind="full")
    register(each, "orphan", base="elsewhere")
    register(each, "bad", state=ModelState.QUARANTINED)
    register(each, "checking", state=ModelState.CHECKING)
    register(each, "checkpoint", state=ModelState.CHECKING, desired="unloaded")
    for attempt in (each.aliases.put, each.aliases.check):
        with pytest.raises(InvalidRequest, match=message) as refused:
            attempt(BOT, targets)
        assert refused.value.param == param
    assert each.aliases.get(BOT) is None
    assert history_of(each) == []


@pytest.mark.parametrize(
    ("shadow", "message"),
    [
        (AliasShadow("none"), "No such model"),
        (AliasShadow("m1"), "m1 is a target"),
        (AliasShadow("m2", 0.0), "share"),
        (AliasShadow("m2", 1.5), "share"),
        (AliasShadow("m2", math.nan), "share"),
    ],
)
def test_shadows_that_are_refused(each: Store, shadow: AliasShadow, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        each.aliases.put(BOT, [target("m1")], shadow)
    assert refused.value.param == "shadow"


@pytest.mark.one_database
@pytest.mark.parametrize("name", ["tiny", "m1", "ft:tiny::x", "x/history", ""])
def test_names_that_are_not_an_aliass(each: Store, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        each.aliases.put(name, [target("m2")])
    assert refused.value.param == "name"


def test_aliases_are_paged_by_name(each: Store) -> None:
    for name in ("c", "a", "d", "b"):
        each.aliases.put(name, [target("m1")])
    found, more = each.aliases.list(limit=2)
    assert ([a.name for a in found], more) == (["a", "b"], True)
    found, more = each.aliases.list(after="b", limit=2)
    assert ([a.name for a in found], more) == (["c", "d"], False)
    each.aliases.delete("b")
    assert [a.name for a in each.aliases.list(after="b")[0]] == ["c", "d"], "a page goes on all the same"


def test_a_history_is_paged_from_the_newest(each: Store) -> None:
    for number in range(5):
        each.aliases.put(BOT, [target("m1", number + 1)])
    found, more = each.aliases.history(BOT, limit=2)
    assert ([v.version for v in found], more) == ([5, 4], True)
    found, more = each.aliases.history(BOT, after=4, limit=3)
    assert ([v.version for v in found], more) == ([3, 2, 1], False)


# rolling back


def test_a_rollback_is_a_new_version(each: Store) -> None:
    guard = AliasGuard(0.5)
    each.aliases.put(BOT, [target("m1", 2)], AliasShadow("m3"), guard)
    each.aliases.put(BOT, [target("m2")])
    now = each.aliases.rollback(BOT, who="ann")
    assert (now.version, now.targets) == (3, (target("m1", 2),))
    assert (now.shadow, now.guard) == (AliasShadow("m3"), guard)
    newest = each.aliases.history(BOT)[0][0]
    assert (newest.why, newest.who, newest.rolled_back_to) == ("rollback to version 1", "ann", 1)


def test_what_was_rolled_back_from_does_not_come_back(each: Store) -> None:
    for model in ("m1", "m2", "m3"):
        each.aliases.put(BOT, [target(model)])
    each.aliases.rollback(BOT)
    each.aliases.rollback(BOT, because="slow")
    assert history_of(each)[:2] == [
        (5, ["m1"], "rollback to version 1: slow"),
        (4, ["m2"], "rollback to version 2"),
    ]
    with pytest.raises(InvalidRequest, match="no earlier version"):
        each.aliases.rollback(BOT)
    each.aliases.put(BOT, [target("m3")])
    assert each.aliases.rollback(BOT).targets == (target("m1"),)
    assert history_of(each)[0] == (7, ["m1"], "rollback to version 5")
    with pytest.raises(InvalidRequest, match="no earlier version"):
        each.aliases.rollback(BOT)
    assert each.aliases.rollback(BOT, 3).targets == (target("m3"),), "unless it is asked for"


def test_a_rollback_to_a_version_that_was_none_is_refused(each: Store) -> None:
    with pytest.raises(NotFound) as missing:
        each.aliases.rollback(BOT)
    assert missing.value.code == "alias_not_found"
    each.aliases.put(BOT, [target("m1")])
    for version in (0, 2, -1):
        with pytest.raises(InvalidRequest, match=f"no version {version}") as refused:
            each.aliases.rollback(BOT, version)
        assert refused.value.param == "version"
    each.aliases.delete(BOT)
    each.aliases.put(BOT, [target("m2")])
    with pytest.raises(InvalidRequest, match="was deleted"):
        each.aliases.rollback(BOT, 2)
    assert each.aliases.rollback(BOT).targets == (target("m1"),), "a deletion is passed over"


def test_a_repeated_rollback_is_done_once(each: Store) -> None:
    for model in ("m1", "m2", "m3"):
        each.aliases.put(BOT, [target(model)])
    first = each.aliases.rollback(BOT, expected_version=3)
    assert each.aliases.rollback(BOT, expected_version=3) == first
    assert each.aliases.rollback(BOT, 2, expected_version=3) == first
    assert each.aliases.rollback(BOT, 2) == first, "it is that already"
    for to_version, expected in ((1, 3), (None, 2), (None, 9)):
        with pytest.raises(InvalidRequest, match="is at version 4"):
            each.aliases.rollback(BOT, to_version, expected_version=expected)
    assert len(history_of(each)) == 4


def test_a_rollback_to_a_model_that_cannot_be_served_is_refused(each: Store) -> None:
    each.aliases.put(BOT, [target("m1")], AliasShadow("m3"))
    each.aliases.put(BOT, [target("m2")])
    set_state(each, "m1", ModelState.QUARANTINED)
    for attempt in (each.aliases.rollback, each.aliases.plan_rollback):
        with pytest.raises(InvalidRequest, match="m1 is quarantined"):
            attempt(BOT)
    set_state(each, "m1", ModelState.READY)
    set_state(each, "m3", ModelState.QUARANTINED)
    assert each.aliases.rollback(BOT).shadow is None, "a shadow is no reason not to go back"


def test_a_plan_is_what_a_rollback_does(each: Store) -> None:
    for model in ("m1", "m2"):
        each.aliases.put(BOT, [target(model)])
    current, earlier = each.aliases.plan_rollback(BOT)
    assert (current.version, earlier.version) == (2, 1)
    with pytest.raises(InvalidRequest):
        each.aliases.plan_rollback(BOT, expected_version=1)
    assert len(history_of(each)) == 2


# deleting


def test_a_history_outlives_its_alias(each: Store) -> None:
    each.aliases.put(BOT, [target("m1")])
    record(each)
    assert each.aliases.delete(BOT, who="ann")
    assert each.aliases.get(BOT) is None
    assert history_of(each) == [(2, [], "deleted"), (1, ["m1"], "set")]
    assert each.aliases.history(BOT)[0][0].who == "ann"
    assert each.shadow_answers.list(BOT)[0] == []
    assert each.aliases.delete(BOT) is False
    assert each.aliases.put(BOT, [target("m1")], expected_version=0).version == 3


def listed(store: Store, name: str) -> Any:
    found = store.models.get(name)
    assert found is not None
    return found


def test_a_model_that_an_alias_has_stays(each: Store) -> None:
    each.aliases.put(BOT, [target("m1"), target("m2")], AliasShadow("m3"))
    each.aliases.put("b", [target("m1")])
    for name, users in (("m1", "b, support-bot"), ("m3", "support-bot")):
        assert ", ".join(each.aliases.using(name)) == users
        for attempt in (each.models.delete, each.models.refuse_needed):
            with pytest.raises(InvalidRequest, match=f"aliases: {users}") as refused:
                attempt(listed(each, name))
            assert refused.value.code == "model_in_use"
        assert each.models.get(name)
    each.aliases.put(BOT, [target("m2")])
    assert each.models.delete(listed(each, "m3"))


def test_a_forced_deletion_takes_the_model_out_of_its_aliases(each: Store) -> None:
    guard = AliasGuard(0.5)
    each.aliases.put(BOT, [target("m1"), target("m2", 3)], AliasShadow("m3"), guard)
    each.aliases.put("only", [target("m1")], AliasShadow("m2"))
    each.aliases.put("untouched", [target("m2")])
    each.models.refuse_needed(listed(each, "m1"), force=True)
    assert each.models.delete(listed(each, "m1"), force=True, who="ann")
    now = each.aliases.get(BOT)
    assert now is not None
    assert (now.version, now.targets, now.shadow, now.guard) == (
        2, (target("m2", 3),), AliasShadow("m3"), guard,
    )  # fmt: skip
    assert history_of(each)[0] == (2, ["m2"], "a model was deleted: m1")
    assert each.aliases.history(BOT)[0][0].who == "ann"
    assert each.aliases.get("only") is None
    assert history_of(each, "only")[0] == (2, [], "its only target was deleted: m1")
    assert len(history_of(each, "untouched")) == 1
    each.models.delete(listed(each, "m3"), force=True)
    now = each.aliases.get(BOT)
    assert now is not None
    assert now.shadow is None
    with pytest.raises(InvalidRequest, match="No such model: 'm1'"):
        each.aliases.rollback(BOT, 1)


def test_force_does_not_take_a_jobs_weights(each: Store) -> None:
    create_job(each, state=JobState.QUEUED, parent_sha256=listed(each, "m1").sha256)
    each.aliases.put(BOT, [target("m1")])
    with pytest.raises(InvalidRequest, match="is what job"):
        each.models.delete(listed(each, "m1"), force=True)
    assert each.aliases.get(BOT) is not None


def test_no_alias_is_left_with_a_model_that_goes(url: str, each: Store) -> None:
    """Whichever comes first, the model's deletion or the alias."""
    stores = [Store.open(url) for _ in range(2)]
    for number in range(8):
        name = f"model-{number}"
        register(each, name)
        model = listed(each, name)

        def race(index: int, name: str = name, model: Any = model) -> bool:
            try:
                if index:
                    return stores[0].models.delete(model)
                return bool(stores[1].aliases.put(name + "-alias", [target(name)]))
            except InvalidRequest:
                return False

        assert sum(at_once(2, race)) == 1
        assert (each.models.get(name) is None) is (each.aliases.get(name + "-alias") is None)
    for opened in stores:
        opened.close()


def test_checkpoints_of_aliases_are_not_idle(each: Store) -> None:
    for number in range(4, 9):
        register(each, f"m{number}", checkpoint_step=number, desired="unloaded")
    each.aliases.put(BOT, [target("m4")])
    each.aliases.put(BOT, [target("m5")])
    each.aliases.put(BOT, [target("m6")], AliasShadow("m7"))
    idle = {model.name for model in each.models.idle_checkpoints()}
    assert idle == {"m4", "m8"}, "m5 is what a rollback brings back"
    assert not each.models.delete_idle_checkpoint("adapter-m5")
    assert each.models.delete_idle_checkpoint("adapter-m4")
    each.aliases.rollback(BOT)
    assert {model.name for model in each.models.idle_checkpoints()} == {"m6", "m7", "m8"}
    each.aliases.delete(BOT)
    assert {model.name for model in each.models.idle_checkpoints()} == {"m5", "m6", "m7", "m8"}


# answers of shadows


def record(store: Store, alias: str = BOT, **changes: Any) -> None:
    values = {
        "model": "m2", "answered_by": "m1", "path": "/v1/completions", "at": 1.0, "seconds": 0.5, "status": 200,
        "request": {"prompt": "a"}, "answer": {"text": "b"},
    }  # fmt: skip
    store.shadow_answers.add(**{**values, "alias": alias, **changes})


def test_the_newest_answers_are_kept(each: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_store, "KEPT", 3)
    for name in (BOT, "other"):
        each.aliases.put(name, [target("m1")], AliasShadow("m2"))
    record(each, "other")
    for number in range(5):
        record(each, at=float(number))
    found, more = each.shadow_answers.list(BOT, limit=2)
    assert ([a.at for a in found], more) == ([4.0, 3.0], True)
    found, more = each.shadow_answers.list(BOT, after=found[-1].id)
    assert ([a.at for a in found], more) == ([2.0], False)
    assert len(each.shadow_answers.list("other")[0]) == 1, "each alias has its own"


def test_answers_come_back_as_they_were(each: Store) -> None:
    each.aliases.put(BOT, [target("m1")])
    odd = {"text": "\0 \ud83d ä 😀", "numbers": [1, 2.5, None]}
    record(each, request="cut", answer=odd, status=503)
    record(each, "none")
    [found] = each.shadow_answers.list(BOT)[0]
    if not each.database.is_sqlite:
        odd["text"] = "\ufffd \ufffd ä 😀"
    assert (found.request, found.answer, found.status) == ("cut", odd, 503)
    assert each.shadow_answers.list("none")[0] == [], "an alias that is gone keeps nothing"


# the API

BASE = "tunewright-tiny"
OLD, NEW, THIRD = (f"ft:{BASE}:s:{n}" for n in ("1", "2", "3"))


class Worker:
    """A stand-in for the engine worker: it loads adapters, and records each with the alias's targets at that time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[tuple[str, str]] = []
        self.seen: list[Any] = []
        self.errors: dict[str, str] = {}
        self.unloaded = "unloaded"

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        op, model = operation["op"], operation["model"]
        self.asked.append((op, model))
        self.seen.append(self._store.aliases.get(BOT))
        engine, record = self._store.engines.get(BASE), self._store.models.get(model)
        assert engine is not None
        assert record is not None
        self._store.models.want(model, Desired(op + "ed"))
        if op == "unload":
            self._store.engines.set_residency(engine, record.sha256, None)
            return {"state": self.unloaded}
        if model in self.errors:
            return {"error": self.errors[model]}
        self._store.engines.set_residency(engine, record.sha256, Residency.LOADED)
        return {"state": "loaded"}


@pytest.fixture
def worker(store: Store) -> Worker:
    return Worker(store)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The server's parts do not change from test to test, its store does."""
    nowhere = Store.open("sqlite://")
    yield build(Settings(), nowhere)[0]
    nowhere.close()


@pytest.fixture
def api(server: Any, store: Store, data: Workspace, worker: Worker, publish_model: Publish) -> TestClient:
    """A service with the base ready, and three adapters of which none is loaded."""
    store.engines.declare([BASE])
    store.engines.starting(BASE, "/tmp/s", engine_info(max_model_len=77))
    store.engines.set_state(BASE, EngineState.READY)
    for number, name in enumerate((OLD, NEW, THIRD)):
        row = {"name": name, "base": BASE, "sha256": f"{number:064}", "desired": "unloaded"}
        assert publish_model(row)
        data.artifacts.local(row["sha256"]).mkdir()
    server.app.state.context = ServiceContext(Settings(data_dir=data.path), store, data, worker.control)
    return TestClient(server.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def put(api: TestClient, *targets: str | dict[str, Any], name: str = BOT, **more: Any) -> Any:
    body = {"targets": [{"model": t} if isinstance(t, str) else t for t in targets], **more}
    return api.put(f"/v1/aliases/{name}", json=body)


def ok(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def error(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found = dict(answer.json()["error"])
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_flip_answers_with_its_version_and_is_what_models_say(api: TestClient) -> None:
    made = ok(put(api, OLD, BASE, guard={"max_error_rate": 0.1}, expected_version=0))
    assert (made["id"], made["object"], made["version"]) == (BOT, "alias", 1)
    assert made["targets"] == [{"model": OLD, "weight": 1.0}, {"model": BASE, "weight": 1.0}]
    assert made["guard"] == {
        "max_error_rate": 0.1, "max_p99_seconds": None, "window_seconds": 600.0, "min_requests": 20, "judge": None,
    }  # fmt: skip
    flipped = ok(put(api, {"model": NEW, "weight": 3}, shadow={"model": OLD, "share": 0.25}))
    assert (flipped["version"], flipped["shadow"]) == (2, {"model": OLD, "share": 0.25})
    assert ok(api.get(f"/v1/aliases/{BOT}")) == flipped
    listed = ok(api.get("/v1/aliases"))
    assert (listed["data"], listed["has_more"], listed["last_id"]) == ([flipped], False, BOT)
    shown = ok(api.get(f"/v1/models/{BOT}"))
    assert (shown["id"], shown["owned_by"], shown["kind"], shown["state"]) == (BOT, "alias", "alias", "ready")
    assert (shown["targets"], shown["max_model_len"]) == ([{"model": NEW, "weight": 3.0}], 77)
    everything = ok(api.get("/v1/models"))["data"]
    assert [m["id"] for m in everything] == [BASE, BOT, THIRD, NEW, OLD]
    assert everything[1] == shown


def test_a_guard_has_a_judge_that_compares_with_the_shadow(api: TestClient, store: Store) -> None:
    judge = {"model": BASE, "min_win_rate": 0.45}
    refused = error(put(api, OLD, guard={"judge": judge}), 400)
    assert "compares with the answers of a `shadow`" in refused["message"]
    shadow = {"model": OLD}
    assert error(put(api, OLD, NEW, shadow=shadow, guard={"max_error_rate": 0.1}), 400)["param"] == "shadow"
    unknown = error(put(api, NEW, shadow=shadow, guard={"judge": {**judge, "model": "none"}}), 404)
    assert unknown["param"] == "guard.judge.model"
    made = ok(put(api, OLD, NEW, shadow=shadow, guard={"judge": judge}))
    assert made["guard"]["judge"] == {**judge, "min_samples": 50, "instructions": None}
    for outcome in ("win", "tie", "loss"):
        store.alias_judgements.add(BOT, 1, model=NEW, against=OLD, outcome=outcome)
    assert store.alias_judgements.add(BOT, 2, model=NEW, against=OLD, outcome="win") == [], (
        "of another version"
    )
    [judged] = ok(api.get(f"/v1/aliases/{BOT}"))["judged"]
    assert (judged["model"], judged["against"], judged["verdict"]) == (NEW, OLD, "not_enough_data")
    assert (judged["wins"], judged["ties"], judged["losses"], judged["win_rate"]) == (1, 1, 1, 0.5)
    assert ok(api.delete(f"/v1/aliases/{BOT}"))["deleted"] is True
    assert store.alias_judgements.of(BOT, 1) == {}


def test_a_flip_waits_until_its_targets_are_loaded(api: TestClient, worker: Worker) -> None:
    assert ok(put(api, OLD, shadow={"model": THIRD}))["version"] == 1
    assert worker.asked == [("load", OLD)]
    assert worker.seen == [None], "loaded before the flip"
    ok(put(api, OLD, NEW, BASE))
    assert worker.asked[1:] == [("load", NEW)], "what is loaded is not loaded again"
    assert worker.seen[1].version == 1


def test_a_flip_to_what_cannot_be_loaded_changes_nothing(
    api: TestClient, worker: Worker, store: Store
) -> None:
    ok(put(api, OLD))
    worker.errors[NEW] = "no slot is free"
    answer = put(api, NEW)
    refused = error(answer, 503)
    assert refused["code"] == "load_failed"
    assert "no slot is free" in refused["message"]
    assert NEW in refused["message"]
    assert answer.headers["retry-after"]
    assert ok(api.get(f"/v1/aliases/{BOT}"))["version"] == 1
    assert worker.asked[-1] == ("unload", NEW), "it would be tried for ever"
    model = store.models.get(NEW)
    assert model is not None
    assert model.desired == "unloaded"
    store.engines.set_state(BASE, EngineState.BACKOFF)
    assert "not ready (backoff)" in error(put(api, BASE), 503)["message"]


def test_a_flip_need_not_wait(api: TestClient, worker: Worker) -> None:
    worker.errors[NEW] = "no slot is free"
    assert ok(put(api, NEW, wait=False))["version"] == 1
    assert worker.asked == []


def test_a_wrong_flip_loads_nothing(api: TestClient, worker: Worker) -> None:
    assert error(put(api, NEW, "none"), 400)["param"] == "targets"
    assert error(put(api, NEW, expected_version=4), 400)["code"] == "alias_version_conflict"
    assert worker.asked == []


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "targets"),
        ({"targets": []}, "targets"),
        ({"targets": [{"model": OLD, "weight": 0}]}, "targets.0.weight"),
        ({"targets": [{"model": OLD, "weight": "1"}]}, "targets.0.weight"),
        ({"targets": [{"model": OLD, "wait": 1}]}, "targets.0.wait"),
        ({"targets": [{"model": OLD}], "shadow": {"model": NEW, "share": 1.1}}, "shadow.share"),
        ({"targets": [{"model": OLD}], "shadow": {"model": OLD}}, "shadow"),
        ({"targets": [{"model": OLD}], "guard": {}}, "guard"),
        ({"targets": [{"model": OLD}], "guard": {"max_error_rate": 1}}, "guard.max_error_rate"),
        ({"targets": [{"model": OLD}], "guard": {"judge": {"model": NEW}}}, "guard.judge.min_win_rate"),
        ({"targets": [{"model": OLD}], "guard": {"max_p99_seconds": 0}}, "guard.max_p99_seconds"),
        ({"targets": [{"model": OLD}], "expected_version": -1}, "expected_version"),
        ({"targets": [{"model": OLD}], "wait": "no"}, "wait"),
        ({"targets": [{"model": OLD}], "why": "x"}, "why"),
    ],
)
def test_a_refused_flip_names_the_parameter(api: TestClient, body: dict[str, Any], param: str) -> None:
    assert error(api.put(f"/v1/aliases/{BOT}", json=body), 400)["param"] == param
    error(api.get(f"/v1/aliases/{BOT}"), 404)


def test_infinity_is_no_weight(api: TestClient) -> None:
    body = f'{{"targets": [{{"model": "{OLD}", "weight": Infinity}}]}}'
    answer = api.put(f"/v1/aliases/{BOT}", content=body, headers={"content-type": "application/json"})
    assert error(answer, 400)["param"] == "targets.0.weight"


def test_history_says_who_and_why(api: TestClient) -> None:
    name = "org/bot:prod"
    put(api, OLD, name=name)
    for number, who in enumerate(("ann", None)):
        headers = {"X-Tunewright-User": who} if who else {}
        body = {"targets": [{"model": NEW, "weight": number + 1}]}
        ok(api.put(f"/v1/aliases/{name}", json=body, headers=headers))
    ok(api.post(f"/v1/aliases/{name}/rollback", json={"version": 1}, headers={"X-Tunewright-User": "bob"}))
    ok(api.delete(f"/v1/aliases/{name}"))
    page = ok(api.get(f"/v1/aliases/{name}/history", params={"limit": 3}))
    assert [(v["version"], v["who"], v["why"], v["rolled_back_to"]) for v in page["data"]] == [
        (5, None, "deleted", None),
        (4, "bob", "rollback to version 1", 1),
        (3, None, "set", None),
    ]
    assert (page["data"][0]["targets"], page["has_more"], page["last_id"]) == ([], True, "3")
    rest = ok(api.get(f"/v1/aliases/{name}/history", params={"after": page["last_id"]}))
    assert [(v["version"], v["who"]) for v in rest["data"]] == [(2, "ann"), (1, None)]
    assert error(api.get(f"/v1/aliases/{name}/history", params={"after": "x"}), 400)["param"] == "after"
    headers = {"X-Tunewright-User": "x" * 129}
    assert error(api.delete(f"/v1/aliases/{name}", headers=headers), 400)["param"] == "X-Tunewright-User"


def test_rolling_back_loads_what_it_goes_back_to(api: TestClient, worker: Worker, store: Store) -> None:
    put(api, OLD)
    put(api, NEW)
    engine = store.engines.get(BASE)
    assert engine is not None
    store.engines.set_residency(engine, f"{0:064}", None)  # evicted
    worker.errors[OLD] = "no slot is free"
    assert error(api.post(f"/v1/aliases/{BOT}/rollback"), 503)["code"] == "load_failed"
    worker.errors.clear()
    del worker.asked[:]
    back = ok(api.post(f"/v1/aliases/{BOT}/rollback", json={"expected_version": 2}))
    assert (back["version"], back["targets"][0]["model"]) == (3, OLD)
    assert worker.asked == [("load", OLD)]
    again = ok(api.post(f"/v1/aliases/{BOT}/rollback", json={"expected_version": 2}))
    assert again == back, "a repeated request"
    refused = error(api.post(f"/v1/aliases/{BOT}/rollback", json={"version": 2, "expected_version": 2}), 400)
    assert refused["code"] == "alias_version_conflict"
    assert error(api.post(f"/v1/aliases/{BOT}/rollback"), 400)["param"] == "version"
    store.engines.set_residency(engine, f"{1:064}", None)
    worker.errors[NEW] = "no slot is free"
    assert ok(api.post(f"/v1/aliases/{BOT}/rollback", json={"version": 2, "wait": False}))["version"] == 4


def test_an_unknown_alias(api: TestClient) -> None:
    for answer in (
        api.get("/v1/aliases/none"),
        api.get("/v1/aliases/none/history"),
        api.get("/v1/aliases/none/shadow"),
        api.post("/v1/aliases/none/rollback"),
        api.delete("/v1/aliases/none"),
    ):
        assert error(answer, 404)["code"] == "alias_not_found"
    error(api.get("/v1/aliases/a%00b"), 404)


@pytest.mark.parametrize(
    ("method", "tail", "allowed"),
    [
        ("PUT", "history", "GET"),
        ("DELETE", "shadow", "GET"),
        ("PUT", "rollback", "POST"),
        ("GET", "rollback", "POST"),
    ],
)
def test_what_lies_under_a_name_is_no_name(api: TestClient, method: str, tail: str, allowed: str) -> None:
    answer = api.request(method, f"/v1/aliases/org/bot/{tail}", json={"targets": [{"model": OLD}]})
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == allowed


def test_what_a_shadow_answered_is_listed(api: TestClient, store: Store) -> None:
    put(api, OLD, shadow={"model": NEW})
    for number in range(3):
        record(store, at=float(number), model=NEW, answered_by=OLD, answer="text" if number else {"a": 1})
    page = ok(api.get(f"/v1/aliases/{BOT}/shadow", params={"limit": 2}))
    assert [(a["created_at"], a["answer"]) for a in page["data"]] == [(2, "text"), (1, "text")]
    rest = ok(api.get(f"/v1/aliases/{BOT}/shadow", params={"after": page["last_id"]}))
    [last] = rest["data"]
    assert (last["model"], last["answered_by"], last["status"]) == (NEW, OLD, 200)
    assert (last["request"], last["answer"], last["object"]) == (
        {"prompt": "a"}, {"a": 1}, "alias.shadow_answer",
    )  # fmt: skip


@pytest.mark.parametrize("route", ["models", "adapters"])
def test_what_an_alias_has_is_deleted_only_by_force(
    api: TestClient, store: Store, worker: Worker, data: Workspace, route: str
) -> None:
    ok(put(api, OLD, NEW))
    refused = error(api.delete(f"/v1/{route}/{NEW}"), 400)
    assert (refused["code"], BOT in refused["message"]) == ("model_in_use", True)
    assert worker.asked[-1] == ("load", NEW)
    worker.unloaded = "draining"
    forced = {"force": "true"}
    refused = error(api.delete(f"/v1/{route}/{NEW}", params=forced), 503)
    assert refused["code"] == "model_draining"
    assert store.models.get(NEW), "its requests still run"
    worker.unloaded = "unloaded"
    ok(api.delete(f"/v1/{route}/{NEW}", params=forced, headers={"X-Tunewright-User": "ann"}))
    assert worker.asked[-1] == ("unload", NEW)
    assert [t.model for t in worker.seen[-1].targets] == [OLD], "first no request goes there, then it goes"
    assert store.models.get(NEW) is None
    assert not data.artifacts.local(f"{1:064}").exists()
    ok(api.delete(f"/v1/{route}/{OLD}", params=forced, headers={"X-Tunewright-User": "ann"}))
    error(api.get(f"/v1/aliases/{BOT}"), 404)
    newest = ok(api.get(f"/v1/aliases/{BOT}/history"))["data"][0]
    assert (newest["who"], newest["why"]) == ("ann", f"its only target was deleted: {OLD}")


def test_an_alias_is_no_model_to_delete_or_download(api: TestClient) -> None:
    put(api, OLD)
    for answer in (api.delete(f"/v1/models/{BOT}"), api.get(f"/v1/models/{BOT}/download")):
        assert f"/v1/aliases/{BOT}" in error(answer, 400)["message"]
    assert ok(api.get(f"/v1/aliases/{BOT}"))["version"] == 1


def test_an_alias_is_as_ready_as_its_targets(api: TestClient, store: Store) -> None:
    put(api, OLD, NEW)
    engine = store.engines.get(BASE)
    assert engine is not None
    store.engines.set_residency(engine, f"{1:064}", Residency.FAILED, error="why")
    assert ok(api.get(f"/v1/models/{BOT}"))["state"] == "failed"
