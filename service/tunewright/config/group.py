"""The base class of the groups of options, and checks that several of them have."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", re.ASCII)


class Group(BaseModel):
    """Options that belong together; names of options are unique over all groups."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def split_commas(value: object) -> object:
    """A list of values as a variable has it, separated by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def check_hosts(value: list[str]) -> list[str]:
    """Raises ValueError where one of these is not the name of a host."""
    for name in value:
        if not _HOST.fullmatch(name):
            raise ValueError(
                f"{name!r} is not the name of a host: write it without http:// and without a port"
            )
    return [name.lower() for name in value]
