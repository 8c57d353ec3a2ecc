"""Options and types that commands share, such as those of all commands that use a running service."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from tunewright.cli.groups import INTERRUPTED as INTERRUPTED
from tunewright.cli.groups import Commands as Commands
from tunewright.cli.groups import examples as examples
from tunewright.cli.output import Output
from tunewright.config import client_defaults
from tunewright.rows.reading import COLUMNS_SAY, NAMES, TAGS
from tunewright_client import Tunewright

P = ParamSpec("P")
R = TypeVar("R")


class KeyValue(click.ParamType[Any]):
    """KEY=VALUE, as (key, value)."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not (key and equals):
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


@dataclass(frozen=True)
class Remote:
    """A client of a running service, and the command's output."""

    client: Tunewright
    out: Output


class Weighted(click.ParamType[tuple[str, float]]):
    """MODEL or MODEL=NUMBER, as (model, number); without a number, 1."""

    name = "model"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        model, equals, number = value.rpartition("=")
        if not equals:
            return value, 1.0
        try:
            return model, float(number)
        except ValueError:
            self.fail(f"{value!r}: the part after = must be a number", param, ctx)


def on_service(function: Callable[Concatenate[Remote, P], R]) -> Callable[P, R]:
    """Add --url, --api-key, --ca-file and --json to a command, and pass it a `Remote` made from them, as its first
    argument."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> R:
        url, api_key, ca_file = kwargs.pop("url"), kwargs.pop("api_key"), kwargs.pop("ca_file")
        as_json = bool(kwargs.pop("as_json"))
        default_url, default_key = client_defaults()
        try:
            client = Tunewright(
                str(url or default_url),
                str(api_key) if api_key is not None else default_key or "",
                ca_file=str(ca_file) if ca_file is not None else None,
            )
        except ValueError as error:
            raise click.UsageError(
                str(error).replace("base_url", "--url").replace("ca_file", "--ca-file")
            ) from error
        with client:
            return function(Remote(client, Output(as_json)), *args, **kwargs)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
        click.option(
            "--ca-file",
            metavar="PATH",
            help="PEM file with whom to trust over https, instead of the system's.  [env: TUNEWRIGHT_CA_FILE]",
        ),
        click.option(
            "--api-key", metavar="KEY", help="Key of the service.  [env: TUNEWRIGHT_API_KEY, which is safer]"
        ),
        click.option(
            "--url",
            metavar="URL",
            help="Address of the service.  [env: TUNEWRIGHT_BASE_URL; default: http://127.0.0.1:8000]",
        ),
    ):
        command = option(command)
    return command


def limit_option(default: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --limit, the number of items that a list shows."""
    return click.option(
        "--limit", type=click.IntRange(1), default=default, show_default=True, help="How many to show."
    )


def for_shell(text: str) -> str:
    """A message of the service with the option of the command line where it names the field of a request."""
    example = "--column says what they are, such as --column prompt=question --column completion=answer"
    return text.replace(COLUMNS_SAY, example).replace("data.columns", "--column")


def read_template(file: Path | None) -> str | None:
    """The chat template in a file, checked."""
    if file is None:
        return None
    from tunewright.rows.templates import check_template  # loads Jinja, which other commands do not need

    try:
        template = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file} is not text in UTF-8: {error.reason}") from error
    if why := check_template(template):
        raise click.ClickException(f"the chat template cannot be used: {why}")
    return template


def column_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add --column, `data.columns` of a job, as `columns`: a dictionary, or None."""
    about = "The column of the files for a field, such as prompt=question; may be repeated."
    return _names_option("--column", "columns", NAMES, "FIELD=COLUMN", about)(function)


def tag_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add --tag, `data.tags` of a job, as `tags`: a dictionary, or None."""
    about = "A name in ShareGPT's conversations, as `data.tags` of a job; may be repeated."
    return _names_option("--tag", "tags", TAGS, "TAG=NAME", about)(function)


def _names_option(
    option: str, parameter: str, names: Collection[str], metavar: str, about: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    return click.option(
        option,
        parameter,
        type=KeyValue(),
        multiple=True,
        metavar=metavar,
        callback=known_names(names),
        help=about,
    )


def alpaca_option(*, auto: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --alpaca, `data.alpaca` of a job; `auto`: where a model may be known, whose template decides."""
    return click.option(
        "--alpaca",
        type=click.Choice([*(["auto"] if auto else []), "chat", "template"]),
        default="auto" if auto else "chat",
        show_default=True,
        help="What Alpaca rows become.",
    )


def reading_of(
    columns: dict[str, str] | None, tags: dict[str, str] | None, alpaca: str
) -> dict[str, Any] | None:
    """The options of the three above that were given, as a request has them; None where none was."""
    given = {"columns": columns, "tags": tags, "alpaca": None if alpaca == "chat" else alpaca}
    return {name: value for name, value in given.items() if value} or None


def known_names(names: Collection[str]) -> Callable[..., dict[str, str] | None]:
    """A callback that makes a dictionary of pairs, and refuses keys that are none of the names."""

    def check(
        _: click.Context, __: click.Parameter, value: tuple[tuple[str, str], ...]
    ) -> dict[str, str] | None:
        for name, _column in value:
            if name not in names:
                raise click.BadParameter(f"{name} is none of {', '.join(sorted(names))}")
        return dict(value) or None

    return check


def force_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add --force to a command that deletes models."""
    return click.option(
        "--force",
        is_flag=True,
        help="Also if aliases have it: remove it from them; an alias that has no other target is deleted.",
    )(function)
