"""The slots with which an engine on a GPU starts, and what a smaller rank would gain; both are told in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from tunewright.config import RANKS
from tunewright.engine.command import EngineOptions
from tunewright.engine.slots import with_slots
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.plan.defaults import Resolved
from tunewright.scheduler.served import Served
from tunewright.store.records import Job
from tunewright.store.states import JobState
from tunewright.store.store import Store

log = logging.getLogger("tunewright.scheduler")

_LEAST_RANK = 16
_AWAITED = (JobState.VALIDATING_FILES, JobState.QUEUED, JobState.RUNNING, JobState.PAUSING, JobState.PAUSED)


def options_to_start(served: Served, vllm_args: Sequence[str], store: Store) -> EngineOptions:
    """The options of the engine's next start, with its slots."""
    options, why = with_slots(
        served.options, served.cost, vllm_args, is_deployment=served.deployment is not None
    )
    if why is None:
        return options
    log.info("engine %s has %s", served.name, why)
    if not served.is_rank_told and (smaller := smaller_rank(store, served.name, options.max_lora_rank)):
        served.is_rank_told = True
        sizes = ""
        if served.cost is not None:
            slots = [
                served.cost.slot(replace(options, max_lora_rank=r)) for r in (smaller, options.max_lora_rank)
            ]
            sizes = f" A slot would take {slots[0] / 1e6:.0f} MB instead of {slots[1] / 1e6:.0f} MB."
        log.info(
            "engine %s: its slots are for rank %d, and no adapter or unfinished job on it has a rank above %d: adapters"
            " answer faster with a --max-lora-rank of %d (see docs/how-to/run-on-a-gpu.md).%s",
            served.name, options.max_lora_rank, smaller, smaller, sizes,
        )  # fmt: skip
    return options


def smaller_rank(store: Store, base: str, limit: int) -> int | None:
    """The smallest of vLLM's ranks, from 16 on, that holds the base's adapters and those of its unfinished jobs, where
    it is below `limit`. None where it has none, or a job whose rank is not known yet."""
    jobs = [_rank(job) for job in store.jobs.in_states(*_AWAITED) if job.base == base]
    largest = store.models.largest_rank(base)
    if any(rank is None for rank in jobs) or (largest is None and not any(jobs)):
        return None
    needed = max([largest or 0, *(rank or 0 for rank in jobs)])
    smallest = next((rank for rank in RANKS if rank >= max(needed, _LEAST_RANK)), limit)
    return smallest if smallest < limit else None


def _rank(job: Job) -> int | None:
    """The rank of the adapter that a job makes, 0 for none, None where it is not known yet."""
    if not isinstance(job.request, FineTuningRequest):
        return 0
    tuning = job.resolved if isinstance(job.resolved, Resolved) else job.request.tuning
    if tuning.type == "full":
        return 0
    return tuning.rank if isinstance(tuning.rank, int) else None
