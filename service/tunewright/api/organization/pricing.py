"""What usage costs: line items as OpenAI's API names them, with the operator's prices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tunewright.config.prices import Price, price_for
from tunewright.store.usage import HOUR, Seconds, Sums

NO_KEY = "none"
"""Stands for requests and jobs without a key: no key's id is so short."""


@dataclass(frozen=True)
class LineItem:
    name: str
    project: str
    key: str
    quantity: float
    unit: Literal["tokens", "duration_hours"]
    amount: float | None
    """None without a price."""


def line_items(
    tokens: Sequence[Sums], gpus: Sequence[Seconds], prices: Sequence[Price], gpu_hour: float | None
) -> list[tuple[int, LineItem]]:
    """The items with the beginning of their bucket. `tokens` are grouped by project, key and model, and so are
    `gpus`."""
    return [*_of_tokens(tokens, prices), *_of_gpus(gpus, gpu_hour)]


def _of_tokens(tokens: Sequence[Sums], prices: Sequence[Price]) -> Iterator[tuple[int, LineItem]]:
    for bucket, group, used in tokens:
        model, key = group["model"], group["api_key_id"] or NO_KEY
        price = price_for(model, prices)
        inputs, outputs = used.input_tokens, used.output_tokens
        for what, number, amount in (
            ("input_tokens", inputs, None if price is None else price.of_input(inputs)),
            ("output_tokens", outputs, None if price is None else price.of_output(outputs)),
        ):
            if number:
                yield bucket, LineItem(f"{model}, {what}", group["project"], key, number, "tokens", amount)


def _of_gpus(gpus: Sequence[Seconds], gpu_hour: float | None) -> Iterator[tuple[int, LineItem]]:
    for bucket, group, seconds in gpus:
        hours = seconds / HOUR
        amount = None if gpu_hour is None else hours * gpu_hour
        name, key = f"{group['model']}, gpu_hours", group["api_key_id"] or NO_KEY
        yield bucket, LineItem(name, group["project"], key, hours, "duration_hours", amount)
