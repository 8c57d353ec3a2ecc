"""Families of the machine's GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.metrics_core import Metric

from tunewright.api.telemetry.families import gauge
from tunewright.engine.gpus import GpuState, NoDriver, gpu_states

_GPU = ("gpu", "uuid", "name")


def read_gpus() -> list[GpuState]:
    """The GPUs; none where there is no driver. Blocks for as long as the driver does."""
    try:
        return gpu_states()
    except NoDriver:
        return []


def of_gpus(gpus: Sequence[GpuState]) -> list[Metric]:
    def key(one: GpuState) -> tuple[str, str, str]:
        return str(one.index), one.uuid, one.name

    return [
        gauge("gpu_memory_bytes", "Memory of a GPU.", _GPU, ((key(one), one.memory_total) for one in gpus)),
        gauge(
            "gpu_memory_used_bytes",
            "Memory of a GPU that is taken, by whomever.",
            _GPU,
            ((key(one), one.memory_used) for one in gpus),
        ),
        gauge(
            "gpu_utilization_ratio",
            "Share of the last moments in which a GPU computed.",
            _GPU,
            ((key(one), one.utilization) for one in gpus),
        ),
        gauge("gpu_power_watts", "Power that a GPU draws.", _GPU, ((key(one), one.watts) for one in gpus)),
        gauge(
            "gpu_temperature_celsius",
            "Temperature of a GPU.",
            _GPU,
            ((key(one), one.celsius) for one in gpus),
        ),
    ]
