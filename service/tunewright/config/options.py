"""The options of `tunewright serve`, in one group for each concern, with their defaults and checks; those of the api
are in `server.py`."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from tunewright.config.group import Group, check_hosts, split_commas
from tunewright.sizes import Size

EMBEDDED_BASE = "tunewright-tiny"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM can be started with."""
_SLOTS_ON_CPU = 4
_BASE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,127}$")


def embedded_base_path() -> Path:
    """The folder of the base model that ships with the package."""
    return Path(__file__).parents[1] / "embedded" / "model"


@dataclass(frozen=True)
class Base:
    """A named base model: the only things that are trained or served."""

    name: str
    source: str

    @property
    def path(self) -> Path | None:
        """The folder, or None where the source is a hub id."""
        path = Path(self.source).expanduser()
        return path.resolve() if path.exists() else None


class ModelOptions(Group):
    """The models that may be served and trained, and the adapters that may be registered."""

    base: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A base model, NAME=PATH_OR_HUB_ID or just PATH_OR_HUB_ID; repeat for more (comma-separated"
        f" in the variable). Default: the embedded base, {EMBEDDED_BASE}.",
    )
    deployable: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A model, NAME=PATH_OR_HUB_ID, that may be deployed while the service runs; repeat for more"
        " (comma-separated in the variable). It is not served before that. Default: only models that were made here.",
    )
    trust_remote_code: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Names of bases and deployables whose own Python code may run. Never by default.",
    )
    adapter_root: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A folder of this server from which adapters may be registered; repeat for more (comma-separated in"
        " the variable). Default: none.",
    )
    max_adapter_size: Size = Field(
        "4GiB", validate_default=True, description="Largest weights of an adapter that is registered."
    )
    max_hub_cache_size: Size = Field(
        "16GiB",
        validate_default=True,
        description="Size of the cache of adapters from a hub; those used longest ago make room.",
    )

    _split_commas = field_validator("base", "deployable", "trust_remote_code", "adapter_root", mode="before")(
        split_commas
    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for entry in self.deployable:
            if "=" not in entry:
                raise ValueError(f"{entry!r} names no model that may be deployed: write NAME=PATH_OR_HUB_ID")
        names = [base.name for base in (*self.bases, *self.deployables)]
        for name in names:
            if not _BASE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a base: letters, digits and . _ - / only")
            if names.count(name) > 1:
                raise ValueError(
                    f"two of --base and --deployable are named {name!r}: give each its own name, NAME=PATH"
                )
        unknown = sorted(set(self.trust_remote_code) - set(names))
        if unknown:
            raise ValueError(
                f"trust_remote_code names {unknown[0]!r}, which is not a base ({', '.join(names)})"
            )
        return self

    @property
    def bases(self) -> list[Base]:
        """The named bases; a source without a name is named by its last path component."""
        if not self.base:
            return [Base(name=EMBEDDED_BASE, source=str(embedded_base_path()))]
        bases = []
        for entry in self.base:
            name, equals, source = entry.partition("=")
            if not equals:
                source = entry
                name = Path(entry.rstrip("/")).name if Path(entry).expanduser().exists() else entry
            bases.append(Base(name=name, source=source))
        return bases

    @property
    def deployables(self) -> list[Base]:
        """Models that may be deployed, beside those that were made here."""
        parted = (entry.partition("=") for entry in self.deployable)
        return [Base(name=name, source=source) for name, _, source in parted]


class ServingOptions(Group):
    """How vLLM is started, and how adapters get into it and out of it."""

    max_lora_rank: int = Field(
        64, description="Largest adapter rank the engine serves; jobs above it are refused when submitted."
    )
    max_loras: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        "auto",
        description="Adapters that can be mixed in one batch of the engine. auto: on a GPU 4 to 64, as many as its"
        " memory has room for; on the CPU 4.",
    )
    max_cpu_loras: int = Field(
        64, ge=1, description="Adapters the engine keeps in host memory, ready to be used."
    )
    load_on_demand: bool = Field(
        True, description="Load an adapter when the first request asks for it; else only when told to."
    )
    drain_timeout: float = Field(
        30.0,
        ge=0,
        description="Seconds that an unload waits for running requests; after that it goes on in the background.",
    )
    kv_cache_memory: Size = Field(
        "512MiB",
        validate_default=True,
        description="KV cache of each engine on the CPU, e.g. 512MiB or 8GiB; a deployment may ask for another.",
    )
    gpu_memory_utilization: float = Field(
        0.45,
        gt=0,
        le=0.98,
        description="Share of a GPU's memory for serving, over all bases on it; the rest is for training, and for"
        " deployments.",
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs over which each base is split, for one that is larger than a GPU; a deployment may ask for"
        " another number.",
    )
    tool_call_parser: str | None = Field(
        None,
        description="vLLM's tool call parser for the bases. Default: what a base's template and tokens call for.",
    )
    vllm_arg: str = Field(
        "",
        description="An argument handed to vLLM as it is, e.g. --vllm-arg=--max-model-len=8192; repeat for"
        " more (separated by spaces in the variable, quoted as in a shell).",
    )
    media_domain: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="A host from which engines may fetch the images, audio and video that a request names by URL;"
        " repeat for more (comma-separated in the variable). Default: none.",
    )
    engine_start_timeout: float = Field(
        900.0, gt=0, description="Seconds an engine may take to start before it is restarted."
    )

    _split_domains = field_validator("media_domain", mode="before")(split_commas)
    _check_domains = field_validator("media_domain")(check_hosts)

    @field_validator("vllm_arg")
    @classmethod
    def _check_words(cls, value: str) -> str:
        for word in shlex.split(value):
            if word.startswith("-") and len(several := word.partition("=")[0].split()) > 1:
                apart = " ".join(f"--vllm-arg={one}" for one in several)
                raise ValueError(f"each is one argument of vLLM: write {apart}")
        return value

    @field_validator("max_lora_rank")
    @classmethod
    def _check_rank(cls, value: int) -> int:
        if value not in RANKS:
            raise ValueError(f"vLLM serves maximum ranks of {', '.join(map(str, RANKS))}; got {value}")
        return value

    def slots(self, *, on_gpu: bool) -> int | None:
        """Adapters in one batch; None where they are chosen when the engine starts."""
        if self.max_loras != "auto":
            return self.max_loras
        return None if on_gpu else _SLOTS_ON_CPU

    @property
    def vllm_args(self) -> list[str]:
        return shlex.split(self.vllm_arg)


