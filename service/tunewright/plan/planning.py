"""The plan of a training run: memory of each method, the advised options with reasons, and what makes it fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from tunewright.plan.changes import TYPES as METHODS
from tunewright.plan.changes import Step, smallest_change
from tunewright.plan.compiling import compiled_where_it_pays
from tunewright.plan.cost import CostRange, Rates, cost_of_range
from tunewright.plan.data_shape import DataShape
from tunewright.plan.defaults import Resolved, resolve
from tunewright.plan.fitting import fits, padding_of, run_of, with_checkpointing, work_of
from tunewright.plan.machine import Machine
from tunewright.plan.memory import Run, estimate, trained_parameters
from tunewright.plan.methods import FEW_ROWS
from tunewright.plan.methods import METHODS as METHODS_OF_TRAINING
from tunewright.plan.mixing import FileShape, drawn, mixed_shape
from tunewright.plan.options import HyperparameterOptions, TuningOptions
from tunewright.plan.pitfalls import time_depends_on_answers, warnings
from tunewright.plan.reasons import MEMORY_MODEL, OF_METHOD, REASONS
from tunewright.plan.shape import ModelShape
from tunewright.plan.time import Earlier, TimeRange, predict_seconds

FLOW = (("full", 4.0), ("lora", 1.5), ("qlora", 0.5))
"""(method, memory of a device as a multiple of the 16-bit weights from which on it is advised)."""
_MOST_GPUS = 64


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class MethodPlan(_Part):
    """What a method needs with the options of the request."""

    type: str
    trainable_parameters: int
    memory: dict[str, int]
    """Bytes at the peak by component; `total` is their sum."""
    peak: str
    fits: bool
    seconds: TimeRange | None
    cost: CostRange | None = None
    """Of these seconds on one device; None where no rate is known."""


class Choice(_Part):
    """A hyperparameter's value, and why."""

    name: str
    value: str | float | int | bool | list[str] | None
    reason: str
    source: str


class Warning(_Part):
    code: str
    message: str


class PlannedRows(_Part):
    """What an epoch has of a file."""

    file: str
    weight: float
    rows: int
    """With a weight of 1 those of the file that are not held out."""
    examples: int
    tokens: int
    """After cutting at `max_length`."""


class Plan(_Part):
    """What a run will need. Memory in bytes of one device, times in seconds."""

    parameters: int
    machine: str
    devices: int
    available: int
    """Bytes of one device that the run may use, beside the engines that serve."""
    rows: int
    """Different rows of an epoch."""
    counted_rows: int | None
    """Rows that were tokenized for it, where that takes long for all: tokens, steps and times are estimated from these.
    None: all."""
    tokens: int
    """Of one epoch, after cutting at `max_length`."""
    files: list[PlannedRows]
    steps: int
    type: str
    """The method of `options`, `steps`, `fits` and `change`: the one asked for, or what auto is."""
    advised: str
    why: str
    methods: list[MethodPlan]
    options: list[Choice]
    fits: bool
    change: Step | None
    """None where it fits, or where no change makes it fit."""
    sharding: str | None
    warnings: list[Warning]


def make_plan(
    shape: ModelShape,
    data: DataShape,
    machine: Machine,
    *,
    tuning: TuningOptions,
    hyperparameters: HyperparameterOptions,
    max_rank: int,
    method: str = "supervised",
    has_flash_attention: bool | None = None,
    earlier: Sequence[Earlier] = (),
    files: Sequence[FileShape] = (),
    rates: Rates = Rates(),
) -> Plan:
    """The plan of a run with these options on this machine. `data` is an epoch of the `files`; `earlier`: finished jobs
    on this base here."""

    reasons: dict[str, str] = {}
    """Why `gradient_checkpointing` is what it is, by method."""

    def resolved_as(type: str) -> Resolved:
        resolved = resolve(
            tuning=tuning.model_copy(update={"type": type}),
            hyperparameters=hyperparameters,
            rows=data.rows,
            context=shape.context,
            max_rank=max_rank,
            device=machine.device,
            method=method,
        )
        if machine.device != "cpu" and tuning.gradient_checkpointing == "auto":
            resolved, reasons[type] = with_checkpointing(resolved, shape, machine)
        return resolved

    all_resolved = {type: resolved_as(type) for type in METHODS}
    advised, why = advise(shape, all_resolved, data, machine)
    # Adapters are loaded beside what is served; a full model needs a deployment, so that it has to be asked for.
    auto = "lora" if advised == "full" else advised
    chosen = all_resolved[auto if tuning.type == "auto" else tuning.type]
    run = run_of(chosen, data, machine.device)
    compiled = compiled_where_it_pays(shape, run, chosen, _tokens(chosen, data))
    it_fits = fits(estimate(shape, run), machine)
    change = None if it_fits else smallest_change(shape, chosen, data, machine)
    untold = time_depends_on_answers(chosen)
    can_shard = chosen.type == "full" and machine.count > 1
    found = warnings(
        chosen,
        shape,
        rows=data.rows,
        examples=round(sum(data.lengths.values())),
        cut=data.cut_at(chosen.max_length - (chosen.max_completion_length or 0)),
        trained=trained_parameters(shape, run),
        device=machine.device,
        has_flash_attention=has_flash_attention,
        padding=padding_of(chosen, data),
    )
    return Plan(
        parameters=shape.total,
        machine=machine.name,
        devices=machine.count,
        available=machine.free,
        rows=data.rows,
        counted_rows=data.counted,
        tokens=data.tokens_within(chosen.max_length),
        files=[_rows_of(one, chosen.max_length) for one in files],
        steps=chosen.steps(data.examples),
        type=chosen.type,
        advised=advised,
        why=why,
        methods=[_method(shape, one, data, machine, earlier, rates, files) for one in all_resolved.values()],
        options=_choices(
            chosen.model_copy(update={"torch_compile": compiled.compiled}),
            (tuning, hyperparameters),
            reasons.get(chosen.type),
        ),
        fits=it_fits,
        change=change,
        sharding=_sharding(shape, run, machine) if not it_fits and (change is None or can_shard) else None,
        warnings=[
            *(Warning(code=code, message=text) for code, text in found),
            *([Warning(code="time_not_predicted", message=untold)] if untold else []),
        ],
    )


