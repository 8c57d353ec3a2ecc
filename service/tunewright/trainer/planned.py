"""What a run is predicted to need, told before its first step and kept for its result."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from tunewright.jobs.folder import EventLog
from tunewright.plan.cost import Cost, cost_of
from tunewright.plan.data_shape import DataShape
from tunewright.plan.machine import card_of
from tunewright.plan.methods import METHODS
from tunewright.plan.prediction import Planned, predict
from tunewright.plan.shape import UnknownShape
from tunewright.plan.time import Measured
from tunewright.registry.model_shape import read_shape
from tunewright.registry.safetensors_file import BadTensors
from tunewright.trainer.spec import TrainingSpec

log = logging.getLogger("tunewright.trainer")


def planned_run(spec: TrainingSpec, data: DataShape, tokens: int, distinct: int) -> Planned | None:
    """The prediction for rows of which an epoch has the shape `data`, and all epochs so many tokens; `distinct`:
    those of all rows, each once. None where the model's files do not say enough, which is no reason not to train; and
    where answers are made while it trains."""
    if METHODS[spec.method].generates:
        return None
    try:
        shape = read_shape(Path(spec.base_path))
    except (OSError, ValueError, BadTensors, UnknownShape) as error:
        log.warning("no prediction of this run: %s", error)
        return None
    return predict(
        shape,
        spec.tuning,
        data,
        tokens=tokens,
        distinct=distinct,
        device=device_name(),
        earlier=spec.earlier,
        rates=spec.rates,
    )


def cost_of_measured(spec: TrainingSpec, measured: Measured | None) -> Cost | None:
    """Of the measured steps, their waits for rows and the reference's pass; None where no rate is known."""
    if measured is None:
        return None
    card = None if measured.device == "cpu" else card_of(measured.device)
    seconds = measured.seconds + (measured.waited or 0.0) + (measured.reference_seconds or 0.0)
    watts = card.watts if card else None
    return cost_of(seconds, spec.rates, watts, devices=spec.tuning.gpus)


def tell_planned(events: EventLog, planned: Planned | None) -> None:
    if planned is not None:
        events.message(f"Planned: {planned.describe()}", data={"planned": planned.model_dump()})


def device_name() -> str:
    """The name of the GPU, or `cpu`."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"
