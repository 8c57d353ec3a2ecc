"""Path parameters for names of models and aliases, which may contain slashes."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor


def register_names(key: str, *under: str) -> None:
    """Register the path convertor `key` for `{name:key}`: it matches any name, except where the path ends in one of the
    sub-resources `under`."""

    class Name(Convertor[str]):
        regex = ".*" + "".join(f"(?<!/{end})" for end in under)

        def convert(self, value: str) -> str:
            return value

        def to_string(self, value: str) -> str:
            return value

    register_url_convertor(key, Name())
