"""Aliases: the requests for each form of the arguments, and rollbacks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_server import FakeServer, Reply, ok, refuse
from samples import page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Tunewright

BOT = "/v1/aliases/org%2Fbot"
ALIAS: dict[str, Any] = {
    "id": "org/bot",
    "object": "alias",
    "version": 3,
    "targets": [{"model": "m1", "weight": 9.0}, {"model": "m2", "weight": 1.0}],
    "shadow": {"model": "m3", "share": 0.5},
    "guard": {"max_error_rate": 0.1, "max_p99_seconds": None, "window_seconds": 600.0, "min_requests": 20},
    "created_at": 1,
    "updated_at": 2,
}


@pytest.mark.parametrize(
    ("targets", "sent"),
    [
        ("m1", [{"model": "m1"}]),
        ({"m1": 9, "m2": 1}, [{"model": "m1", "weight": 9}, {"model": "m2", "weight": 1}]),
        (["m1", {"model": "m2", "weight": 2}], [{"model": "m1"}, {"model": "m2", "weight": 2}]),
        ([tw.AliasTarget(model="m1"), tw.AliasTarget(model="m2", weight=2)], None),
    ],
)
def test_targets_are_a_name_or_weights_or_a_list(
    server: FakeServer, client: Tunewright, targets: Any, sent: Any
) -> None:
    server.on("PUT", BOT, ok(ALIAS))
    made = client.aliases.set("org/bot", targets)
    assert (made.id, made.version, made.targets[0].weight) == ("org/bot", 3, 9.0)
    wanted = sent or [{"model": "m1"}, {"model": "m2", "weight": 2.0}]
    assert server.requests[-1].json == {"targets": wanted, "wait": True}
    assert "x-tunewright-user" not in server.requests[-1].headers


def test_every_option_of_an_alias_is_sent(server: FakeServer, client: Tunewright) -> None:
    server.on("PUT", BOT, refuse(503), ok(ALIAS))
    made = client.aliases.set(
        "org/bot",
        "m1",
        shadow="m3",
        guard={"max_error_rate": 0.1},
        expected_version=0,
        wait=False,
        user="ann",
    )
    assert len(server.requests) == 2, "it was retried"
    assert server.requests[-1].json == {
        "targets": [{"model": "m1"}],
        "shadow": {"model": "m3"},
        "guard": {"max_error_rate": 0.1},
        "expected_version": 0,
        "wait": False,
    }
    assert server.requests[-1].headers["x-tunewright-user"] == "ann"
    assert made.shadow is not None
    assert made.guard is not None
    client.aliases.set("org/bot", made.targets, shadow=made.shadow, guard=tw.AliasGuard(max_p99_seconds=2))
    assert server.requests[-1].json == {
        "targets": ALIAS["targets"],
        "shadow": ALIAS["shadow"],
        "guard": {"max_p99_seconds": 2.0},
        "wait": True,
    }


def test_a_requirement_is_sent_kept_or_dropped_and_shown(server: FakeServer, client: Tunewright) -> None:
    require = {"evaluation": {"data": "file-1", "metric": "accuracy"}, "min": 0.8}
    stored = {**require, "evaluation": {**require["evaluation"], "sha256": "5" * 64}}  # type: ignore[dict-item]
    server.on("PUT", BOT, ok({**ALIAS, "require": stored}), ok(ALIAS), ok(ALIAS), ok(ALIAS))
    made = client.aliases.set("org/bot", "m1", require=require)
    assert server.requests[-1].json == {"targets": [{"model": "m1"}], "require": require, "wait": True}
    assert made.require is not None
    assert made.require.evaluation is not None
    assert (made.require.min, made.require.evaluation.sha256) == (0.8, "5" * 64)
    client.aliases.set("org/bot", "m1", require=made.require, force=True)
    sent = server.requests[-1].json
    assert (sent["require"], sent["force"]) == (stored, True)
    client.aliases.set("org/bot", "m1", require=False)
    assert server.requests[-1].json == {"targets": [{"model": "m1"}], "require": None, "wait": True}
    client.aliases.set("org/bot", "m1")
    assert "require" not in server.requests[-1].json, "it stays"


def test_a_gate_that_is_not_passed_is_no_error_to_repeat(server: FakeServer, client: Tunewright) -> None:
    server.on("PUT", BOT, refuse(409, "m2: fail", "gate_not_passed", x_should_retry="false"))
    with pytest.raises(tw.ConflictError, match="m2: fail") as caught:
        client.aliases.set("org/bot", "m2")
    assert (caught.value.code, len(server.requests)) == ("gate_not_passed", 1)
    reason = {"name": "min", "verdict": "fail", "value": 0.4, "limit": 0.8}
    gate = {
        "forced": True,
        "targets": [{"verdict": "fail", "reasons": [reason], "model": "m2", "evaluation": "eval-1"}],
    }
    server.on("GET", BOT + "/history", ok(page([{"id": "4", "version": 4, "gate": gate}])))
    found = next(iter(client.aliases.history("org/bot"))).gate
    assert found is not None
    assert (found.forced, found.targets[0].evaluation, found.targets[0].reasons[0].limit) == (
        True,
        "eval-1",
        0.8,
    )


def test_every_alias_method_uses_its_route(server: FakeServer, client: Tunewright) -> None:
    versions: list[Any] = [
        {"id": str(n), "alias": "org/bot", "version": n, "targets": [], "why": "set"} for n in (3, 2, 1)
    ]
    answer = {"id": "shadow-1", "model": "m3", "status": 200, "request": {"a": 1}, "answer": "cut"}
    server.on("GET", "/v1/aliases", ok(page([ALIAS])))
    server.on("GET", BOT, ok(ALIAS))
    server.on("GET", f"{BOT}/history", ok(page(versions[:2], True)), ok(page(versions[2:])))
    server.on("GET", f"{BOT}/shadow", ok(page([answer])))
    server.on("DELETE", BOT, ok({"id": "org/bot", "object": "alias", "deleted": True}))
    assert [alias.id for alias in client.aliases.list(limit=5)] == ["org/bot"]
    assert client.aliases.retrieve("org/bot").guard == tw.AliasGuard(**ALIAS["guard"])
    assert [version.version for version in client.aliases.history("org/bot")] == [3, 2, 1]
    assert server.requests[-1].query == {"after": "2"}
    assert [found.request for found in client.aliases.shadow_answers("org/bot", limit=2)] == [{"a": 1}]
    assert client.aliases.delete("org/bot", user="ann").deleted
    assert server.requests[-1].headers["x-tunewright-user"] == "ann"


def test_a_retried_rollback_goes_back_only_once(server: FakeServer, client: Tunewright) -> None:
    """The request names the version to go back from, so that a second one after a lost answer changes nothing."""
    server.on("GET", BOT, ok(ALIAS))
    server.on("POST", f"{BOT}/rollback", Reply(abort=True), ok({**ALIAS, "version": 4}))
    assert client.aliases.rollback("org/bot", user="ann").version == 4
    first, second = server.sent("POST", f"{BOT}/rollback")
    assert first.json == second.json == {"expected_version": 3, "wait": True}
    assert second.headers["x-tunewright-user"] == "ann"
    client.aliases.rollback("org/bot", 1, expected_version=9, wait=False)
    assert server.requests[-1].json == {"version": 1, "expected_version": 9, "wait": False}
    assert len(server.sent("GET", BOT)) == 1


def test_the_asyncio_client_sets_lists_and_rolls_back_aliases(server: FakeServer) -> None:
    server.on("PUT", BOT, ok(ALIAS))
    server.on("GET", BOT, ok(ALIAS))
    server.on("GET", "/v1/aliases", ok(page([ALIAS])))
    server.on("POST", f"{BOT}/rollback", ok({**ALIAS, "version": 4}))

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            assert (await client.aliases.set("org/bot", {"m1": 9, "m2": 1})).version == 3
            assert (await client.aliases.rollback("org/bot")).version == 4
            assert [alias.version async for alias in client.aliases.list()] == [3]

    asyncio.run(run())
    assert server.sent("POST", f"{BOT}/rollback")[0].json == {"expected_version": 3, "wait": True}


def test_a_model_is_deleted_by_force_only_on_request(server: FakeServer, client: Tunewright) -> None:
    gone = ok({"id": "x", "deleted": True})
    server.on("DELETE", "/v1/models/m1", gone)
    server.on("DELETE", "/v1/adapters/m1", gone)
    for delete in (client.models.delete, client.adapters.delete):
        delete("m1")
        assert server.requests[-1].query == {}
        delete("m1", force=True)
        assert server.requests[-1].query == {"force": "true"}
