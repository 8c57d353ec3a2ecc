"""`tunewright deployments`: serve models beside the bases, see their state, take them down."""

from __future__ import annotations

from typing import Any

import click

from tunewright.cli.options import INTERRUPTED, Commands, Remote, examples, limit_option, on_service
from tunewright.cli.output import for_terminal, page_size, size, when
from tunewright_client import Deployment, DeploymentFailedError

_NAME = "ft:tunewright-tiny:pirate:Zk3mP0aY"
_RANKS = ("8", "16", "32", "64", "128", "256", "320", "512")


@click.group(cls=Commands)
def deployments() -> None:
    """Serve models beside the bases: full, merged and quantized ones."""


@deployments.command(
    epilog=examples(
        f"tunewright deployments create {_NAME} --wait",
        f"tunewright deployments create {_NAME} --device cuda:1 --gpu-memory-utilization 0.2",
        f"tunewright deployments create {_NAME} --kv-cache-memory 256MiB --max-model-len 4096",
    )
)
@click.argument("model")
@click.option("--device", help="auto, cpu, cuda:0, ...  [default: auto, the one with the most memory left]")
@click.option("--gpu-memory-utilization", type=float, metavar="SHARE", help="Share of the GPU's memory.")
@click.option("--tensor-parallel-size", type=int, metavar="N", help="GPUs over which the model is split.")
@click.option("--kv-cache-memory", metavar="SIZE", help="KV cache on the CPU, e.g. 256MiB.")
@click.option("--max-model-len", type=int, metavar="TOKENS", help="Longest prompt and answer together.")
@click.option("--max-num-seqs", type=int, metavar="N", help="Requests in one batch.")
@click.option("--lora/--no-lora", "enable_lora", default=None, help="Whether adapters can be loaded on it.")
@click.option("--max-loras", type=int, metavar="N", help="Adapters in one batch.")
@click.option("--max-cpu-loras", type=int, metavar="N", help="Adapters that it keeps in host memory.")
@click.option("--max-lora-rank", type=click.Choice(_RANKS), help="Largest rank of an adapter.")
@click.option(
    "--eager", "enforce_eager", is_flag=True, default=None, help="No CUDA graphs and no compilation."
)
@click.option(
    "--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), help="Data type of the weights."
)
@click.option("--wait", "--watch", "wait", is_flag=True, help="Return when it is ready, or has failed.")
@on_service
def create(remote: Remote, /, model: str, wait: bool, **options: Any) -> int:
    """Start an engine for MODEL beside the others.

    MODEL is a full model of `tunewright models list`, or one that the service was started with as --deployable.
    The service chooses the options that are not given. Ctrl-C ends the waiting, not the deployment.
    """
    engine = {name: value for name, value in options.items() if value is not None}
    if "max_lora_rank" in engine:
        engine["max_lora_rank"] = int(engine["max_lora_rank"])
    deployment = remote.client.deployments.create(model, engine)
    return _wait(remote, deployment) if wait else _print_deployment(remote, deployment)


@deployments.command(name="list", epilog=examples("tunewright deployments list"))
@limit_option(100)
@on_service
def list_deployments(remote: Remote, limit: int) -> None:
    """List the deployments, newest first."""
    remote.out.listing(
        remote.client.deployments.list(limit=page_size(limit)),
        limit,
        ["MODEL", "STATE", "DEVICE", "MEMORY", "ADAPTERS", "STARTED", "ID", "REASON"],
        lambda d: (
            d.model,
            d.state,
            d.device,
            size(_memory(d)),
            len(d.adapters),
            when(d.started_at),
            d.id,
            d.reason,
        ),
    )


