"""Finds the devices of this machine. Needs no torch: the driver's list is enough."""

from __future__ import annotations

import logging

from tunewright.config import ProcessOptions, visible_gpus
from tunewright.engine.gpus import NoDriver, gpu_count

log = logging.getLogger("tunewright.engine")


def find_devices(processes: ProcessOptions) -> list[str]:
    """`["cpu"]`, or `["cuda:0", ...]`. Raises RuntimeError where GPUs are required and there are none."""
    if processes.device == "cpu":
        return ["cpu"]
    try:
        found, why = [str(index) for index in range(gpu_count())], "the driver lists none"
    except NoDriver as error:
        found, why = [], f"the driver cannot be used: {error}"
        log.debug("no NVIDIA GPU: %s", why)
    allowed = visible_gpus()
    if found and allowed is not None:
        found, why = allowed, "CUDA_VISIBLE_DEVICES allows none"
    if not found and processes.device == "cuda":
        raise RuntimeError(f"--device cuda: no NVIDIA GPU was found ({why})")
    return [f"cuda:{index}" for index in found] or ["cpu"]
