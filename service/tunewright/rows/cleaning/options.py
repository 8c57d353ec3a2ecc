"""The steps by name, their order, and how they are made of what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tunewright.rows.cleaning.step import InvalidSteps, Options, Step
from tunewright.rows.cleaning.steps.balance import BalanceOptions
from tunewright.rows.cleaning.steps.control_tokens import ControlTokens, ControlTokensOptions
from tunewright.rows.cleaning.steps.duplicates import (
    Duplicates,
    DuplicatesOptions,
    Leaks,
    LeaksOptions,
    NearDuplicates,
    NearDuplicatesOptions,
)
from tunewright.rows.cleaning.steps.filters import (
    Language,
    LanguageOptions,
    Length,
    LengthOptions,
    Repetition,
    RepetitionOptions,
)
from tunewright.rows.cleaning.steps.html import Html, HtmlOptions
from tunewright.rows.cleaning.steps.injection import Injection, InjectionOptions
from tunewright.rows.cleaning.steps.personal import Personal, PersonalOptions
from tunewright.rows.cleaning.steps.secrets import Secrets, SecretsOptions
from tunewright.rows.reading import Reading

EditingOrJudging = (
    HtmlOptions
    | SecretsOptions
    | PersonalOptions
    | InjectionOptions
    | ControlTokensOptions
    | LengthOptions
    | LanguageOptions
    | RepetitionOptions
    | DuplicatesOptions
    | NearDuplicatesOptions
)
"""The parameters of a step of `EDITING` or `JUDGING`."""
StepOptions = Annotated[EditingOrJudging | LeaksOptions | BalanceOptions, Field(discriminator="type")]
"""The parameters of any step."""
EDITING: dict[type[Options], Any] = {
    HtmlOptions: Html, SecretsOptions: Secrets, PersonalOptions: Personal, InjectionOptions: Injection,
    ControlTokensOptions: ControlTokens,
}  # fmt: skip
"""Steps that may change a row. They come before those that judge it."""
JUDGING: dict[type[Options], Any] = {
    LengthOptions: Length, LanguageOptions: Language, RepetitionOptions: Repetition,
    DuplicatesOptions: Duplicates, NearDuplicatesOptions: NearDuplicates,
}  # fmt: skip
"""Steps that keep a row or remove it, the cheaper ones first."""
ORDER: tuple[type[Options], ...] = (*EDITING, *JUDGING, LeaksOptions, BalanceOptions)
"""The order in which steps run, whatever the order of the request: in another one, a second cleaning could find what
the first one has made (duplicates of rows that differed in their HTML)."""
BY_NAME: dict[str, type[Options]] = {kind.model_fields["type"].default: kind for kind in ORDER}


def check_steps(steps: Sequence[Options], *, has_validation: bool) -> None:
    """Raises ValueError where the steps do not fit together, or to what they need."""
    if not steps:
        raise ValueError("a cleaning needs at least one step")
    names = [type(step).model_fields["type"].default for step in steps]
    if twice := [name for name in BY_NAME if names.count(name) > 1]:
        raise ValueError(f"the step {twice[0]} is there twice")
    if "leaks" in names and not has_validation:
        raise ValueError("the step leaks needs a validation file")
    if has_validation and "leaks" not in names:
        raise ValueError("a validation file is for the step leaks, which is not among the steps")


def steps_of(
    asked: Sequence[Options],
    validation: Path | None,
    reading: Reading,
    on_row: Callable[[], None] = lambda: None,
) -> tuple[list[Step], list[Step]]:
    """(those that edit, those that judge), each in their order; `balance` is not among them. `on_row` is called for
    each row of the validation file, all of which are read.

    Raises InvalidValidation where the validation file cannot be read, and InvalidSteps where an option is not known to
    the library of its step.
    """
    given = {type(options): options for options in asked}
    editing = [make(given[kind]) for kind, make in EDITING.items() if kind in given]
    judging = [make(given[kind]) for kind, make in JUDGING.items() if kind in given]
    for step in judging:
        if isinstance(step, Language):
            try:
                step.check()
            except ValueError as error:
                raise InvalidSteps(str(error)) from None
    leaks = given.get(LeaksOptions)
    if isinstance(leaks, LeaksOptions) and validation is not None:
        judging.append(Leaks(leaks, validation, reading, on_row))
    return editing, judging
