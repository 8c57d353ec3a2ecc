"""The smallest change of options that makes a run fit a machine. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from tunewright.plan.data_shape import DataShape
from tunewright.plan.defaults import Resolved, split_batch
from tunewright.plan.fitting import fits, run_of, with_less_memory
from tunewright.plan.machine import Machine
from tunewright.plan.memory import estimate
from tunewright.plan.methods import METHODS
from tunewright.plan.shape import ModelShape

TYPES = ("full", "lora", "qlora")
"""Each needs less memory than the one before."""
_SHORTEST, _SMALLEST_RANK = 256, 8
_SHORTEST_ANSWER = 64


class Step(BaseModel):
    """The smallest change that makes a run fit."""

    model_config = ConfigDict(frozen=True)

    change: str
    options: dict[str, str | int | bool]
    """For `tuning`."""
    total: int
    """Bytes after the change."""


def smallest_change(shape: ModelShape, resolved: Resolved, data: DataShape, machine: Machine) -> Step | None:
    """The first change that makes the run fit, in the order of harm; each keeps those before it."""
    for what, options, changed in _changes(resolved, data):
        total = estimate(shape, run_of(changed, data, machine.device))
        if fits(total, machine):
            return Step(change=what, options=options, total=total.total)
    return None


def _changes(
    resolved: Resolved, data: DataShape
) -> Iterator[tuple[str, dict[str, str | int | bool], Resolved]]:
    """Checkpointing, rows at a time, length, rank and method, each on top of those before it."""
    told: list[str] = []
    options: dict[str, str | int | bool] = {}
    now = resolved

    def changed(
        what: str, asked: dict[str, str | int | bool], **update: object
    ) -> tuple[str, dict[str, str | int | bool], Resolved]:
        nonlocal now
        now = now.model_copy(update=update)
        options.update(asked)
        return ", ".join([*told, what]), dict(options), now

    asked: dict[str, str | int | bool]
    while (smaller := with_less_memory(now)) is not None:
        if smaller.per_device_batch_size == now.per_device_batch_size:
            what, asked = "gradient checkpointing on", {"gradient_checkpointing": True}
            yield changed(what, asked, gradient_checkpointing=True)
            told.append(what)
            continue
        at_a_time = smaller.per_device_batch_size
        yield changed(
            f"{at_a_time} rows at a time (the effective batch stays {now.batch_size})",
            {"per_device_batch_size": at_a_time},
            per_device_batch_size=at_a_time,
            gradient_accumulation_steps=smaller.gradient_accumulation_steps,
        )
    if now.per_device_batch_size != resolved.per_device_batch_size:
        told.append(_at_a_time(now.per_device_batch_size))
    shorter: str | None = None
    for shorter, name, value in _shorter(now, data):
        cut = f" (cuts {data.cut_at(value)} examples)" if name == "max_length" else ""
        yield changed(f"{shorter}{cut}", {name: value}, **{name: value})
    if shorter is not None:
        told.append(shorter)
    if now.rank is not None and now.rank > _SMALLEST_RANK:
        yield changed(
            f"rank {_SMALLEST_RANK}",
            {"rank": _SMALLEST_RANK},
            rank=_SMALLEST_RANK,
            alpha=2.0 * _SMALLEST_RANK,
        )
        told.append(f"rank {_SMALLEST_RANK}")
    # Another method changes what is trained, so the options before it are those of the request again.
    for method in TYPES[TYPES.index(resolved.type) + 1 :]:
        options.clear()
        told.clear()
        now = resolved
        if not now.gradient_checkpointing:
            now = now.model_copy(update={"gradient_checkpointing": True})
            options["gradient_checkpointing"] = True
        least = METHODS[now.method].least_at_a_time
        per_device, steps = split_batch(now.device_batch_size, 1, least)
        rank = resolved.rank or _SMALLEST_RANK
        as_method: dict[str, object] = {
            "type": method, "rank": rank, "target_modules": resolved.target_modules or "all-linear",
        }  # fmt: skip
        yield changed(f"type {method}", {"type": method}, **as_method)
        told.append(f"type {method}")
        asked = {"per_device_batch_size": per_device}
        at_once = _at_a_time(per_device)
        yield changed(at_once, asked, per_device_batch_size=per_device, gradient_accumulation_steps=steps)
        told.append(at_once)
        for shorter, name, value in _shorter(now, data):
            yield changed(shorter, {name: value}, **{name: value})


def _at_a_time(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'} at a time"


def _shorter(resolved: Resolved, data: DataShape) -> Iterator[tuple[str, str, int]]:
    """(what, option, value): shorter examples or, where answers are made, shorter answers."""
    if resolved.max_completion_length is not None:
        name, length, least = "max_completion_length", resolved.max_completion_length, _SHORTEST_ANSWER
    else:
        length = min(resolved.max_length, data.longest or resolved.max_length)
        name, least = "max_length", _SHORTEST
    while length > least:
        length = max(least, length // 2)
        yield f"{name} {length}", name, length
