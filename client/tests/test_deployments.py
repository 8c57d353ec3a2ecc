"""Deployments: requests, and waiting until one is ready or has failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_server import FakeServer, Reply, ok, refuse
from samples import page

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Deployment, Tunewright

MODEL = "ft:base:full:1"
PATH = "/v1/deployments"
ONE = f"{PATH}/deploy-1"


def deployment(state: str = "ready", **fields: Any) -> dict[str, Any]:
    return {
        "id": "deploy-1",
        "object": "deployment",
        "model": MODEL,
        "state": state,
        "reason": None,
        "device": "cpu",
        "engine": {"max_loras": 2},
        "options": {"device": "cpu", "max_loras": 2},
        "created_at": 1,
        "adapters": [{"model": "ft:a", "id": "adapter-1", "state": "loaded"}],
        "log_tail": ["started"],
        **fields,
    }


def test_a_deployment_is_created_and_waited_for(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", PATH, ok(deployment("starting")))
    server.on("GET", ONE, ok(deployment("starting")), refuse(503), Reply(abort=True), ok(deployment()))
    made = client.deployments.create(MODEL, {"max_loras": 2})
    assert server.requests[-1].json == {"model": MODEL, "engine": {"max_loras": 2}}
    states: list[str] = []
    done = made.wait(poll_interval=0.01, timeout=20, on_change=lambda now: states.append(now.state))
    assert isinstance(done, Deployment)
    assert (done.state, done.adapters[0].model, states) == ("ready", "ft:a", ["starting", "ready"])
    client.deployments.create(MODEL)
    assert server.requests[-1].json == {"model": MODEL}


def test_a_failed_deployment_raises_its_reason(
    server: FakeServer, client: Tunewright, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "ValueError: no such architecture"
    server.on("GET", ONE, ok(deployment("starting")), ok(deployment("failed", reason=why)))
    with pytest.raises(tw.DeploymentFailedError, match=why) as failed:
        client.deployments.wait("deploy-1", poll_interval=0.01, progress=True)
    assert failed.value.deployment.log_tail == ["started"]
    assert capsys.readouterr().err.splitlines() == [f"{MODEL}  starting", f"{MODEL}  failed: {why}"]
    server.on("GET", ONE, ok(deployment("draining")))
    with pytest.raises(tw.DeploymentFailedError, match="being taken down"):
        client.deployments.wait("deploy-1")


def test_a_wait_ends_at_its_timeout_and_for_an_unknown_deployment(
    server: FakeServer, client: Tunewright
) -> None:
    server.on("GET", ONE, ok(deployment("backoff")))
    with pytest.raises(tw.WaitTimeoutError, match="deploy-1 is still backoff after"):
        client.deployments.wait("deploy-1", timeout=0.05, poll_interval=0.01)
    server.on("GET", ONE, refuse(404))
    with pytest.raises(tw.NotFoundError):
        client.deployments.wait("deploy-1", timeout=5)


def test_every_deployment_method_uses_its_route(server: FakeServer, client: Tunewright) -> None:
    named = f"{PATH}/ft%3Abase%3Afull%3A1"
    server.on("GET", PATH, ok(page([deployment()])))
    server.on("GET", named, ok(deployment()))
    server.on("GET", f"{ONE}/logs", Reply(200, b"a\nb\n"))
    server.on("POST", f"{ONE}/restart", ok(deployment("starting")))
    server.on("DELETE", ONE, ok({"id": "deploy-1", "object": "deployment", "deleted": True}))
    assert [one.id for one in client.deployments.list(limit=5)] == ["deploy-1"]
    one = client.deployments.retrieve(MODEL)
    assert one.logs(tail=2) == "a\nb\n"
    assert server.requests[-1].query == {"tail": "2"}
    assert one.restart().state == "starting"
    assert one.delete().deleted
    assert server.requests[-1].query == {}
    assert one.delete(force=True, timeout=1.5, user="ann").deleted
    assert server.requests[-1].query == {"force": "true", "timeout": "1.5"}
    assert server.requests[-1].headers["x-tunewright-user"] == "ann"
    with pytest.raises(ValueError, match="empty"):
        client.deployments.delete("")


def test_the_asyncio_client_waits_with_a_coroutine_function(server: FakeServer) -> None:
    server.on("POST", PATH, ok(deployment("starting")))
    server.on("GET", ONE, ok(deployment("starting")), ok(deployment()))
    server.on("GET", PATH, ok(page([deployment()])))
    states: list[str] = []

    async def note(now: Any) -> None:
        states.append(now.state)

    async def run() -> None:
        async with AsyncTunewright(server.url) as client:
            made = await client.deployments.create(MODEL)
            assert (await made.wait(poll_interval=0.01, on_change=note)).state == "ready"
            assert [one.state async for one in client.deployments.list()] == ["ready"]

    asyncio.run(run())
    assert states == ["starting", "ready"]


def test_a_service_is_ready_without_its_deployments(server: FakeServer, client: Tunewright) -> None:
    failed = {"ready": False, "required": False, "state": "failed", "reason": "why"}
    server.on("GET", "/ready", ok({"ready": True, "components": {"engine:x": failed}}))
    assert client.wait_ready(timeout=5).waiting_for == ""
