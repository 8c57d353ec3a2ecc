"""Deployments, and the options of their engines."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator

from tunewright.sizes import Size
from tunewright.store.records import Deployment, Engine
from tunewright.store.states import EngineState
from tunewright.wire import Body, Wire

_State = Literal["starting", "ready", "backoff", "failed", "draining"]
_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"maximum": 2.0**50, "minimum": 2.0**20, "type": "integer"},
        {"maxLength": 32, "type": "string"},
        {"type": "null"},
    ]
}
Whole = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]


class EngineBody(Body):
    """The options of its vLLM. The service chooses those that are left out, and shows them as `options`."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d{1,3})$")] = Field(
        "auto", description="auto: the GPU with the most memory left, or the CPU where there is none."
    )
    gpu_memory_utilization: Annotated[float, Field(strict=True, gt=0, le=0.95)] | None = Field(
        None,
        description="Share of the GPU's memory. All engines on one have 0.95 at most. Left out: what is left, and 0.3 "
        "at most.",
    )
    tensor_parallel_size: Annotated[int, Field(strict=True, ge=1, le=64)] | None = Field(
        None,
        description="GPUs over which the model is split. Left out: --tensor-parallel-size where the device is auto, "
        "and 1 where it is named.",
    )
    kv_cache_memory: Annotated[Size | None, WithJsonSchema(_SIZE_SCHEMA)] = Field(
        None,
        description="On the CPU: size of the KV cache, in bytes or like 512MiB. Left out: --kv-cache-memory.",
    )
    max_model_len: Whole | None = Field(
        None, description="Longest prompt and answer together, in tokens. Left out: the model's context."
    )
    max_num_seqs: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None = Field(
        None, description="Requests in one batch."
    )
    enable_lora: bool = Field(True, strict=True, description="Whether adapters can be loaded on it.")
    max_loras: Annotated[int, Field(strict=True, ge=1, le=256)] | None = Field(
        None,
        description="Adapters in one batch. Left out: --max-loras, or as many as the GPU's memory has room for.",
    )
    max_cpu_loras: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = Field(
        None, description="Adapters that it keeps in host memory. Left out: --max-cpu-loras."
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] | None = Field(
        None, description="Largest rank of an adapter. Left out: --max-lora-rank."
    )
    enforce_eager: bool = Field(
        False,
        strict=True,
        description="No CUDA graphs and no compilation: it starts sooner. Always on the CPU.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"

    @field_validator("kv_cache_memory")
    @classmethod
    def _check_size(cls, value: int | None) -> int | None:
        if value is not None and not 2**20 <= value <= 2**50:
            raise ValueError("between 1MiB and 1024TiB")
        return value

    def asked(self) -> dict[str, Any]:
        """The options that the request sets to other than their defaults; equal for requests that mean the same."""
        return self.model_dump(exclude_defaults=True)


class CreateDeployment(Body):
    model: str = Field(
        min_length=1,
        max_length=512,
        description="A full model of GET /v1/models, or one named by --deployable.",
    )
    engine: EngineBody = EngineBody()


class EngineOptionsObject(Wire):
    """The options with which its vLLM runs; null where vLLM chooses itself."""

    device: str
    other_devices: list[str] = Field(
        [], description="GPUs beside `device` that hold a part of each layer (tensor parallelism)."
    )
    gpu_memory_utilization: float | None = Field(description="Null on the CPU.")
    kv_cache_memory: int | None = Field(
        description="Bytes; null on a GPU, where the cache is part of the share."
    )
    enable_lora: bool
    max_loras: int | None = Field(
        description="Adapters in one batch; null where they are chosen and it has not started yet."
    )
    specialize_active_lora: bool = Field(
        description="Whether vLLM has CUDA graphs for several numbers of active adapters; chosen at its start."
    )
    max_cpu_loras: int
    max_lora_rank: int
    max_model_len: int | None
    max_num_seqs: int | None
    enforce_eager: bool
    dtype: str
    weights_bytes: int | None = Field(description="Size of the model's files, where it is known.")


class HeldAdapter(Wire):
    model: str
    id: str
    state: Literal["loading", "loaded", "draining", "failed"]


class DeploymentObject(Wire):
    """A model that is served beside the bases, by an engine of its own."""

    id: str
    object: Literal["deployment"] = "deployment"
    model: str = Field(description="The name to use in requests.")
    state: _State = Field(
        description="backoff: it ended, and is started again. failed: it is started again only on request."
    )
    reason: str | None = Field(description="Why it is not ready: vLLM's own last error.")
    device: str
    engine: dict[str, Any] = Field(description="The options of the request.")
    options: EngineOptionsObject
    max_model_len: int | None = Field(description="Longest prompt and answer together, in tokens.")
    created_at: int
    started_at: int | None
    ready_at: int | None
    memory_bytes: int | None = Field(description="Resident memory of its processes.")
    device_memory_bytes: int | None = Field(
        description="GPU memory of its processes, where the driver reports it."
    )
    adapters: list[HeldAdapter] = Field(description="Adapters in the engine.")
    log_tail: list[str] | None = Field(None, description="Last lines of vLLM's log; null in lists.")
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(
        cls,
        deployment: Deployment,
        engine: Engine | None,
        *,
        memory: int | None,
        device_memory: int | None,
        adapters: list[HeldAdapter],
        log_tail: list[str] | None,
    ) -> DeploymentObject:
        """`engine` is None where a restored database has not been served yet."""
        return cls(
            id=deployment.id,
            model=deployment.model,
            state=_state(deployment, engine),
            reason=engine.reason if engine else None,
            device=deployment.options["device"],
            engine=deployment.asked,
            options=EngineOptionsObject(**deployment.options | _chosen(engine)),
            max_model_len=engine.info.max_model_len if engine and engine.info else None,
            created_at=int(deployment.created_at),
            started_at=_whole(engine.started_at if engine else None),
            ready_at=_whole(engine.ready_at if engine else None),
            memory_bytes=memory,
            device_memory_bytes=device_memory,
            adapters=adapters,
            log_tail=log_tail,
        )


def _chosen(engine: Engine | None) -> dict[str, Any]:
    """The options that are chosen each time the engine starts."""
    info = engine.info if engine else None
    if info is None or info.max_loras is None:
        return {"specialize_active_lora": False}
    return {"max_loras": info.max_loras, "specialize_active_lora": info.specialize_active_lora}


def _state(deployment: Deployment, engine: Engine | None) -> _State:
    """The state in the API. A deployment without a process that did not fail is about to be started."""
    if deployment.is_draining:
        return "draining"
    if engine is None or engine.state is EngineState.STOPPED:
        return "starting"
    return cast(_State, engine.state.value)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
