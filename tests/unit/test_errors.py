"""What errors quote is bounded."""

from __future__ import annotations

import json

import pytest

from tunewright.errors import InvalidRequest, quoted


@pytest.mark.parametrize(
    "value", ["x" * 10**6, "\0" * 10**6, ["a" * 1000] * 1000, {"k" * 500: [[[[[1]]]]] * 99}, 10**4000]
)
def test_what_is_quoted_is_short(value: object) -> None:
    assert len(quoted(value)) < 900


def test_short_values_are_quoted_whole() -> None:
    assert quoted("ft:tiny::1") == "'ft:tiny::1'"
    assert quoted("a" * 90) == repr("a" * 90)


def test_no_message_is_as_long_as_what_was_sent() -> None:
    error = InvalidRequest("x" * 10**6, param="y" * 10**6)
    assert len(json.dumps(error.body())) < 2500
    assert len(str(error)) < 2500
