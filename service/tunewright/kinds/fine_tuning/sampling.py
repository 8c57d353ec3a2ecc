"""Decides what makes the answers of a job of the method reinforcement: the engine that serves its base, or its own
process."""

from __future__ import annotations

from tunewright.engine.command import inner_socket
from tunewright.kinds.fine_tuning.models import FineTuningRequest
from tunewright.kinds.kind import JobRefused
from tunewright.plan.defaults import Resolved, why_not_engine_of
from tunewright.plan.sampling import why_not_this_engine
from tunewright.registry.bases import BaseInfo
from tunewright.registry.workspace import Workspace
from tunewright.store.records import Job
from tunewright.store.store import Store
from tunewright.trainer.spec import EngineSampling

WAITED_FOR = 1800.0
"""Seconds without an answer after which a job that may have none but the engine's fails. Others wait for a minute."""


def with_sampling(store: Store, base: str, resolved: Resolved, asked: str) -> tuple[Resolved, str]:
    """The options of a job with what makes its answers, and that for its events. `asked`: `tuning.sampling`. Raises
    JobRefused."""
    if resolved.sampling is None:
        return resolved, ""
    if asked == "trainer":
        return resolved, ". The trainer makes the answers, as was asked"
    why = why_not_engine_of(resolved) or _why_not_here(store, base, resolved)
    if why is None and resolved.sampling == "trainer":
        why = "it is faster than the engine on the CPU"
    if why is None:
        return resolved, ". The engine makes the answers"
    if asked == "engine":
        raise JobRefused(
            "invalid_tuning",
            f"tuning.sampling engine is not possible here: {why}. Leave it out",
            "tuning.sampling",
        )
    by_trainer = resolved.model_copy(update={"sampling": "trainer"})
    return by_trainer, f". The trainer makes the answers, since {why}"


def engine_sampling(
    workspace: Workspace, job: Job, resolved: Resolved, base: BaseInfo
) -> EngineSampling | None:
    """What the job's process needs to ask the engine; None where it makes the answers itself."""
    if resolved.sampling != "engine":
        return None
    request = job.request
    assert isinstance(request, FineTuningRequest)
    is_required = request.tuning.sampling == "engine"
    patience = {"patience": WAITED_FOR} if is_required else {}
    return EngineSampling(
        socket=str(inner_socket(workspace.path)),
        project=job.project,
        base_fingerprint=base.fingerprint,
        is_required=is_required,
        **patience,
    )


def _why_not_here(store: Store, base: str, resolved: Resolved) -> str | None:
    engine = store.engines.get(base)
    if engine is None:
        return f"{base} is not served"
    info = engine.info
    if info is None:
        return None  # it has not been started yet: its options are those that jobs are made for
    return why_not_this_engine(
        enable_lora=info.enable_lora,
        max_adapters=info.max_adapters,
        max_rank=info.max_lora_rank,
        rank=resolved.rank,
    )
