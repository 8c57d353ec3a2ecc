"""The schedules of the learning rate that transformers has, and their own options by its names. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

SchedulerName = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "cosine_with_min_lr",
    "cosine_warmup_with_min_lr", "polynomial", "inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip
"""Not among them: `reduce_lr_on_plateau` and `greedy`, which are no function of the step but follow measured losses."""
SCHEDULER: SchedulerName = "cosine"
"""By default."""
_CYCLES = {"num_cycles": (0.0, 100.0)}
_LEAST = {"min_lr": (0.0, 1.0), "min_lr_rate": (0.0, 1.0)}
OPTIONS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "cosine": _CYCLES,
    "cosine_with_restarts": _CYCLES,
    "cosine_with_min_lr": _CYCLES | _LEAST,
    "cosine_warmup_with_min_lr": _CYCLES | _LEAST | {"warmup_lr_rate": (0.0, 1.0)},
    "polynomial": {"lr_end": (0.0, 1.0), "power": (0.0, 100.0)},
    "inverse_sqrt": {"timescale": (1.0, 1e9)},
    "warmup_stable_decay": {
        "num_decay_steps": (1.0, 1e9), "min_lr_ratio": (0.0, 1.0), "num_cycles": (0.0, 100.0),
    },
}  # fmt: skip
"""The options of each and their bounds; those that are not named have none."""
_WHOLE = ("timescale", "num_decay_steps")
MIN_LR_RATE = 0.1
DECAY_SHARE = 0.1
"""Of the steps, at the end."""


def why_not(name: str, options: Mapping[str, float]) -> str | None:
    """Why a schedule cannot have these options; None where it can."""
    known = OPTIONS.get(name, {})
    for key, value in options.items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            return f"the schedule {name} has no option {key[:40]}: {has}"
        low, high = known[key]
        if not low <= value <= high:
            return f"{key} must be from {low:g} to {high:g}, not {value:g}"
        if key in _WHOLE and value != int(value):
            return f"{key} must be a whole number, not {value:g}"
    if name == "cosine_with_restarts" and options.get("num_cycles", 1) != int(options.get("num_cycles", 1)):
        return "num_cycles must be a whole number for cosine_with_restarts"
    if {"min_lr", "min_lr_rate"} <= options.keys():
        return "min_lr and min_lr_rate say the same in two ways: give one"
    return None


def scheduler_options(name: str, options: Mapping[str, float], steps: int, warmup: int) -> dict[str, float]:
    """All options of a schedule over so many steps, with defaults for those that transformers asks for."""
    made: dict[str, float] = {key: int(value) if key in _WHOLE else value for key, value in options.items()}
    if name.endswith("with_min_lr") and not {"min_lr", "min_lr_rate"} & made.keys():
        made["min_lr_rate"] = MIN_LR_RATE
    if name == "warmup_stable_decay":
        decay = made.get("num_decay_steps", math.ceil(steps * DECAY_SHARE))
        made["num_decay_steps"] = max(1, min(int(decay), steps - warmup))
    return made
