"""What tokens cost, as the operator says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_PER = 1_000_000


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in the operator's currency."""

    pattern: str
    """The model's name; * stands for any characters."""
    input: float
    output: float

    def of_input(self, tokens: int) -> float:
        return self.input * tokens / _PER

    def of_output(self, tokens: int) -> float:
        return self.output * tokens / _PER


def price_of(text: str) -> Price:
    """MODEL=INPUT/OUTPUT. Raises ValueError."""
    pattern, equals, numbers = text.rpartition("=")
    input, slash, output = numbers.partition("/")
    try:
        price = Price(pattern, float(input), float(output))
    except ValueError:
        price = None
    if not (pattern and equals and slash) or price is None or not _is_price(price.input, price.output):
        raise ValueError(
            f"{text!r} is no price: write MODEL=INPUT/OUTPUT, what a million tokens cost, as my-base=0.5/1.5"
        )
    return price


def price_for(model: str, prices: Sequence[Price]) -> Price | None:
    """The first that suits the model."""
    escaped = ((price, price.pattern.replace("[", "[[]")) for price in prices)
    return next((price for price, pattern in escaped if fnmatchcase(model, pattern)), None)


def _is_price(*numbers: float) -> bool:
    return all(math.isfinite(number) and number >= 0 for number in numbers)