class JobOptions(Group):
    """The queue of jobs, and when a job's process is taken to hang."""

    step_timeout: float = Field(
        1800.0,
        gt=0,
        description="Seconds without a sign of progress after which a trainer is taken to hang and is restarted.",
    )
    fork_server_idle: float = Field(
        900.0,
        ge=0,
        description="Seconds without a job or check after which the process ends that has imported torch, transformers,"
        " peft and TRL for the next ones, and takes 500 MB; 0: each job and check imports them itself, and each engine"
        " on the CPU vLLM.",
    )
    cpu_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Most processes that a job may ask for with tuning.gpus on a machine without GPUs, where they share"
        " the CPU: to try out what several GPUs do. They make no job faster.",
    )
    max_queued_jobs: int = Field(
        1000, ge=1, description="Jobs that may wait, queued, paused or validating; more are refused with 429."
    )
    python_graders: Literal["off", "sandboxed", "unconfined"] = Field(
        "off",
        description="Whether graders may be programs, which whoever can send requests writes. sandboxed: without files,"
        " network and other processes, where the kernel can do that; unconfined: with limits of time and memory only.",
    )
    eval_data: Path | None = Field(
        None,
        description="A folder with the questions of MMLU, C-Eval, GSM8K and HumanEval, by which evaluations measure"
        " what a model has forgotten; nothing is downloaded. Default: none.",
    )
    wandb_api_key: SecretStr | None = Field(
        None,
        description="Key of Weights & Biases, with which jobs that name a project are reported there. Better set as"
        " TUNEWRIGHT_WANDB_API_KEY. Default: none is.",
    )
    wandb_base_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of a server of Weights & Biases of your own. Default: https://api.wandb.ai.",
    )
    price_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Price of an hour of one device, which plans and finished jobs then tell. Default: none is told.",
    )
    currency: str = Field(
        "USD", pattern=r"^[A-Za-z]{1,8}$", description="The currency of that price, such as EUR."
    )
    device_watts: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Watts of one device in use, for the energy of plans and finished jobs. Default: those of the card"
        " by its datasheet, where it is known.",
    )


