"""Checks of a grader that take time on bad input: patterns, schemas and programs. For a process with limits."""

from __future__ import annotations

import re
import warnings

from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.graders.models import (
    AnyGrader,
    JsonSchemaGrader,
    MultiGrader,
    PythonGrader,
    RegexGrader,
    SingleGrader,
)
from tunewright.graders.sandbox import Mode, refusal
from tunewright.graders.schemas import check_schema


def check(grader: AnyGrader, param: str, mode: Mode) -> None:
    """Raises InvalidRequest, whose parameter begins with `param`, the name of the grader's field."""
    if not isinstance(grader, MultiGrader):
        _check_one(grader, param, mode)
        return
    for name, one in grader.by_name.items():
        _check_one(one, place_of(grader, name, param), mode)


def place_of(grader: AnyGrader, name: str, param: str) -> str:
    """The parameter of one of the grader's `singles`."""
    if not isinstance(grader, MultiGrader):
        return param
    return f"{param}.graders.{name}" if isinstance(grader.graders, dict) else f"{param}.graders"


def _check_one(grader: SingleGrader, param: str, mode: Mode) -> None:
    match grader:
        case RegexGrader():
            try:
                with warnings.catch_warnings(action="ignore"):
                    re.compile(grader.pattern)
            except (re.error, OverflowError) as error:
                raise _wrong(f"{param}.pattern", f"it is no regular expression: {error}") from None
            except RecursionError:
                raise _wrong(f"{param}.pattern", "it is nested too deeply") from None
        case JsonSchemaGrader():
            try:
                check_schema(grader.json_schema)
            except ValueError as error:
                raise _wrong(f"{param}.json_schema", str(error)) from None
        case PythonGrader():
            if reason := refusal(mode):
                raise UnsupportedFeature(f"The grader {grader.name!r} is a program: {reason}.", param=param)
            _check_source(grader.source, f"{param}.source")
        case _:
            pass


def _check_source(source: str, param: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            code = compile(source, "grader.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _wrong(param, f"line {error.lineno}: {error.msg}") from None
    except (RecursionError, MemoryError):
        raise _wrong(param, "it is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise _wrong(param, f"it cannot be compiled: {error}") from None
    if "grade" not in code.co_names:
        raise _wrong(param, "it defines no function grade(sample, item)")


def _wrong(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid {param}: {message}.", param=param)
