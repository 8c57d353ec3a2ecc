"""A trainer whose answers come from the engine: what it asks, and what it does where the engine makes none."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from aiohttp import web
from test_policies import BODY, FINGERPRINT, Sampling, running, sampling  # noqa: F401

from graded import SEED, graded_folder, graded_trainer
from tunewright.api.gateway.inner import InnerGateway
from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.gateway import Refused
from tunewright.registry.content import adapter_sha256
from tunewright.store.states import JobPhase
from tunewright.store.store import Store
from tunewright.trainer import sampling as trainer_sampling
from tunewright.trainer.spec import EngineSampling, TrainingSpec

STORIES = [
    {
        "messages": [{"role": "user", "content": f"Tell me a story about a {animal}."}],
        "answer": f"A {animal}.",
    }
    for animal in ("cat", "dog", "wolf", "frog", "bear", "king")
]
"""To which the base has several answers."""
Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


def tokens_by_seed(asked: dict[str, Any], logprob: float | None = None) -> tuple[int, dict[str, Any]]:
    body = asked["body"]
    ids = random.Random(body["seed"]).choices(range(100, 1000), k=body["max_tokens"] - 1)
    choice = {"token_ids": [*ids, body["stop_token_ids"][0]]}
    choice["logprobs"] = {"token_logprobs": [logprob] * len(choice["token_ids"])}
    return 200, {"choices": [choice]}


def refusal(status: int) -> Answer:
    return lambda _: (status, {"error": {"message": "not now", "code": "engine_unavailable"}})


class Gateway:
    """Answers `/sample`, and `/ask` by `model`, in a thread. `asked` has what was asked, and the weights in its folder
    at that moment."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.answer: Answer = tokens_by_seed
        self.model: Answer = refusal(400)
        self.asked: list[dict[str, Any]] = []
        self.asked_of_models: list[dict[str, Any]] = []
        """With the headers, and how many requests were there at once."""
        self._at_once = 0
        self.policies: Path | None = None
        self.found: set[str] = set()
        """The hashes of the adapters that were in the folder."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def _sample(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if self.policies is not None:
            [folder] = self.policies.iterdir()
            assert folder.name == asked["sha256"]
            if folder.name not in self.found:
                self.found.add(adapter_sha256(folder))
        status, answer = self.answer(asked)
        self.asked.append({**asked, "project": request.headers["X-Tunewright-Project"]})
        return web.json_response(answer, status=status)

    async def _ask(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self._at_once += 1
        self.asked_of_models.append({**asked, "headers": dict(request.headers), "at_once": self._at_once})
        await asyncio.sleep(0.001)  # others come meanwhile
        status, answer = self.model(asked)
        self._at_once -= 1
        return web.json_response(answer, status=status)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/sample", self._sample)
        app.router.add_post("/ask", self._ask)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        return runner

    def __enter__(self) -> Gateway:
        self._thread.start()
        self._runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def gateway(socket: Path) -> Iterator[Gateway]:
    with Gateway(socket) as running:
        yield running


def sampled(path: Path, gateway: Gateway | None, **changes: Any) -> JobFolder:
    """A job of three steps, of which the first changes nothing, since its learning rate is 0."""
    of_engine = (
        {"socket": str(gateway.socket), "project": "mine", "base_fingerprint": "f" * 64} if gateway else None
    )
    return graded_folder(
        path / "job",
        STORIES,
        n_epochs=1,
        batch_size=2,
        num_generations=2,
        temperature=1.0,
        spec={"sampling": {**of_engine, "patience": 0.2, **changes} if of_engine else None},
    )


def trained(folder: JobFolder) -> list[dict[str, float]]:
    trainer = graded_trainer(folder)
    trainer.train()
    measures = ("loss", "reward", "grad_norm", "num_tokens", "completions/mean_length")
    differs = "sampling/sampling_logp_difference/mean"
    logs = [step for step in trainer.state.log_history if "loss" in step]
    return [
        {name: step[name] for name in (*measures, *([differs] if differs in step else []))} for step in logs
    ]


def codes(folder: JobFolder) -> list[str]:
    events, _ = folder.read_events(0)
    return [event["data"]["code"] for event in events if (event.get("data") or {}).get("code")]


def test_the_engine_makes_the_answers_of_each_step_with_the_weights_of_that_step(
    tmp_path: Path, gateway: Gateway
) -> None:
    folder = sampled(tmp_path / "first", gateway)
    gateway.policies = folder.policies
    steps = trained(folder)
    assert len(steps) == 3
    assert all(step["grad_norm"] > 0 for step in steps)
    assert all(step["completions/mean_length"] == 8 for step in steps)
    assert all(step["sampling/sampling_logp_difference/mean"] == 0 for step in steps), "none were told"

    asked = gateway.asked
    assert len(asked) == 3 * 2 * 2, "of three steps with 2 prompts, 2 answers to each"
    assert {one["job"] for one in asked} == {"ftjob-graded"}
    assert {one["project"] for one in asked} == {"mine"}
    versions = list(dict.fromkeys(one["sha256"] for one in asked))
    assert len(versions) == 2
    assert gateway.found == set(versions), "each is the adapter that its hash names"
    assert [path.name for path in folder.policies.iterdir()] == versions[-1:], "the ones before are removed"
    body = asked[0]["body"]
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (
        1.0,
        1.0,
        -1,
        1.0,
    )
    assert body["max_tokens"] == 8
    assert len({(one["sha256"], one["body"]["seed"]) for one in asked}) == len(asked), (
        "each has a seed of its own"
    )

    again = sampled(tmp_path / "again", gateway)
    gateway.policies = None
    assert trained(again) == steps, "what is repeated is the same"
    places = [[(one["sha256"], one["body"]["seed"]) for one in part] for part in (asked[:12], asked[12:])]
    assert sorted(places[0]) == sorted(places[1])
    assert folder.read_spec(TrainingSpec).seed == SEED


def test_the_trainer_makes_them_while_the_engine_cannot(tmp_path: Path, gateway: Gateway) -> None:
    by_trainer = trained(sampled(tmp_path / "plain", None))

    gateway.answer = refusal(503)
    folder = sampled(tmp_path / "down", gateway)
    assert trained(folder) == by_trainer
    assert codes(folder) == ["engine_unavailable"], "told once"

    def down_at_first(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return refusal(503)(asked) if asked["sha256"] == version else tokens_by_seed(asked)

    version = gateway.asked[0]["sha256"]
    gateway.answer = down_at_first
    folder = sampled(tmp_path / "back", gateway)
    steps = trained(folder)
    assert steps[:2] == by_trainer[:2]
    assert "sampling/sampling_logp_difference/mean" in steps[2]
    assert codes(folder) == ["engine_unavailable"]
    assert "makes the answers again" in " ".join(event["message"] for event in folder.read_events(0)[0])


def test_a_job_that_wants_the_engine_alone_fails_without_it(tmp_path: Path, gateway: Gateway) -> None:
    for number, (answer, code) in enumerate(
        [
            (refusal(503), "engine_unavailable"),
            (refusal(400), "sampling_refused"),
            (lambda asked: tokens_by_seed(asked, -40.0), "sampling_mismatch"),
            (lambda _: (200, {"choices": [{"text": "a"}]}), "sampling_refused"),
        ]
    ):
        gateway.answer = answer
        folder = sampled(tmp_path / str(number), gateway, is_required=True)
        with pytest.raises(TrainingFailed) as failed:
            graded_trainer(folder).train()
        assert failed.value.code == code


def test_answers_of_another_model_are_made_again_by_the_trainer(tmp_path: Path, gateway: Gateway) -> None:
    gateway.answer = lambda asked: tokens_by_seed(asked, -40.0)
    folder = sampled(tmp_path / "wrong", gateway)
    assert trained(folder) == trained(sampled(tmp_path / "plain", None)), (
        "nothing was learnt from them, or counted"
    )
    assert codes(folder) == ["sampling_mismatch"]
    assert len(gateway.asked) == 4, "it is not asked again"


def test_a_job_that_is_to_stop_does_not_wait_for_the_engine(
    tmp_path: Path, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        """To stop."""

    def stop() -> None:
        raise Asked

    monkeypatch.setattr(trainer_sampling, "_BEAT", 0.05)
    monkeypatch.setattr(trainer_sampling, "_STOPS_AFTER", 0.2)
    gateway.answer = refusal(503)
    folder = sampled(tmp_path, gateway, is_required=True, patience=600)
    trainer: Any = graded_trainer(folder)
    sampler = trainer._sampler
    sampler._go_on, sampler._stopped = stop, Asked
    assert sampler.sample(trainer.accelerator.unwrap_model(trainer.model), 0, "train", [[1, 2]]) is None


@pytest.mark.anyio
async def test_a_trainer_asks_through_the_services_own_socket(
    sampling: Sampling,  # noqa: F811
    store: Store,
    socket: Path,
) -> None:
    job = running(store)
    version = sampling.version(job, "first")
    inner = InnerGateway(sampling.gateway, socket.with_name("inner"), policies=store.policies)
    await inner.start()
    try:
        how = EngineSampling(
            socket=str(socket.with_name("inner")), project="default", base_fingerprint=FINGERPRINT
        )
        found = await trainer_sampling._Asking(how, job.id, version, 30).run(
            [{**BODY, "seed": seed} for seed in range(5)]
        )
        assert [len(ids) for ids in found.completion_ids] == [len(told) for told in found.logprobs] == [3] * 5
        assert {(asked["model"], tuple(asked["prompt"])) for asked in sampling.asked} == {(version, (1, 2))}
        store.jobs.set_phase(job.id, JobPhase.PUBLISH)
        with pytest.raises(Refused, match="does not run"):
            await trainer_sampling._Asking(how, job.id, "c" * 64, 30).run([BODY])
    finally:
        await inner.stop()
