"""Names of models and aliases in paths, which may have slashes."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor


def register_names(key: str, *under: str) -> None:
    """Have `{name:key}` in a route's path take a name, but not the URLs that lie under one: those that end in one of
    `under`."""

    class Name(Convertor[str]):
        regex = ".*" + "".join(f"(?<!/{end})" for end in under)

        def convert(self, value: str) -> str:
            return value

        def to_string(self, value: str) -> str:
            return value

    register_url_convertor(key, Name())
