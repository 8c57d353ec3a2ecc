"""Aliases, and the choice of a target for a request. Pure: no clock, no random numbers, no database."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from math import fsum, log
from typing import Any

MOST_TARGETS = 32
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._:-]*"
_NAME = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_LONGEST_NAME = 128
_ROUTES = ("/history", "/rollback", "/shadow", "/download", "/report", "/card")
"""Routes below an alias's name, which therefore cannot end a name."""


@dataclass(frozen=True)
class AliasTarget:
    """A base or a tuned model that answers requests for an alias; its share is its weight over the sum of weights."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True)
class AliasShadow:
    """A model that answers copies of an alias's requests. Its answers are only recorded."""

    model: str
    share: float = 1.0
    """Share of the requests that are copied: above 0, up to 1."""


@dataclass(frozen=True)
class AliasJudge:
    """A model that compares answers of new targets with those of the shadow to the same requests."""

    model: str
    """Never an alias."""
    min_win_rate: float
    """The smallest share of comparisons that a target may win, a tie being half a win."""
    min_samples: int = 50
    """Comparisons before it is judged; again at twice as many, and so on."""
    instructions: str | None = None
    """None: `evaluator.pairs.INSTRUCTIONS`."""


@dataclass(frozen=True)
class AliasGuard:
    """When a new version is rolled back, within `window_seconds` after it was set."""

    max_error_rate: float | None = None
    """Largest share of failed requests, from 0 to 1."""
    max_p99_seconds: float | None = None
    """Largest 99th percentile of the time to the first byte of its answers."""
    window_seconds: float = 600.0
    min_requests: int = 20
    judge: AliasJudge | None = None

    def __post_init__(self) -> None:
        if isinstance(self.judge, dict):  # as it is stored
            object.__setattr__(self, "judge", AliasJudge(**self.judge))


@dataclass(frozen=True)
class RequiredEvaluation:
    """Which evaluations of a model count: those of the same rows, with the same settings."""

    data: str
    """Id of the file, as it was given."""
    sha256: str
    """The hash of its content, by which evaluations are found."""
    metric: str
    reading: dict[str, Any] = field(default_factory=dict)
    extract: str = "whole"
    json_schema: dict[str, Any] | None = None
    temperature: float = 0.0


@dataclass(frozen=True)
class AliasRequirement:
    """What an alias requires of a model before that becomes a target of it."""

    evaluation: RequiredEvaluation | None = None
    min: float | None = None
    max: float | None = None
    max_drop: float | None = None
    """By how much it may be worse than each present target."""
    no_forgetting: bool = False


@dataclass(frozen=True)
class Alias:
    """One version of a stable name for models. Times are Unix seconds."""

    name: str
    version: int
    targets: tuple[AliasTarget, ...]
    shadow: AliasShadow | None
    guard: AliasGuard | None
    created_at: float
    updated_at: float
    """When this version was set."""
    require: AliasRequirement | None = None
    project: str = "default"

    @property
    def label(self) -> str:
        """Its name among those of all projects, for the operator: alone in `default`, else after the project's id."""
        return label_of(self.name, self.project)


def label_of(name: str, project: str) -> str:
    return name if project == "default" else f"{project}/{name}"


def is_alias_name(text: str) -> bool:
    """Whether `text` is up to 128 letters, digits and `. _ - : /`, with a letter or digit first in each part.

    Parts are separated by slashes. Names of tuned models (`ft:...`) and names that end in a route (`.../history`) are
    not valid.
    """
    return (
        len(text) <= _LONGEST_NAME
        and _NAME.fullmatch(text) is not None
        and not text.lower().startswith("ft:")
        and not text.endswith(_ROUTES)
    )


def pick(alias: Alias, sticky: str | None, chance: float) -> str:
    """The model that answers a request: chosen by the `sticky` key, else by `chance`, uniform in [0, 1).

    A key always has the same target while targets and weights do not change. Where the weight of one target changes, or
    a target is added or removed, only its change in share of the keys moves, and only to it or away from it.
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
    """The logarithm of a target's arrival time in weighted rendezvous hashing (Schindelhauer and Schomaker 2005).

    The time is exponentially distributed with rate `weight`, and drawn by a hash. The first target to arrive is chosen,
    which has the probability of its share.
    """
    text = "\0".join((alias, target.model, sticky))
    digest = sha256(text.encode(errors="surrogatepass")).digest()
    even = (
        (int.from_bytes(digest[:7], "big") >> 4) + 0.5
    ) / 2**52  # never 0 or 1, for which the logarithms do not exist
    return log(-log(even)) - log(target.weight)
