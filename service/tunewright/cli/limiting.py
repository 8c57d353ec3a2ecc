"""The limits of projects and keys on the command line: NAME=NUMBER."""

from __future__ import annotations

import click
from pydantic import TypeAdapter

from tunewright.cli.options import KeyValue, Remote
from tunewright.sizes import Size
from tunewright_client import ApiKey, Limits, Project

_NONE = "none"
_SIZE: TypeAdapter[int] = TypeAdapter(Size)


def _limits(
    _: click.Context, __: click.Parameter, value: tuple[tuple[str, str], ...]
) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name, text in value:
        if name not in Limits.model_fields:
            raise click.BadParameter(f"{name} is none of {', '.join(Limits.model_fields)}")
        try:
            found[name] = (
                None
                if text == _NONE
                else _SIZE.validate_python(text)
                if name == "stored_bytes"
                else int(text)
            )
        except ValueError as error:
            raise click.BadParameter(f"{text!r} of {name} is no number: write one, or none") from error
    return found


limits_argument = click.argument(
    "limits", nargs=-1, type=KeyValue(), metavar="[NAME=NUMBER]...", callback=_limits
)


def show_limits(remote: Remote, limited: Project | ApiKey) -> None:
    if remote.out.as_json:
        remote.out.json(limited)
        return
    limits = limited.limits.model_dump()
    remote.out.fields([("id", limited.id), *((name, limits[name]) for name in Limits.model_fields)])
    if not any(number is not None for number in limits.values()):
        remote.out.note("It has no limits.")
