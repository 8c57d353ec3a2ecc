"""What errors quote is bounded, and which of them are temporary."""

from __future__ import annotations

import errno
import json

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from tunewright.errors import InvalidRequest, StorageUnavailable, quoted
from tunewright.jobs.gateway import Unanswered, not_answered
from tunewright.scheduler.temporary import is_temporary


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


@pytest.mark.parametrize("kind", StorageUnavailable.__subclasses__())
def test_storage_that_cannot_be_used_now_is_tried_again(kind: type[StorageUnavailable]) -> None:
    assert is_temporary(kind("not now"))
    unanswered = not_answered(kind.status, b"")
    assert isinstance(unanswered, Unanswered)
    assert not unanswered.is_fault, "however often a job's process has asked"


def test_errors_of_libraries_may_be_temporary() -> None:
    assert is_temporary(OSError(errno.ENOSPC, "No space left on device"))
    assert is_temporary(OperationalError("", {}, Exception("the statement was cancelled")))
    assert not is_temporary(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    assert not is_temporary(IntegrityError("", {}, Exception("it exists")))