class ParityOptions(Group):
    """The check of an adapter before it is served."""

    parity: Literal["on", "off"] = Field(
        "on",
        description="Whether an adapter is served only after what it changes in the engine was found to be what it"
        " changes in transformers and peft.",
    )
    parity_rows: int = Field(8, ge=1, le=256, description="Rows on which that is measured.")

    @property
    def is_on(self) -> bool:
        return self.parity == "on"


class ExportOptions(Group):
    """How far an exported model may be from what it was made of."""

    max_merged_kl: float | None = Field(
        None,
        gt=0,
        description="Nats for each token that a merged model may diverge (KL) from its adapter and still be published."
        " Default: five times what computing in bfloat16 makes of the adapter anyway, measured in the same run.",
    )
    max_awq_kl: float = Field(
        0.2,
        gt=0,
        description="The same, of an AWQ model from what was quantized.",
    )


class RetentionOptions(Group):
    """How long files, checkpoints, artifacts and job folders are kept, and how much of them."""

    keep_files_days: float | None = Field(
        None,
        gt=0,
        description="Days after which uploads and result files are removed that no unfinished job needs."
        " Default: never.",
    )
    max_files_size: Size | None = Field(
        None,
        description="Size of all files above which the oldest are removed that no unfinished job needs."
        " Default: none.",
    )
    keep_checkpoints_days: float | None = Field(
        None,
        gt=0,
        description="Days after which epochs' checkpoints are removed that are not loaded and that no unfinished job"
        " starts from. Default: never.",
    )
    max_checkpoints_size: Size | None = Field(
        None,
        description="Size of all checkpoints above which the oldest such ones are removed. Default: none.",
    )
    keep_unused_artifacts_days: float = Field(
        1.0,
        gt=0,
        description="Days after which artifacts are removed that no model has and no unfinished job starts from.",
    )
    max_unused_artifacts_size: Size | None = Field(
        None, description="Size of all such artifacts above which the oldest are removed. Default: none."
    )
    max_token_cache_size: Size = Field(
        "16GiB",
        validate_default=True,
        description="Size of the cache of tokenized files above which those used longest ago are removed that no"
        " running job uses.",
    )
    keep_job_folders_days: float | None = Field(
        None,
        gt=0,
        description="Days after the end of a job in which its folder (the trainer's log, spec.json, events.jsonl) is"
        " kept; the job, its events and its products stay listed. Default: for ever.",
    )
    keep_events_days: float | None = Field(
        None,
        gt=0,
        description="Days after the end of a job in which its events are kept; the job stays listed. Default: for"
        " ever.",
    )
    keep_jobs_days: float | None = Field(
        None,
        gt=0,
        description="Days after its end in which a job is kept, with its events and its folder. One whose products are"
        " listed stays. Default: for ever.",
    )
    keep_deliveries_days: float = Field(
        30.0,
        gt=0,
        description="Days after its end in which the delivery of a webhook is kept, dead letters too.",
    )
    keep_audit_days: float | None = Field(
        None,
        ge=1,
        description="Delete what the audit log tells (GET /v1/organization/audit_logs) so many days later. Default:"
        " never.",
    )


class ProcessOptions(Group):
    """The service's own processes."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to serve and train. auto: NVIDIA GPUs if there are any, else the CPU."
    )
    hang_timeout: float = Field(
        120.0,
        ge=5,
        description="Seconds without a sign of life after which the api, the scheduler or the engine worker is taken to"
        " hang and is started again.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much the service logs."
    )
