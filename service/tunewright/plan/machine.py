"""A machine that trains: what devices it has, and what memory a job may use of them. Pure; the caller looks at the
machine, or describes one."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


class UnknownMachine(Exception):
    """The description cannot be understood; the message says what can."""


@dataclass(frozen=True)
class Card:
    """A GPU on the market, by its datasheet."""

    memory: float
    """GB (10^9 bytes) by its name; `usable` says what the driver shows."""
    teraflops: float
    """Dense bfloat16 peak (on cards without bfloat16 tensor cores, float16)."""
    watts: int


CARDS = {
    "T4": Card(16, 65, 70),
    "V100": Card(32, 125, 300),
    "A10": Card(24, 125, 150),
    "A100": Card(80, 312, 400),
    "L4": Card(24, 121, 72),
    "L40S": Card(48, 362, 350),
    "RTX3090": Card(24, 71, 350),
    "RTX4090": Card(24, 165, 450),
    "RTX5090": Card(32, 210, 575),
    "H100": Card(80, 989, 700),
    "H200": Card(141, 989, 700),
    "B200": Card(180, 2250, 1000),
}
_DESCRIPTION = re.compile(r"(?:(\d+)\s*x\s*)?([A-Za-z0-9 ]+?)(?:-(?:SXM-|PCIE-)?(\d+)\s*GB)?", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """Devices of one kind, and what of each is free for a job."""

    name: str
    device: str
    """cuda or cpu."""
    count: int
    memory: int
    """Bytes of one device."""
    reserved: int = 0
    """Bytes of one device that are kept for engines that serve."""
    teraflops: float | None = None
    watts: float | None = None
    """Peaks of one device, where they are known."""
    least: int | None = None
    """Bytes that a job may use of the device with the least, where devices differ; 0 where that is not known."""

    @property
    def free(self) -> int:
        """Bytes that a job may use of one device."""
        return max(0, self.memory - self.reserved)

    @property
    def least_free(self) -> int:
        """Bytes that a job may use of whichever device it gets."""
        return self.free if self.least is None else self.least


def described(text: str) -> Machine:
    """The machine that a text such as "8xA100-80GB", "H100" or "2x RTX 4090" describes. Raises UnknownMachine."""
    found = _DESCRIPTION.fullmatch(text.strip())
    name = found.group(2).replace(" ", "").upper() if found else ""
    card = CARDS.get(name)
    if found is None or card is None:
        raise UnknownMachine(
            f"no known machine: {text!r}. Give a number and a card, with its memory where there are several, such as "
            f"8xA100-80GB or H100; known are {', '.join(CARDS)}"
        )
    count, gigabytes = int(found.group(1) or 1), float(found.group(3) or card.memory)
    if not 1 <= count <= 1024 or not 1 <= gigabytes <= 1024:
        raise UnknownMachine(f"{text!r}: the number of cards and their memory in GB are from 1 to 1024")
    one = re.sub(r"^\d+\s*[xX]\s*", "", text.strip())
    if not found.group(3):  # tells what is assumed
        one = f"{one}-{card.memory:g}GB"
    return Machine(one, "cuda", count, int(gigabytes * 1e9), 0, card.teraflops, card.watts)


def card_of(name: str) -> Card | None:
    """The card that a driver's name such as "NVIDIA A100-SXM4-80GB" means, or None where it is not known."""
    words = re.sub(r"[^A-Z0-9]", " ", name.upper())
    tight = words.replace(" ", "")
    matches = [card for card in CARDS if card in tight]
    return CARDS[max(matches, key=len)] if matches else None