@deployments.command(epilog=examples(f"tunewright deployments show {_NAME}"))
@click.argument("name", metavar="MODEL|ID")
@on_service
def show(remote: Remote, name: str) -> None:
    """Show one deployment: its state, memory, adapters, and the end of its log."""
    found = remote.client.deployments.retrieve(name)
    if remote.out.as_json:
        remote.out.json(found)
        return
    options = {key: value for key, value in found.options.items() if value is not None}
    remote.out.fields(
        [
            ("model", found.model),
            ("id", found.id),
            ("state", found.state),
            ("reason", found.reason),
            ("device", found.device),
            ("memory", size(found.memory_bytes)),
            ("GPU memory", size(found.device_memory_bytes)),
            ("context", found.max_model_len),
            ("created", when(found.created_at)),
            ("started", when(found.started_at)),
            ("ready", when(found.ready_at)),
            *[(key.replace("_", " "), value) for key, value in options.items() if key != "device"],
            *[(f"adapter {adapter.model}", adapter.state) for adapter in found.adapters],
            *[("log", line) for line in (found.log_tail or [])[-10:]],
        ]
    )


@deployments.command(epilog=examples(f"tunewright deployments logs {_NAME} --tail 100"))
@click.argument("name", metavar="MODEL|ID")
@click.option("--tail", type=click.IntRange(1), help="Only so many last lines.")
@on_service
def logs(remote: Remote, name: str, tail: int | None) -> None:
    """Print the log of its vLLM since its last start."""
    text = remote.client.deployments.logs(name, tail)
    if remote.out.as_json:
        remote.out.json({"id": name, "logs": text})
    else:
        click.echo(for_terminal(text), nl=False)


@deployments.command(epilog=examples(f"tunewright deployments restart {_NAME} --wait"))
@click.argument("name", metavar="MODEL|ID")
@click.option("--wait", "--watch", "wait", is_flag=True, help="Return when it is ready, or has failed.")
@on_service
def restart(remote: Remote, name: str, wait: bool) -> int:
    """Start a failed deployment again. One that runs is left as it is."""
    deployment = remote.client.deployments.restart(name)
    return _wait(remote, deployment) if wait else _print_deployment(remote, deployment)


@deployments.command(epilog=examples(f"tunewright deployments delete {_NAME}"))
@click.argument("names", metavar="MODEL|ID...", nargs=-1, required=True)
@click.option(
    "--force",
    is_flag=True,
    help="Also where aliases have it, or adapters on it: they are taken out of them.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="How long running requests may take to end.")
@on_service
def delete(remote: Remote, names: tuple[str, ...], force: bool, timeout: float | None) -> None:
    """Take deployments down, after their last requests. The models stay."""
    for name in names:
        deleted = remote.client.deployments.delete(name, force=force, timeout=timeout)
        if remote.out.as_json:
            remote.out.json(deleted)
        else:
            remote.out.line(f"{deleted.id} deleted")


def _wait(remote: Remote, deployment: Deployment) -> int:
    def show_change(now: Deployment) -> None:
        if not remote.out.as_json and now.state not in ("ready", "failed"):
            remote.out.note(f"{now.model} {now.state}" + (f": {now.reason}" if now.reason else ""))

    try:
        return _print_deployment(remote, deployment.wait(on_change=show_change))
    except DeploymentFailedError as error:
        if remote.out.as_json and isinstance(error.deployment, Deployment):
            remote.out.json(error.deployment)
        raise
    except KeyboardInterrupt:
        remote.out.note(
            f"\n{deployment.model} is still starting. See its state: tunewright deployments show {deployment.model}"
        )
        return INTERRUPTED


def _print_deployment(remote: Remote, deployment: Deployment) -> int:
    if remote.out.as_json:
        remote.out.json(deployment)
    else:
        reason = f": {deployment.reason}" if deployment.reason else ""
        remote.out.line(f"{deployment.model} {deployment.state}{reason}")
    return 1 if deployment.state == "failed" else 0


def _memory(deployment: Deployment) -> int | None:
    """GPU memory where it is on a GPU, else resident memory, in bytes."""
    return deployment.device_memory_bytes if deployment.device.startswith("cuda") else deployment.memory_bytes
