"""Where the answers of reinforcement are made: by the engine that serves the base, or by the trainer. Pure."""

from __future__ import annotations

from typing import Literal

from tunewright.plan.initializations import changes_base

Sampling = Literal["engine", "trainer"]
LEAST_ADAPTERS = 2
"""That an engine has room for where jobs sample from it: one is the job's, and one for clients."""
LARGEST_DIFFERENCE = 0.1
"""Of the mean distance between a token's log-probability in the engine and in the trainer, in nats, above which the
answers of a step count as those of another model (docs/decisions/0063)."""


def why_not_engine(
    *,
    type: str,
    algorithm: str | None,
    temperature: float | None,
    use_dora: bool,
    init: str | None,
    gpus: int,
) -> str | None:
    """Why answers cannot come from the engine, whichever it is; None where they can."""
    if type != "lora":
        return f"the engine has the base as it is, with an adapter, and not the weights of type {type}"
    if use_dora:
        return "the engine serves no DoRA"
    if changes_base(init or "auto"):
        return f"init {init} changes the base, and the engine has it as it is"
    if algorithm != "grpo":
        return f"{algorithm} does not correct for the engine's own rounding: use grpo"
    if temperature != 1.0:
        return "the engine tells log-probabilities at temperature 1, by which its own rounding is corrected"
    if gpus != 1:
        return "it trains on several GPUs"
    return None


def why_not_this_engine(
    *, enable_lora: bool, max_adapters: int, max_rank: int | None, rank: int | None
) -> str | None:
    """The same, of an engine with these options."""
    if not enable_lora:
        return "its base is served without adapters"
    if max_adapters < LEAST_ADAPTERS:
        return "its engine has room for one adapter alone (--max-cpu-loras), which is left to clients"
    if max_rank is not None and rank is not None and rank > max_rank:
        return f"its engine serves adapters up to rank {max_rank}"
    return None
