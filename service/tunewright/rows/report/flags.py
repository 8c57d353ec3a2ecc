"""What a report flags in rows: contents that a person should look at, found by the steps of a cleaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tunewright.rows.canonical import Row, RowKind
from tunewright.rows.cleaning.step import Record, Step
from tunewright.rows.counts import MOST_LISTED


class Flagger(NamedTuple):
    """`find` gives what it found in a canonical row, a short text for each."""

    code: str
    message: str
    fix: str
    find: Callable[[Row], Iterable[str]]


def flaggers() -> tuple[Flagger, ...]:
    """Those of every report. Their libraries are imported here, since no other use of a file needs them."""
    from tunewright.rows.cleaning.steps.control_tokens import ControlTokens, ControlTokensOptions
    from tunewright.rows.cleaning.steps.html import Html, HtmlOptions
    from tunewright.rows.cleaning.steps.injection import Injection, InjectionOptions
    from tunewright.rows.cleaning.steps.personal import Personal, PersonalOptions
    from tunewright.rows.cleaning.steps.secrets import Secrets, SecretsOptions

    clean = "tunewright data clean FILE -o OUT --step "
    return (
        Flagger(
            "secrets", "keys, tokens or passwords",
            clean + "secrets:action=mask", _finds(Secrets(SecretsOptions())),
        ),
        Flagger(
            "personal_data", "e-mail addresses, phone numbers, or numbers of cards and accounts",
            clean + "personal:action=mask", _finds(Personal(PersonalOptions())),
        ),
        Flagger(
            "prompt_injection", "orders to the model in texts of users and tools, or hidden characters",
            "read the rows; " + clean + "injection:action=remove", _finds(Injection(InjectionOptions(action="flag"))),
        ),
        Flagger(
            "control_tokens", "control tokens of chat templates, which training and serving take as plain text",
            clean + "control_tokens", _finds(ControlTokens(ControlTokensOptions(action="flag"))),
        ),
        Flagger("html", "HTML", clean + "html", _finds(Html(HtmlOptions()))),
    )  # fmt: skip


def _finds(step: Step) -> Callable[[Row], Iterable[str]]:
    def find(row: Row) -> Iterable[str]:
        try:
            return step.apply(Record(0, RowKind.TEXT, row)).reasons
        except RecursionError:  # nested too deeply for anything to be found
            return ()

    return find


@dataclass
class Flagged:
    """What one flagger has found in a file. It goes from one process to another, and so has no function."""

    code: str
    message: str
    fix: str
    count: int = 0
    """Rows."""
    rows: dict[int, str] = field(default_factory=dict)
    """The first of them, and what was found."""

    def add(self, place: int, found: list[str]) -> None:
        self.count += 1
        if len(self.rows) < MOST_LISTED:
            self.rows[place] = "; ".join(found)
