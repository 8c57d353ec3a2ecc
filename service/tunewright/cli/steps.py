"""The steps of a cleaning on the command line, and the table of what they did: for `data clean` and `cleanings`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from tunewright.cli.output import Output
from tunewright_client import CleaningReport

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from tunewright.rows.cleaning.step import Options

P = ParamSpec("P")
R = TypeVar("R")
StepTexts = tuple[tuple[str, dict[str, Any]], ...]
"""What `step_option` gives: names with their options, as they were written."""

_SHOWN_PLACES = 5


class StepText(click.ParamType[tuple[str, dict[str, Any]]]):
    """STEP or STEP:OPTION=VALUE,OPTION=VALUE, as (step, options). An option that is repeated has several values."""

    name = "STEP[:OPTION=VALUE,...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, dict[str, Any]]:
        name, _, text = str(value).partition(":")
        given: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            option, equals, content = part.partition("=")
            if not (option and equals and content):
                self.fail(f"{part!r} is not OPTION=VALUE, in {value!r}", param, ctx)
            given[option] = [*given[option], content] if option in given else [content]
        return name, given


def step_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add --step, as `steps`."""
    return click.option(
        "--step",
        "steps",
        type=StepText(),
        multiple=True,
        required=True,
        metavar="STEP[:OPTION=VALUE,...]",
        help="A step, with its options; may be repeated. Steps: html, secrets, personal, injection, control_tokens, "
        "length, language, repetition, duplicates, near_duplicates, leaks, balance. They run in this order.",
    )(function)


def step_options(steps: StepTexts, *, has_validation: bool) -> list[Options]:
    """The parameters of the steps. Raises UsageError where they do not fit."""
    from tunewright.rows.cleaning.options import check_steps

    asked = [_options(name, given) for name, given in steps]
    try:
        check_steps(asked, has_validation=has_validation)
    except ValueError as error:
        hint = " (--validation-file)" if "validation file" in str(error) else ""
        raise click.UsageError(f"{error}{hint}") from None
    return asked


def _options(name: str, given: dict[str, list[str]]) -> Options:
    """The parameters of a step. Raises UsageError with what is possible."""
    from pydantic import ValidationError

    from tunewright.rows.cleaning.options import BY_NAME

    model = BY_NAME.get(name)
    if model is None:
        raise click.UsageError(f"--step {name}: no such step; there are {', '.join(BY_NAME)}")
    fields = {key: field for key, field in model.model_fields.items() if key != "type"}
    values: dict[str, Any] = {}
    for option, texts in given.items():
        if option not in fields:
            known = ", ".join(fields) or "none"
            raise click.UsageError(f"--step {name}: no option {option}; it has {known}")
        is_list = "list" in str(fields[option].annotation)
        if len(texts) > 1 and not is_list:
            raise click.UsageError(f"--step {name}: {option} is there twice")
        values[option] = texts if is_list else _value(fields[option], texts[0])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise click.UsageError(
            f"--step {name}: {where}{first['msg'].removeprefix('Value error, ')}"
        ) from None


def _value(field: FieldInfo, text: str) -> Any:
    """What a text means as the value of a field. What is none is left as it is."""
    if text == "none":
        return None
    if re.search(r"\b(int|float)\b", str(field.annotation)):
        with suppress(ValueError):
            return json.loads(text)
    return text


def counts(out: Output, report: CleaningReport) -> None:
    """Print what each step has removed, changed and flagged, with the first places, and the groups of balance."""
    rows: list[tuple[object, ...]] = []
    for step in report.steps:
        rows.append((step.step, "", "", step.removed, step.changed, step.flagged, ""))
        for name, found in step.found.items():
            shown = ", ".join(map(str, found.places[:_SHOWN_PLACES]))
            more = ", ..." if found.rows > _SHOWN_PLACES else ""
            rows.append(("", name, found.rows, "", "", "", f"{shown}{more}"))
    out.table(["step", "found", "rows", "removed", "changed", "flagged", f"{report.unit}s"], rows)
    if report.groups:
        out.line("")
        out.table(
            ["group", "rows", "kept"], [(group.name, group.rows, group.kept) for group in report.groups]
        )
