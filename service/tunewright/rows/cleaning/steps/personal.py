"""Personal data that has a form: addresses, numbers of phones, cards and accounts.

Names and postal addresses have none; they need a model (see docs/decisions/0027-cleaning.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from tunewright.rows.cleaning.step import Options, Outcome, Record, Step, acted
from tunewright.rows.cleaning.texts import changed_everywhere, every_text

Kind = Literal["email", "phone", "card", "iban", "ip"]
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d]|[.,-]\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)")
_DIGITS = re.compile(r"\d(?:\D{0,4}\d){6}")


class PersonalOptions(Options):
    """`mask` writes `[email]` and the like in their place."""

    type: Literal["personal"] = "personal"
    action: Literal["flag", "mask", "remove"] = "flag"
    kinds: list[Kind] = Field(["email", "phone", "card", "iban", "ip"], min_length=1, max_length=5)
    region: str | None = Field(None, pattern="^[A-Z]{2}$")
    """The country (ISO 3166) of phone numbers without an international prefix; else only those with one count."""


class Personal(Step):
    name = "personal"

    def __init__(self, options: PersonalOptions) -> None:
        self._options = options

    def apply(self, record: Record) -> Outcome:
        found = {kind for text in every_text(record.row) for kind, _, _ in self.found(text)}
        return acted(
            self._options.action,
            record,
            lambda: changed_everywhere(record.row, self._masked),
            tuple(sorted(found)),
        )

    def found(self, text: str) -> list[tuple[str, int, int]]:
        """(kind, start, end) of each, in the order of the text and apart from each other."""
        wanted = self._options.kinds
        places = [
            place for place in _places(text, self._options.region, "phone" in wanted) if place[0] in wanted
        ]
        apart: list[tuple[str, int, int]] = []
        for place in sorted(places, key=lambda place: (place[1], -place[2])):
            if not apart or place[1] >= apart[-1][2]:
                apart.append(place)
        return apart

    def _masked(self, text: str) -> str:
        for kind, start, end in reversed(self.found(text)):
            text = f"{text[:start]}[{kind}]{text[end:]}"
        return text


def _places(text: str, region: str | None, phones: bool) -> Iterator[tuple[str, int, int]]:
    if "@" in text:
        yield from (("email", *found.span()) for found in _EMAIL.finditer(text))
    for found in _CARD.finditer(text):
        if _is_card(re.sub(r"\D", "", found[0])):
            yield "card", *found.span()
    for found in _IBAN.finditer(text):
        if _is_iban(found[0].replace(" ", "")):
            yield "iban", *found.span()
    for found in _IP.finditer(text):
        numbers = [int(part) for part in found[0].split(".")]
        if max(numbers) < 256 and numbers[0] not in (0, 10, 127):
            yield "ip", *found.span()
    if phones and _DIGITS.search(text) and (region is not None or "+" in text or "\uff0b" in text):
        import phonenumbers

        yield from (("phone", m.start, m.end) for m in phonenumbers.PhoneNumberMatcher(text, region))


def _is_card(digits: str) -> bool:
    """The Luhn check (ISO/IEC 7812-1), of numbers that begin as those of a network that issues cards."""
    if digits[0] not in "23456" or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """The check digits of ISO 13616."""
    if not 15 <= len(text) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1
