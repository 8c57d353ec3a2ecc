"""Whether a run fits a machine, and whether its activations are kept where the request leaves that open. Pure."""

from __future__ import annotations

from dataclasses import replace

from tunewright.plan.data_shape import DataShape, data_shape
from tunewright.plan.defaults import Resolved, split_batch
from tunewright.plan.machine import GIB, Machine
from tunewright.plan.memory import Memory, Run, estimate
from tunewright.plan.methods import METHODS
from tunewright.plan.reasons import CHECKPOINTING
from tunewright.plan.shape import ModelShape
from tunewright.plan.time import Work

MARGIN = 0.05
"""Of a device's memory that a plan leaves free: the estimate's error."""
KEPT_MARGIN = 0.15
"""The same, where activations are kept for speed alone: too much memory would end the job, and it needs none of it."""


def run_of(resolved: Resolved, data: DataShape, device: str) -> Run:
    """What of a run's options decides its memory. Rows are padded to the longest of their batch."""
    targets = resolved.target_modules
    method = METHODS[resolved.method]
    answers, answer = resolved.num_generations or 1, resolved.max_completion_length or 0
    prompt = min(resolved.max_length - answer, data.longest)
    has_reference = resolved.beta != 0 if method.generates else method.has_reference  # not with full
    return Run(
        type=resolved.type,
        device=device,
        batch=resolved.per_device_batch_size * method.sequences * answers,
        length=max(1, prompt) + answer if answer else prompt or resolved.max_length,
        checkpointing=(device != "cpu")
        if resolved.gradient_checkpointing is None
        else resolved.gradient_checkpointing,
        rank=resolved.rank,
        targets=tuple(targets) if isinstance(targets, list) else targets,
        use_dora=resolved.use_dora,
        drops=bool(resolved.dropout),
        accumulates=resolved.gradient_accumulation_steps > 1,
        learnt=_learnt(resolved, data, max(1, prompt)),
        has_reference=has_reference and resolved.type != "full",
        gpus=resolved.gpus,
        is_sharded=resolved.sharding == "fsdp",
        has_mismatched=method.has_mismatched,
        generated=resolved.device_batch_size * answers if answer else 0,
    )


def _learnt(resolved: Resolved, data: DataShape, prompt: int) -> float:
    """The share of tokens that are learnt."""
    if answer := resolved.max_completion_length:
        return answer / (prompt + answer)
    return 1.0 if METHODS[resolved.method].learns_prompts else data.learnt


def padding_of(resolved: Resolved, data: DataShape) -> float:
    """The share of what the run's batches compute that is padding, as expected."""
    if resolved.group_by_length or resolved.packing or METHODS[resolved.method].generates:
        return 0.0
    at_a_time = resolved.per_device_batch_size * METHODS[resolved.method].sequences
    return data.padding(at_a_time, resolved.max_length)


def work_of(resolved: Resolved, data: DataShape, tokens: int, distinct: int) -> Work:
    """How much a run computes whose epochs have the shape `data` and so many tokens; `distinct`: those of all rows,
    each once."""
    method = METHODS[resolved.method]
    before = method.has_reference and resolved.type == "full"
    return Work(
        tokens=tokens,
        steps=resolved.steps(data.examples),
        padding=padding_of(resolved, data),
        reference_tokens=distinct * (1 + method.has_mismatched) if before else 0,
    )


def fits(memory: Memory, machine: Machine) -> bool:
    return memory.total <= machine.free - MARGIN * machine.memory


def with_checkpointing(
    resolved: Resolved, shape: ModelShape | None, machine: Machine
) -> tuple[Resolved, str]:
    """The options of a run on a GPU with `gradient_checkpointing` decided, and why.

    It is off where the run fits without it on each of the machine's devices, since a job may get any. Rows count
    with `max_length` tokens: a job decides before its rows are tokenized, and its plan decides alike. Where the memory
    of the device or of the model is not known, or the estimate leaves something out (DoRA, experts), it is on.
    """
    on, off = ({"gradient_checkpointing": value} for value in (True, False))
    if machine.device == "cpu" or shape is None:
        return resolved.model_copy(update=on), CHECKPOINTING["unknown"]
    if resolved.use_dora or shape.experts:
        return resolved.model_copy(update=on), CHECKPOINTING["not counted"]
    without = resolved.model_copy(update=off)
    run = replace(
        run_of(without, data_shape(1, [(1, 1)]), machine.device), length=resolved.max_length, learnt=1.0
    )
    memory = estimate(shape, run)
    margin = KEPT_MARGIN * machine.memory
    it_fits = memory.total <= machine.least_free - margin
    reason = CHECKPOINTING["fits" if it_fits else "does not fit"].format(
        rows=run.batch,
        length=run.length,
        needed=memory.total / GIB,
        available=machine.least_free / GIB,
        margin=margin / GIB,
    )
    return without if it_fits else resolved.model_copy(update=on), reason


def with_less_memory(resolved: Resolved) -> Resolved | None:
    """The options of the same training in less memory: with checkpointing first, then with half as many rows at a time,
    in the same order. None where neither is left."""
    if resolved.gradient_checkpointing is False:
        return resolved.model_copy(update={"gradient_checkpointing": True})
    least = METHODS[resolved.method].least_at_a_time
    at_a_time, steps = split_batch(
        resolved.device_batch_size, max(1, resolved.per_device_batch_size // 2), least
    )
    if at_a_time >= resolved.per_device_batch_size:
        return None
    return resolved.model_copy(
        update={
            "per_device_batch_size": at_a_time,
            "gradient_accumulation_steps": steps,
            "order_batch_size": resolved.rows_together,
        }
    )