def _rows_of(file: FileShape, max_length: int) -> PlannedRows:
    part = mixed_shape([(file.shape, file.weight)])
    return PlannedRows(
        file=file.name,
        weight=file.weight,
        rows=drawn(file.weight, file.shape.rows),
        examples=part.examples,
        tokens=part.tokens_within(max_length),
    )


def advise(
    shape: ModelShape, resolved: dict[str, Resolved], data: DataShape, machine: Machine
) -> tuple[str, str]:
    """(method, why): by a device's memory in multiples of the 16-bit weights, and then the first that fits."""
    share = machine.free / max(1, 2 * shape.total)
    by_flow = next((method for method, least in FLOW if share >= least), "qlora")
    few = ""
    if by_flow == "full" and data.rows < FEW_ROWS:
        by_flow, few = "lora", f", and with fewer than {FEW_ROWS} rows not full, which learns them by heart"
    order = METHODS[METHODS.index(by_flow) :]
    fitting = [m for m in order if fits(estimate(shape, run_of(resolved[m], data, machine.device)), machine)]
    method = fitting[0] if fitting else "qlora"
    why = f"one device has {share:.1f} times the memory of the 16-bit weights, for which {by_flow} is advised{few}"
    if not fitting:
        return method, f"{why}; no method fits with these options, and qlora needs the least"
    return (
        method,
        why if method == by_flow else f"{why}; {by_flow} does not fit with these options, {method} does",
    )


def _sharding(shape: ModelShape, run: Run, machine: Machine) -> str:
    """How many such devices hold it as type full, whose weights, gradients and optimizer they share."""
    numbers = range(2, _MOST_GPUS + 1)
    sharded = (replace(run, type="full", gpus=gpus, is_sharded=True) for gpus in numbers)
    enough = next((one.gpus for one in sharded if fits(estimate(shape, one), machine)), None)
    if enough is None:
        return "no number of such devices holds it: what each of them has beside its share does not fit"
    advice = f"this machine has {machine.count}"
    if enough <= machine.count:
        advice = f'set {{"type": "full", "gpus": {enough}}} in tuning'
    return f"{enough} such devices hold it as type full, sharded (FSDP): {advice}"


def _tokens(resolved: Resolved, data: DataShape) -> int:
    """Of all epochs."""
    return data.tokens_within(resolved.max_length) * resolved.n_epochs


def _method(
    shape: ModelShape,
    resolved: Resolved,
    data: DataShape,
    machine: Machine,
    earlier: Sequence[Earlier],
    rates: Rates,
    files: Sequence[FileShape],
) -> MethodPlan:
    tokens = _tokens(resolved, data)
    distinct = (
        sum(one.shape.tokens_within(resolved.max_length) for one in files) or tokens // resolved.n_epochs
    )
    run = run_of(resolved, data, machine.device)
    # Compiled layers need less, but may turn out not to be compilable: what fits is decided without.
    memory = estimate(shape, run)
    compiled = compiled_where_it_pays(shape, run, resolved, tokens)
    seconds = None
    if not METHODS_OF_TRAINING[resolved.method].generates:
        work = work_of(resolved, data, tokens, distinct)
        seconds = predict_seconds(shape, compiled, work, machine.teraflops, earlier)
    return MethodPlan(
        type=resolved.type,
        trainable_parameters=trained_parameters(shape, run),
        memory=memory.components() | {"total": memory.total},
        peak=memory.peak,
        fits=fits(memory, machine),
        seconds=seconds,
        cost=cost_of_range(seconds, rates, machine.watts, devices=run.gpus),
    )


def _choices(
    resolved: Resolved,
    requested: tuple[TuningOptions, HyperparameterOptions],
    checkpointing: str | None,
) -> list[Choice]:
    found = []
    known = REASONS | OF_METHOD.get(resolved.method, {})
    known |= {"gradient_checkpointing": (checkpointing, MEMORY_MODEL)} if checkpointing else {}
    for name, (reason, source) in known.items():
        value = getattr(resolved, name)
        if value is None:
            continue
        given = any(getattr(one, name, "auto") != "auto" for one in requested)
        found.append(
            Choice(
                name=name,
                value=value,
                reason="given in the request" if given else reason,
                source="request" if given else source,
            )
        )
    return found
