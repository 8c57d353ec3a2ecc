"""The state of one engine in the scheduler, and where its model comes from."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tunewright.config import Base, ModelOptions
from tunewright.engine.command import EngineOptions
from tunewright.engine.leases import Unused
from tunewright.engine.slots import BaseCost
from tunewright.engine.trust import full_model, trusts_code
from tunewright.registry.artifacts import ArtifactStore
from tunewright.registry.bases import BaseInfo, BaseUnavailable
from tunewright.rows.control_tokens import of_template
from tunewright.scheduler.processes import ChildProcess
from tunewright.store.records import Deployment, EngineInfo
from tunewright.store.states import EngineState
from tunewright.store.store import Store
from tunewright.supervisor.process import ProcessId

BACKOFF_FIRST, BACKOFF_LAST = 2.0, 120.0
"""Seconds before an engine is started again: the first time, and at most."""


_TITLE = "VLLM::"


@dataclass(frozen=True)
class Source:
    """The model of an engine."""

    base: Base
    trust_remote_code: bool = False
    fingerprint: str | None = None
    """Hash of all files, for a model that was made here; None for others: it is computed from the folder."""


@dataclass
class Served:
    """One engine, a base's or a deployment's."""

    name: str
    options: EngineOptions
    source: Source | None
    """None for a deployment whose model has not been looked up."""
    deployment: Deployment | None = None
    socket: Path = field(default_factory=Path)
    info: BaseInfo | None = None
    cost: BaseCost | None = None
    """What its model takes of a GPU's memory, if that is known."""
    is_rank_told: bool = False
    """Whether the log has that slots of a smaller rank would do."""
    command: list[str] | None = None
    """What is to start it; None when it has."""
    process: ChildProcess | None = None
    parts: dict[ProcessId, str] | None = None
    """Titles of the processes that vLLM has started beside its server; None until it was seen to be healthy."""
    state: EngineState = EngineState.STOPPED
    start_at: float = 0.0
    started_at: float = 0.0
    backoff: float = BACKOFF_FIRST
    probe: Future[dict[str, Any] | None] | None = None
    probed_at: float = 0.0
    probes_failed: int = 0
    search: Future[str | None] | None = None
    """A search for the reason why a healthy engine cannot answer."""
    searched_at: float = 0.0
    faults: int = 0
    """Searches in a row that found one."""
    inspection: Future[BaseInfo] | None = None
    unused: Unused | None = None
    """Held while a drained engine ends, so that no request can be sent to it."""
    end_by: float | None = None
    """Time of the monotonic clock at which a drained engine is killed if it has not ended."""

    @property
    def is_at_rest(self) -> bool:
        """Whether it neither runs nor has to be started now."""
        waits = self.state is EngineState.FAILED or self.info is None
        return waits and self.process is None and self.inspection is None

    def lost_part(self) -> str | None:
        """The title of a process without which vLLM cannot go on, and which has ended. vLLM takes up to 10 s to notice
        that itself, and answers nothing meanwhile."""
        return next((title for part, title in (self.parts or {}).items() if not part.is_alive()), None)

    def start_now(self) -> None:
        """Start it in the next round, because a user asked for it."""
        self.state, self.start_at, self.backoff = EngineState.STOPPED, 0.0, BACKOFF_FIRST
        self.command = None  # of a start before it was placed anew

    def reset_backoff(self) -> None:
        self.backoff = BACKOFF_FIRST

    def back_off(self) -> float:
        """Postpone the next start. Returns the seconds until then, which grow each time."""
        wait, self.backoff = self.backoff, min(self.backoff * 2, BACKOFF_LAST)
        self.start_at = time.monotonic() + wait
        return wait


def row_of(served: Served, info: BaseInfo, options: EngineOptions, max_num_seqs: int | None) -> EngineInfo:
    """What the store says of an engine that starts with these options."""
    return EngineInfo(
        device=options.device,
        internal_name=info.internal_name,
        fingerprint=info.fingerprint,
        path=info.path,
        has_chat_template=info.chat_template is not None,
        max_model_len=options.max_model_len or info.context,
        vocab_size=info.vocab_size,
        quantization=info.quantization,
        enable_lora=options.enable_lora,
        max_lora_rank=options.max_lora_rank,
        max_loras=options.max_loras if options.enable_lora else None,
        specialize_active_lora=options.specialize_active_lora,
        max_adapters=options.max_adapters,
        trust_remote_code=served.source is not None and served.source.trust_remote_code,
        deployment=served.deployment.id if served.deployment else None,
        control_tokens=info.control_tokens,
        all_control_tokens=tuple(sorted({*info.control_tokens, *of_template(info.chat_template or "")})),
        max_num_seqs=max_num_seqs,
    )


def context_of(info: BaseInfo, answer: dict[str, Any]) -> int | None:
    """The context that the engine has for its model, by its list of models, in tokens."""
    listed = next((m.get("max_model_len") for m in answer["data"] if m["id"] == info.internal_name), None)
    return listed or info.context


def parts_of(server: int) -> dict[ProcessId, str]:
    """The processes that vLLM's server has started, its engine and its workers, with their titles."""
    found = {}
    try:
        for process in psutil.Process(server).children(recursive=True):
            with suppress(psutil.Error, ProcessLookupError):  # it has ended in between
                title = " ".join(process.cmdline())
                if title.startswith(_TITLE):
                    found[ProcessId.of(process.pid)] = title.strip()
    except psutil.Error:
        pass
    return found


def socket_name(name: str, deployment: Deployment | None) -> str:
    """The name of the engine's socket: the same after a restart of the scheduler, which then finds the engine again,
    and different for each deployment."""
    tag = f"{name}\0{deployment.id if deployment else ''}"
    return f"engine-{hashlib.sha256(tag.encode()).hexdigest()[:16]}.sock"


def source_of(models: ModelOptions, store: Store, artifacts: ArtifactStore, model: str) -> Source:
    """Where a deployed model's files are; fetches those of a tuned one. Raises BaseUnavailable where the model no
    longer exists, FileNotFoundError where its files do not, ArtifactsUnavailable and StorageFull."""
    trusted = trusts_code(models, store, model)
    tuned = full_model(store, model)
    if tuned is not None:
        return Source(Base(model, str(artifacts.fetch(tuned.sha256))), trusted, tuned.sha256)
    for base in models.deployables:
        if base.name == model:
            return Source(base, trusted)
    raise BaseUnavailable(
        f"there is no model {model}: start the service with --deployable {model}=PATH_OR_HUB_ID, or delete its "
        "deployment"
    )
