"""What an alias is, and which of its targets a request goes to. Without a clock, chance or database of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from math import fsum, log

MOST_TARGETS = 32
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
_NAME = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_LONGEST_NAME = 128
_ROUTES = ("/history", "/rollback", "/shadow", "/download")
"""Ends of URLs that come after a name."""


@dataclass(frozen=True)
class AliasTarget:
    """A base or a tuned model that answers for an alias, for its weight's share of the sum of weights."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True)
class AliasShadow:
    """A model that answers copies of an alias's requests; nobody sees its answers but whoever looks at the record."""

    model: str
    share: float = 1.0
    """Of the requests: above 0, up to 1."""


@dataclass(frozen=True)
class AliasGuard:
    """When a new target is taken to be bad, within `window_seconds` after its version was put."""

    max_error_rate: float | None = None
    """Of its requests, from 0 to 1."""
    max_p99_seconds: float | None = None
    """Of the time to the first byte of its answers."""
    window_seconds: float = 600.0
    min_requests: int = 20


@dataclass(frozen=True)
class Alias:
    """A stable name for models, as it is in one version. Times are Unix seconds."""

    name: str
    version: int
    targets: tuple[AliasTarget, ...]
    shadow: AliasShadow | None
    guard: AliasGuard | None
    created_at: float
    updated_at: float
    """When this version was put."""


def is_alias_name(text: str) -> bool:
    """Up to 128 letters, digits and `. _ - : /`, each part between slashes with a letter or digit first.

    Names of tuned models (`ft:...`) and ends that are routes of their own (`.../history`) are not.
    """
    return (
        len(text) <= _LONGEST_NAME
        and _NAME.fullmatch(text) is not None
        and not text.lower().startswith("ft:")
        and not text.endswith(_ROUTES)
    )


def pick(alias: Alias, sticky: str | None, chance: float) -> str:
    """The model that a request goes to. `chance`: in [0, 1), evenly, which decides where there is no `sticky` key.

    A key always gets the same target while targets and weights stay. Where one target's weight is changed, or it comes
    or goes, only as many keys move as its share changes by, and only to it or away from it.
    """
    if sticky is not None:
        return min((_arrival(alias.name, sticky, target), target.model) for target in alias.targets)[1]
    targets = sorted(alias.targets, key=lambda target: target.model)
    largest = max(target.weight for target in targets)  # their sum may be too large for a float
    point = chance * fsum(target.weight / largest for target in targets)
    for target in targets:
        point -= target.weight / largest
        if point < 0:
            break
    return target.model


def _arrival(alias: str, sticky: str, target: AliasTarget) -> float:
    """Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): each target arrives after an exponential time of
    rate `weight`, drawn by a hash; the first one wins, with the probability of its share. The time's logarithm."""
    text = "\0".join((alias, target.model, sticky))
    digest = sha256(text.encode(errors="surrogatepass")).digest()
    even = ((int.from_bytes(digest[:7], "big") >> 4) + 0.5) / 2**52  # never 0 nor 1: both have no logarithm
    return log(-log(even)) - log(target.weight)
