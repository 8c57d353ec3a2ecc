"""What a run costs: energy and price of the time for which it has a device, where their rates are known. Pure."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunewright.plan.time import TimeRange

_SECONDS = 3600


class Rates(BaseModel):
    """What the operator says of one device."""

    model_config = ConfigDict(frozen=True)

    price_per_hour: float | None = None
    currency: str = "USD"
    watts: float | None = None
    """Power of a device in use; None: that of its card's datasheet, where it is known."""


class Cost(BaseModel):
    """Of some seconds on the devices of a job. Fields whose rate is not known are None."""

    model_config = ConfigDict(frozen=True)

    kwh: float | None = None
    price: float | None = None
    currency: str | None = None

    def describe(self) -> str:
        parts = []
        if self.kwh is not None:
            parts.append(f"{self.kwh:.3g} kWh" if self.kwh >= 0.001 else f"{1000 * self.kwh:.2g} Wh")
        parts += [f"{self.price:.2f} {self.currency}"] if self.price is not None else []
        return ", ".join(parts)


class CostRange(BaseModel):
    """Of a predicted time."""

    model_config = ConfigDict(frozen=True)

    least: Cost
    most: Cost


def cost_of(
    seconds: float, rates: Rates, card_watts: float | None = None, *, devices: int = 1
) -> Cost | None:
    """None where no rate is known. `card_watts` is the power by the card's datasheet."""
    watts = rates.watts if rates.watts is not None else card_watts
    if watts is None and rates.price_per_hour is None:
        return None
    hours = devices * seconds / _SECONDS
    has_price = rates.price_per_hour is not None
    return Cost(
        kwh=None if watts is None else watts / 1000 * hours,
        price=None if rates.price_per_hour is None else rates.price_per_hour * hours,
        currency=rates.currency if has_price else None,
    )


def cost_of_range(
    seconds: TimeRange | None, rates: Rates, card_watts: float | None = None, *, devices: int = 1
) -> CostRange | None:
    if seconds is None:
        return None
    least, most = (cost_of(one, rates, card_watts, devices=devices) for one in (seconds.least, seconds.most))
    return CostRange(least=least, most=most) if least is not None and most is not None else None
