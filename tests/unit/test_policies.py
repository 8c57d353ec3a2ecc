"""The policies of jobs that sample from the engine: what is loaded, for how long, and who can ask it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from test_residency import BASE, INTERNAL, Setting

from fake_engine import Client, gateway_for
from rows import Publish, create_job, engine_info
from tunewright.api.gateway.below import BelowLive
from tunewright.api.gateway.ledger import Payer
from tunewright.api.gateway.policies import Policies
from tunewright.api.gateway.proxy import Gateway, Relay
from tunewright.engine.http import EngineError
from tunewright.engine.residency import ResidencyManager
from tunewright.errors import EngineUnavailable, InvalidRequest
from tunewright.jobs.folder import JobFolder
from tunewright.registry.content import adapter_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.policies import policy_name
from tunewright.store.records import Job, TunedModel
from tunewright.store.states import EngineState, JobPhase, JobState, Residency
from tunewright.store.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
FINGERPRINT = "f" * 64
BODY = {"prompt": [1, 2], "max_tokens": 3, "seed": 5, "return_token_ids": True, "stop_token_ids": [2]}


def running(store: Store) -> Job:
    return create_job(store, base=BASE, state=JobState.RUNNING, phase=JobPhase.RUN)


@pytest.mark.each_database
async def test_a_policy_is_wanted_while_the_process_of_its_job_runs(store: Store) -> None:
    job, other = running(store), running(store)
    name = policy_name(job.id)
    assert store.policies.put(job.id, "a" * 64, FINGERPRINT)
    assert store.policies.put(other.id, "b" * 64, FINGERPRINT)
    assert store.policies.put(job.id, "c" * 64, FINGERPRINT), "in the place of the first"
    assert set(store.policies.wanted(BASE)) == {"b" * 64, "c" * 64}
    assert store.policies.wanted("another") == {}
    policy = store.policies.get(name)
    assert policy is not None
    assert (policy.sha256, policy.base, policy.base_fingerprint) == ("c" * 64, BASE, FINGERPRINT)

    assert store.jobs.pause(job.id) is not None
    assert store.policies.get(name) is not None, "it finishes its step"
    store.jobs.paused(job.id)
    assert set(store.policies.wanted(BASE)) == {"b" * 64}
    assert store.policies.get(name) is None
    assert not store.policies.put(job.id, "d" * 64, FINGERPRINT)
    assert not store.policies.put("ftjob-none", "d" * 64, FINGERPRINT)


@pytest.mark.each_database
async def test_a_policy_has_no_name_for_clients(store: Store) -> None:
    job = running(store)
    name = policy_name(job.id)
    assert store.policies.put(job.id, "a" * 64, FINGERPRINT)
    assert store.models.list() == ([], False)
    for asked in (store.names, store.of("default").names):
        assert asked.read([name])[name].model is None
    assert store.names.read([name], of_jobs=True)[name].model is not None
    assert store.models.get(name) is None


@dataclass
class Sampling:
    """An engine with room for three adapters, what loads them, and the gateway before it."""

    setting: Setting
    manager: ResidencyManager
    gateway: Gateway
    policies: Policies
    asked: list[dict[str, Any]]
    """The requests that the engine has answered."""

    def version(self, job: Job, content: str) -> str:
        """A version of the job's model, in its folder. Returns its hash."""
        made = self.setting.data.tmp / content
        made.mkdir()
        (made / "adapter_config.json").write_text(json.dumps({"r": 8, "target_modules": ["q"]}))
        (made / "adapter_model.safetensors").write_text(content)
        sha256 = adapter_sha256(made)
        final = JobFolder(self.setting.data.job(job.id)).policy(sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        made.rename(final)
        return sha256

    async def sample(self, job: Job, sha256: str, turn_within: float = 30.0, **changes: Any) -> Any:
        asked: dict[str, Any] = {"job": job.id, "sha256": sha256, "base_fingerprint": FINGERPRINT}
        asked |= {"turn_within": turn_within, "body": {**BODY, **changes}}
        return json.loads(await self.policies.sample(asked, 100, Payer("default", source="training")))

    async def by_a_client(self, model: str) -> int:
        client = Client()
        relay = Relay(self.gateway, "/v1/completions", {"model": model, "prompt": "a"}, project="default")
        scope: Any = {"type": "http", "client": ("10.0.0.1", 1)}
        await relay(scope, client.receive, client.send)
        return int(client.messages[0]["status"])


@asynccontextmanager
async def sampling_from(
    store: Store, data: Workspace, publish: Publish, socket: Path
) -> AsyncIterator[Sampling]:
    setting = Setting(store, data, publish, socket)
    asked: list[dict[str, Any]] = []
    answer = setting.server.answer

    async def recorded(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        found: web.StreamResponse = await answer(request)
        return found

    setting.server.answer = recorded

    async with setting.serving() as manager:

        async def load(operation: dict[str, Any]) -> dict[str, Any]:
            name = operation["model"]
            model: TunedModel | None = store.policies.get(name) or store.models.get(name)
            assert model is not None
            try:
                return await manager.load(model)
            except EngineError as error:
                return {"error": str(error)}

        gateway = gateway_for(store, load=load)
        policies = Policies(BelowLive(gateway), store.policies)
        try:
            yield Sampling(setting, manager, gateway, policies, asked)
        finally:
            await gateway.close()


@pytest.fixture
async def sampling(
    store: Store, data: Workspace, publish_model: Publish, socket: Path
) -> AsyncIterator[Sampling]:
    async with sampling_from(store, data, publish_model, socket) as made:
        yield made


async def test_each_version_takes_the_place_of_the_one_before(sampling: Sampling, store: Store) -> None:
    setting, job = sampling.setting, running(store)
    resident = [setting.adapter(), setting.adapter()]
    for model in resident:
        await sampling.manager.load(model)
    weights = {model.sha256 for model in resident}

    first = sampling.version(job, "first")
    answers = await asyncio.gather(*(sampling.sample(job, first, seed=seed) for seed in range(20)))
    assert {len(answer["choices"][0]["token_ids"]) for answer in answers} == {3}
    assert {answer["model"] for answer in answers} == {BASE}, "what a job is told names no version"
    assert {asked["model"] for asked in sampling.asked} == {first}
    assert setting.in_memory() == {*weights, first}, "one load for all of them"

    for content in ("second", "third"):
        version = sampling.version(job, content)
        assert await sampling.sample(job, version)
        assert sampling.asked[-1]["model"] == version
        assert setting.in_memory() == {*weights, version}, "no adapter of others was evicted for it"
    for model in resident:
        assert setting.state(model) is Residency.LOADED

    store.jobs.set_phase(job.id, JobPhase.PUBLISH)
    await sampling.manager.reconcile()
    async with asyncio.timeout(30):
        while setting.in_memory() != weights:
            await asyncio.sleep(0.01)
    with pytest.raises(InvalidRequest) as refused:
        await sampling.sample(job, version)
    assert refused.value.code == "job_not_running"


async def test_clients_reach_no_policy_and_its_use_is_told_as_that_of_the_base(
    sampling: Sampling, store: Store
) -> None:
    job = running(store)
    version = sampling.version(job, "first")
    await sampling.sample(job, version)
    for name in (policy_name(job.id), version, job.id):
        assert await sampling.by_a_client(name) == 404
    assert len(sampling.asked) == 1
    [key] = sampling.gateway.ledger._sums
    assert (key.model, key.source, key.project) == (BASE, "training", "default")


async def test_a_policy_that_was_evicted_comes_back(sampling: Sampling, store: Store) -> None:
    setting, job = sampling.setting, running(store)
    version = sampling.version(job, "first")
    await sampling.sample(job, version)
    models = [setting.adapter() for _ in range(3)]
    for model in models:
        await sampling.manager.load(model)
    assert version not in setting.in_memory(), "live traffic needed its place"
    await sampling.manager.reconcile()
    assert version not in setting.in_memory(), "and keeps it until the next answer is asked for"
    await sampling.sample(job, version)
    assert version in setting.in_memory()


async def test_where_no_place_is_free_the_job_is_told_to_try_again(sampling: Sampling, store: Store) -> None:
    setting, job = sampling.setting, running(store)
    models = [setting.adapter() for _ in range(3)]
    for model in models:
        await sampling.manager.load(model)
    ends = [setting.use(model) for model in models]
    version = sampling.version(job, "first")
    with pytest.raises(EngineUnavailable, match="pinned or in use"):
        await sampling.sample(job, version)
    for end in ends:
        end()
    store.engines.set_residency(setting.engine, version, None)  # as the reconciler does after half a minute
    assert await sampling.sample(job, version)


async def test_weights_that_are_not_those_that_were_named_are_not_loaded(
    sampling: Sampling, store: Store
) -> None:
    job = running(store)
    version = sampling.version(job, "first")
    folder = JobFolder(sampling.setting.data.job(job.id)).policy(version)
    (folder / "adapter_model.safetensors").write_text("changed")
    with pytest.raises(EngineUnavailable, match="files have changed"):
        await sampling.sample(job, version)
    assert sampling.asked == []


async def test_no_answer_comes_from_other_weights_than_were_named(
    sampling: Sampling, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(store)
    await sampling.sample(job, sampling.version(job, "first"))

    async def too_early(*_: object) -> None:
        """As where another request changes the policy in between."""

    monkeypatch.setattr(sampling.policies, "_ensure", too_early)
    with pytest.raises(EngineUnavailable, match="other weights"):
        await sampling.sample(job, "c" * 64)
    assert len(sampling.asked) == 1


async def test_an_engine_that_was_started_again_loads_the_policy_again(
    sampling: Sampling, store: Store
) -> None:
    setting, job = sampling.setting, running(store)
    version = sampling.version(job, "first")
    await sampling.sample(job, version)
    store.engines.set_state(BASE, EngineState.STARTING)
    with pytest.raises(EngineUnavailable, match="not ready"):
        await sampling.sample(job, version)
    setting.server._adapters.clear()
    setting.server.memory.clear()
    setting.engine = setting.new_run()
    assert await sampling.sample(job, version)
    assert setting.in_memory() == {version}


async def test_answers_for_jobs_have_a_part_of_the_engine_and_wait_for_live_requests(
    sampling: Sampling, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(store)
    info = engine_info(internal_name=INTERNAL, fingerprint=FINGERPRINT, max_adapters=3, max_num_seqs=4)
    store.engines.set_state(BASE, EngineState.READY, info=info)
    version = sampling.version(job, "first")
    await sampling.sample(job, version)
    line = sampling.gateway.router.lines[BASE]
    most = 0
    take = line.take_below

    async def seen(size: int) -> int:
        nonlocal most
        taken = await take(size)
        async with asyncio.timeout(60):
            while (most := max(most, line._below)) < 3:  # the first ones wait for each other
                await asyncio.sleep(0)
        return taken

    monkeypatch.setattr(line, "take_below", seen)
    await asyncio.gather(*(sampling.sample(job, version, seed=seed) for seed in range(12)))
    assert most == 3, "three quarters of its sequences, while nobody else is there"

    line._running += 4  # live requests
    with pytest.raises(EngineUnavailable, match="below live traffic"):
        await sampling.sample(job, version, turn_within=0.05)
    line._running -= 4
    assert await sampling.sample(job, version)
