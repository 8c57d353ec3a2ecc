"""Reads options of vLLM among the arguments that the operator gives it (`--vllm-arg`)."""

from __future__ import annotations

from collections.abc import Sequence


def last_given(arguments: Sequence[str], option: str) -> str | None:
    """The value of the last `option`, as `--option value` or `--option=value`; None where it is not given. vLLM takes
    `--an_option` for `--an-option`."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            found = value if equals else following
    return found
