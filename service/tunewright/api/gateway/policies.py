"""Answers of the policies of jobs that learn from what their own model answers (`store.policies`).

A request says which weights have to answer, by their hash. Where the job's policy has others, these take their place,
and the engine loads them as it loads any adapter. Requests go below live traffic, with the places that batches have.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from tunewright.api.gateway.below import BelowLive
from tunewright.api.gateway.ledger import Payer
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound
from tunewright.store.policies import PolicyStore, policy_name

_PATH = "/v1/completions"
_TURN_WITHIN = 30.0
"""Most seconds after which a request that has no turn is answered with 503, so that who asks can do something else."""


class Policies:
    """Used from the event loop of the gateway."""

    def __init__(self, below: BelowLive, store: PolicyStore) -> None:
        self._below = below
        self._store = store
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of jobs: the requests of a step come at once, and the first one changes the policy."""

    async def sample(self, asked: dict[str, Any], size: int, payer: Payer) -> bytes:
        """The answer to `{"job", "sha256", "base_fingerprint", "turn_within", "body"}`, which has so many bytes: to
        `body`, a completion's, by these weights on this base. Raises TunewrightError, LookupError and ValueError."""
        job, sha256 = str(asked["job"]), str(asked["sha256"])
        name = policy_name(job)
        await self._ensure(name, job, sha256, str(asked["base_fingerprint"]))
        body = {**asked["body"], "model": name}
        patience = min(float(asked["turn_within"]), _TURN_WITHIN)
        try:
            return await self._below.send(
                name, _PATH, body, size, payer=payer, project=None, content=sha256, patience=patience
            )
        except NotFound as error:  # another adapter took its place meanwhile
            raise EngineUnavailable("The engine had to make room for others: try again.") from error

    async def _ensure(self, name: str, job: str, sha256: str, base_fingerprint: str) -> None:
        lock = self._locks.get(job)
        if lock is None:
            lock = self._locks[job] = asyncio.Lock()
        async with lock:
            policy = await asyncio.to_thread(self._store.get, name)
            if policy is not None and policy.sha256 == sha256:
                return
            if not await asyncio.to_thread(self._store.put, job, sha256, base_fingerprint):
                raise InvalidRequest(f"{job} does not run.", param="job", code="job_not_running")
