"""What a job may ask of several GPUs, for jobs and plans."""

from __future__ import annotations

from collections.abc import Sequence

from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.plan.methods import METHODS, MethodName


def check_gpus(
    method: MethodName, tuning: Tuning, batch_size: int | str, devices: Sequence[str], cpu_processes: int
) -> None:
    """Raises UnsupportedFeature where the method trains on one GPU; InvalidRequest where there are not so many GPUs,
    where they cannot share a batch evenly, and where the method is not sharded. `batch_size` is the one that is asked
    for, or "auto"; `devices` are those of the machine."""
    gpus = 1 if tuning.gpus == "auto" else tuning.gpus
    if gpus > 1 and not METHODS[method].on_several_gpus:
        raise UnsupportedFeature(
            f"The method {method} trains on one GPU: leave tuning.gpus out.", param="tuning.gpus"
        )
    on_gpu = any(device != "cpu" for device in devices)
    most = len(devices) if on_gpu else cpu_processes
    if gpus > most:
        has = f"this machine has {most}" if on_gpu else "this machine has none"
        if not on_gpu and most > 1:
            has = f"this machine has none, and runs jobs in up to {most} processes on its CPU"
        advice = "" if on_gpu else ". To try out several processes on the CPU, start with --cpu-processes"
        raise InvalidRequest(
            f"tuning.gpus is {gpus}, and {has}{advice}.", param="tuning.gpus", code="not_enough_gpus"
        )
    check_shares(tuning, batch_size)


def check_shares(tuning: Tuning, batch_size: int | str) -> None:
    """What does not depend on a machine. Raises InvalidRequest."""
    gpus = 1 if tuning.gpus == "auto" else tuning.gpus
    if isinstance(batch_size, int) and batch_size % gpus:
        near = -(-batch_size // gpus) * gpus
        raise InvalidRequest(
            f"{gpus} GPUs cannot share a batch_size of {batch_size} evenly: use {near}.", param="tuning.gpus"
        )
    if tuning.sharding == "fsdp" and (gpus == 1 or tuning.type != "full"):
        raise InvalidRequest(
            "tuning.sharding fsdp is for type full on several gpus: adapters are small, and each GPU has the base.",
            param="tuning.sharding",
        )
    if tuning.torch_compile is True and tuning.type == "full" and gpus > 1 and tuning.sharding != "none":
        raise InvalidRequest(
            "Layers that GPUs share are not compiled: leave tuning.torch_compile out, or set tuning.sharding to none.",
            param="tuning.torch_compile",
        )
