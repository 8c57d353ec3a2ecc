"""How long the grammar of a request takes to compile, in parts for which the whole vocabulary is looked through.

Most of a JSON schema is compiled in milliseconds: names, types, options, nested objects. What takes time are texts of
which the grammar counts the characters, and patterns with classes of characters: for each of their places the compiler
(xgrammar 0.2) looks through all tokens. With a vocabulary of 32,000 a place takes about 4 ms on one core, so a text
with a length of 256 or more takes a second, and one that is there already a quarter of it (docs/decisions/0056).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_MOST_COUNTED = 256
"""Places that are looked through of one part that may be repeated more often."""
_LONGEST = 10**6
_AGAIN = 4
"""A length that is there already costs this part of the first."""
_TOKEN = re.compile(
    r"\\[dDwWsSpP]|(?P<literal>\\.)|(?P<bracket>\[)|(?P<group>[(])|(?P<end>[)])"
    r"|(?P<counted>\{\s*+\d*+\s*+,?\s*+\d*+\s*+\})|(?P<open>[*+])|(?P<any>\.)|(?P<rest>.)",
    re.DOTALL,
)
"""Possessive, and without the end of a class: the time to read a pattern grows with its length, whatever is in it."""
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*+\]", re.DOTALL)
_NUMBER = re.compile(r"\d+")


def pattern_cost(pattern: str) -> int:
    """The places of a regular expression, or of a grammar in EBNF: those of classes, as often as they are repeated."""
    sums = [0]
    last = at = 0
    has_more_classes = True
    while token := _TOKEN.match(pattern, at):
        kind, at = token.lastgroup, token.end()
        if kind == "bracket":
            found = _CLASS.match(pattern, token.start()) if has_more_classes else None
            has_more_classes = found is not None
            at = found.end() if found else at
            last = 1 if found else 0
            sums[-1] += last
        elif kind == "group":
            sums.append(0)
            last = 0
        elif kind == "end":
            last = sums.pop() if len(sums) > 1 else 0
            sums[-1] += last
        elif kind == "counted":
            times = max(
                (min(int(number[:9]), _MOST_COUNTED) for number in _NUMBER.findall(token[0])), default=1
            )
            sums[-1] += max(0, last * (times - 1))
            last *= max(1, times)
        elif kind == "open":
            sums[-1] += 2
            last += 2
        else:
            last = 0 if kind in ("literal", "rest") else 1
            sums[-1] += last
    return sum(sums)


def grammar_cost(*parts: Any) -> int:
    """The places of all grammars in these parts of a request, together."""
    total = 0
    lengths: Counter[tuple[int, int]] = Counter()
    left = list(parts)
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
            continue
        if not isinstance(value, dict):
            continue
        length = (_whole(value.get("minLength")), _whole(value.get("maxLength")))
        if any(length):
            lengths[length] += 1
        for key, item in value.items():
            if isinstance(item, str):
                if key in ("pattern", "regex", "grammar"):
                    total += pattern_cost(item)
                elif key in ("json", "structural_tag"):
                    left.append(_read(item))
                continue
            if key == "patternProperties" and isinstance(item, dict):
                total += sum(map(pattern_cost, item))
            left.append(item)
    for length, times in lengths.items():
        places = min(max(length), _MOST_COUNTED)
        total += places + (times - 1) * places // _AGAIN
    return total


def _whole(value: Any) -> int:
    return int(min(value, _LONGEST)) if isinstance(value, int | float) and value > 0 else 0


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
