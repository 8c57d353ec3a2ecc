"""What the steps would find in rows, without changing any."""

from __future__ import annotations

from collections.abc import Iterable

from tunewright.rows.canonical import Row, RowKind
from tunewright.rows.cleaning.counts import Found
from tunewright.rows.cleaning.step import Record, Step
from tunewright.rows.cleaning.steps.control_tokens import ControlTokens, ControlTokensOptions
from tunewright.rows.cleaning.steps.duplicates import (
    Duplicates,
    DuplicatesOptions,
    NearDuplicates,
    NearDuplicatesOptions,
)
from tunewright.rows.cleaning.steps.filters import Repetition, RepetitionOptions
from tunewright.rows.cleaning.steps.html import Html, HtmlOptions
from tunewright.rows.cleaning.steps.injection import Injection, InjectionOptions
from tunewright.rows.cleaning.steps.personal import Personal, PersonalOptions
from tunewright.rows.cleaning.steps.secrets import Secrets, SecretsOptions


def inspect_rows(rows: Iterable[tuple[int, Row]], *, secrets: bool = True) -> dict[str, dict[str, Found]]:
    """The findings of each step in canonical rows with their places (`formats.read_rows`): by the name of the step
    that would mend it, what was found, in how many rows, and the first of their places. Goes once over the rows and
    holds none.

    A copy of an earlier row is told as a duplicate, and not as a near one.
    """
    steps: list[Step] = [
        Html(HtmlOptions()),
        *([Secrets(SecretsOptions())] if secrets else []),
        Personal(PersonalOptions()),
        Injection(InjectionOptions(action="flag")),
        ControlTokens(ControlTokensOptions(action="flag")),
        Repetition(RepetitionOptions()),
        Duplicates(DuplicatesOptions()),
        NearDuplicates(NearDuplicatesOptions()),
    ]
    findings: dict[str, dict[str, Found]] = {step.name: {} for step in steps}
    for place, row in rows:
        record = Record(place, RowKind.TEXT, row)
        for step in steps:
            try:
                outcome = step.apply(record)
            except RecursionError:
                continue  # nested too deeply for anything to be found
            for reason in outcome.reasons:
                findings[step.name].setdefault(reason, Found()).note(place)
            if outcome.row is None and step.name == "duplicates":
                break
    return {name: found for name, found in findings.items() if found}
