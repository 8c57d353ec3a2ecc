"""What a run is predicted to need, once its tokens are known; kept beside what was measured in the end. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunewright.plan.compiling import compiled_where_it_pays
from tunewright.plan.cost import CostRange, Rates, cost_of_range
from tunewright.plan.data_shape import DataShape
from tunewright.plan.defaults import Resolved
from tunewright.plan.fitting import run_of, work_of
from tunewright.plan.machine import GIB, card_of
from tunewright.plan.memory import estimate
from tunewright.plan.shape import ModelShape
from tunewright.plan.time import Earlier, TimeRange, predict_seconds


class Planned(BaseModel):
    """The prediction of a whole run, made before its first step."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    steps: int
    tokens: int
    """Of all epochs, after cutting at the maximum length."""
    peak_bytes: int
    """Most memory of one process, of the same kind as what is measured: allocated by torch on a GPU, resident on the
    CPU."""
    seconds: TimeRange | None
    """Of the steps, without loading and saving; None where neither a finished job nor the card's peak tells it."""
    cost: CostRange | None = None
    """Of these seconds; None where no rate is known."""
    compiled: bool = False
    """Whether the layers are compiled."""

    def describe(self) -> str:
        text = f"{self.steps} steps, {self.tokens} tokens, {self.peak_bytes / GIB:.2f} GiB"
        if self.seconds is not None:
            text += f", {self.seconds.least:.0f} to {self.seconds.most:.0f} s by {self.seconds.basis}"
        if self.cost is not None:
            text += f"; {self.cost.least.describe()} to {self.cost.most.describe()}"
        return text


def predict(
    shape: ModelShape,
    resolved: Resolved,
    data: DataShape,
    *,
    tokens: int,
    distinct: int | None = None,
    device: str,
    earlier: Sequence[Earlier] = (),
    rates: Rates = Rates(),
) -> Planned:
    """The prediction for rows of which an epoch has the shape `data`, and all epochs so many tokens; `distinct`:
    those of all rows, each once; where an epoch has each once, it has these.

    `device` is the name of the GPU, or `cpu`; of the `earlier` jobs on the same base those on other devices do not
    count.
    """
    card = None if device == "cpu" else card_of(device)
    run = compiled_where_it_pays(
        shape, run_of(resolved, data, "cpu" if device == "cpu" else "cuda"), resolved, tokens
    )
    memory = estimate(shape, run)
    seconds = predict_seconds(
        shape,
        run,
        work_of(resolved, data, tokens, distinct or tokens // resolved.n_epochs),
        card.teraflops if card else None,
        [one for one in earlier if one.measured.device == device],
    )
    return Planned(
        steps=resolved.steps(data.examples),
        tokens=tokens,
        peak_bytes=memory.total if device == "cpu" else memory.allocated,
        seconds=seconds,
        compiled=run.compiled,
        cost=cost_of_range(seconds, rates, card.watts if card else None, devices=run.gpus),
    )
