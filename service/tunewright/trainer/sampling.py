"""Answers of the model in training, from the engine that serves its base.

The adapter is written to the job folder, named by its content, and the gateway has the engine load it (`api.gateway.
policies`). Each answer is a request of its own, with a seed from the job's, the step and its place: a step that is
repeated asks the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from peft import PeftModel

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.jobs.gateway import PROJECT_HEADER, Refused, Unanswered, not_answered
from tunewright.registry.content import adapter_sha256
from tunewright.trainer.spec import EngineSampling

AT_ONCE = 64
"""Requests in flight. The gateway decides how many of them the engine gets."""
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
_BEAT = 1.0
_LEAST_TURN = 2.0
"""Seconds that requests wait for their turn where the engine was not there for the step before."""
_STOPS_AFTER = 10.0
"""Seconds without an answer after which a job that is to stop makes them itself, to save its checkpoint."""


class Unavailable(Exception):
    """The engine gives no answers now; the message says why."""


@dataclass(frozen=True)
class Sampled:
    """Answers, each as its tokens and their log-probabilities."""

    completion_ids: list[list[int]]
    logprobs: list[list[float | None]]


class EngineSampler:
    """`parameters`: of the requests, beside prompt and seed. `go_on` is called every second, and raises `stopped` where
    the job is to stop."""

    def __init__(
        self,
        sampling: EngineSampling,
        job: str,
        seed: int,
        folder: JobFolder,
        events: EventLog,
        parameters: dict[str, Any],
        go_on: Callable[[], None],
        stopped: type[Exception],
    ) -> None:
        self._sampling = sampling
        self._job = job
        self._seed = seed
        self._folder = folder
        self._events = events
        self._parameters = parameters
        self._go_on = go_on
        self._stopped = stopped
        self._is_down = False
        self._saved: tuple[int, str] | None = None
        """The step whose weights were saved last, and their hash."""
        self.is_off = False
        """Whether it is not asked any more."""
        shutil.rmtree(folder.policies, ignore_errors=True)

    def sample(
        self, model: PeftModel, step: int, mode: str, prompts: Sequence[Sequence[int]]
    ) -> Sampled | None:
        """An answer to each of the prompts, which are tokens, by the model after so many steps; None where the engine
        cannot be asked, and need not. Raises TrainingFailed."""
        if self.is_off:
            return None
        sha256 = self._save(model, step)
        bodies = [
            {**self._parameters, "prompt": list(prompt), "seed": self._seed_of(step, mode, place, prompt)}
            for place, prompt in enumerate(prompts)
        ]
        patience = 0.0 if self._is_down else self._sampling.patience
        try:
            found = asyncio.run(self._ask(bodies, sha256, patience))
        except Unavailable as error:
            self._fall_back(step, str(error))
            return None
        except Refused as error:
            self.turn_off("sampling_refused", f"the engine refuses to answer: {error}")
            return None
        except self._stopped:
            return None  # this step is finished, and then a checkpoint saved
        if self._is_down:
            self._is_down = False
            self._events.message(f"The engine makes the answers again, after step {step}")
        return found

    def turn_off(self, code: str, why: str) -> None:
        """Do not ask the engine any more. Raises TrainingFailed where nothing else may make the answers."""
        if self._sampling.is_required:
            raise TrainingFailed(
                code, f"{why}. With tuning.sampling auto, the trainer makes the answers then"
            )
        self.is_off = True
        self._events.message(
            f"The trainer makes the answers from here on: {why}", level="warn", data={"code": code}
        )

    def _fall_back(self, step: int, why: str) -> None:
        if self._sampling.is_required:
            raise TrainingFailed(
                "engine_unavailable",
                f"the engine has made no answers for {self._sampling.patience:.0f} s: {why}. With tuning.sampling "
                "auto, the trainer makes them then",
            )
        if not self._is_down:
            self._is_down = True
            self._events.message(
                f"The trainer makes the answers after step {step}, and while the engine cannot: {why}",
                level="warn",
                data={"code": "engine_unavailable"},
            )

    def _save(self, model: PeftModel, step: int) -> str:
        """Write the adapter to the job folder, and remove the one before. Returns its hash."""
        if self._saved is not None and self._saved[0] == step:
            return self._saved[1]
        unfinished = self._folder.unfinished(self._folder.policies)
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(
            unfinished, safe_serialization=True, selected_adapters=["default"], save_embedding_layers=False
        )
        sha256 = adapter_sha256(unfinished)
        before = list(self._folder.policies.glob("*"))
        final = self._folder.policy(sha256)
        if final not in before:
            final.parent.mkdir(exist_ok=True)
            unfinished.rename(final)  # not synced: what is not whole has another hash, and is not loaded
        for one in before:
            if one != final:
                shutil.rmtree(one, ignore_errors=True)
        self._saved = (step, sha256)
        return sha256

    def _seed_of(self, step: int, mode: str, place: int, prompt: Sequence[int]) -> int:
        """What a repeated step has again: of an evaluation, which has many batches, the prompt tells them apart."""
        text = json.dumps([self._seed, step, mode, place, list(prompt)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    async def _ask(self, bodies: Sequence[dict[str, Any]], sha256: str, patience: float) -> Sampled:
        asking = _Asking(self._sampling, self._job, sha256, patience)
        answering = asyncio.create_task(asking.run(bodies))
        try:
            while not (await asyncio.wait({answering}, timeout=_BEAT))[0]:
                try:
                    self._go_on()
                except self._stopped:
                    if asking.silent_for > _STOPS_AFTER:
                        raise
            return await answering
        finally:
            answering.cancel()
            await asyncio.wait({answering})


class _Asking:
    """The requests of a step."""

    def __init__(self, sampling: EngineSampling, job: str, sha256: str, patience: float) -> None:
        self._sampling = sampling
        self._asked = {
            "job": job,
            "sha256": sha256,
            "base_fingerprint": sampling.base_fingerprint,
            "turn_within": max(patience, _LEAST_TURN),
        }
        self._patience = patience
        self._answered_at = time.monotonic()

    @property
    def silent_for(self) -> float:
        """Seconds since the last answer."""
        return time.monotonic() - self._answered_at

    async def run(self, bodies: Sequence[dict[str, Any]]) -> Sampled:
        connector = aiohttp.UnixConnector(path=self._sampling.socket, limit=AT_ONCE)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)  # the gateway has limits of its own
        headers = {PROJECT_HEADER: self._sampling.project}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._answer(session, body)) for body in bodies]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        answers = [task.result() for task in tasks]
        return Sampled([ids for ids, _ in answers], [logprobs for _, logprobs in answers])

    async def _answer(
        self, session: aiohttp.ClientSession, body: dict[str, Any]
    ) -> tuple[list[int], list[float | None]]:
        wait = _FIRST_WAIT
        while True:
            try:
                found = await self._post(session, body)
                self._answered_at = time.monotonic()
                return found
            except Unanswered as fault:
                if self.silent_for >= self._patience:
                    raise Unavailable(str(fault)) from fault
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _post(
        self, session: aiohttp.ClientSession, body: dict[str, Any]
    ) -> tuple[list[int], list[float | None]]:
        """Raises Unanswered and Refused."""
        try:
            async with session.post("http://gateway/sample", json={**self._asked, "body": body}) as response:
                text = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(f"{type(error).__name__} {error}") from error
        if response.status != 200:
            raise not_answered(response.status, text)
        try:
            choice = json.loads(text)["choices"][0]
            ids, logprobs = list(choice["token_ids"]), list(choice["logprobs"]["token_logprobs"])
        except (ValueError, LookupError, TypeError) as error:
            raise Refused("it tells neither tokens nor their log-probabilities", None) from error
        if not ids or len(ids) != len(logprobs):
            raise Refused(f"it tells {len(ids)} tokens and {len(logprobs)} log-probabilities", None)
        return ids, logprobs
