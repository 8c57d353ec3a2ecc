"""Starts what graders compute, in processes with limits (`tunewright.apart`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tunewright.apart import CutOff, OutOfMemory, call_apart
from tunewright.errors import InvalidRequest
from tunewright.graders.checking import check
from tunewright.graders.grading import Answered, Item, grade, grade_all, requests, requests_for_all
from tunewright.graders.models import AnyGrader, ScoreModelGrader, singles
from tunewright.graders.outcome import Outcome, failed
from tunewright.graders.sandbox import Mode
from tunewright.graders.templates import Sample

Made = TypeVar("Made")

_CHECK_SECONDS = 5
_GRADE_SECONDS = 20
"""Processor time for one answer, whose graders have limits of their own beside it."""
_AT_A_TIME = 16
"""Answers that one process grades."""


def check_grader(grader: AnyGrader, param: str, mode: Mode) -> None:
    """Raises InvalidRequest, whose parameter begins with `param`, for a grader that cannot work here."""
    try:
        call_apart(check, [], grader, param, mode, seconds=_CHECK_SECONDS)
    except CutOff:
        raise InvalidRequest(f"Invalid {param}: checking it took too long.", param=param) from None
    except OutOfMemory as error:
        raise InvalidRequest(f"Invalid {param}: {error}.", param=param) from None


def requests_to_models(grader: AnyGrader, sample: Sample, item: Item) -> dict[str, dict[str, Any] | Outcome]:
    """The requests to models that grade, by the names of the graders; where one cannot be made, its outcome."""
    if not any(isinstance(one, ScoreModelGrader) for one in singles(grader).values()):
        return {}
    return call_apart(requests, [], grader, sample, item, seconds=_CHECK_SECONDS)


def grade_apart(grader: AnyGrader, sample: Sample, item: Item, answered: Answered, mode: Mode) -> Outcome:
    """The reward of one answer; what models have answered is in `answered`."""
    try:
        return call_apart(grade, [], grader, sample, item, answered, mode, seconds=_GRADE_SECONDS)
    except (CutOff, OutOfMemory) as error:
        return failed("other_error", f"the grader was ended: {error}")


def requests_of_batch(
    grader: AnyGrader,
    samples: Sequence[Sample],
    items: Sequence[Item],
    on_part: Callable[[], None] = lambda: None,
) -> list[dict[str, dict[str, Any] | Outcome]]:
    """`requests_to_models` for several answers. An answer whose requests take too long or too much memory has the
    outcome of that instead. `on_part` is called as the work goes on."""
    return _in_parts(
        len(samples),
        on_part,
        lambda part: call_apart(
            requests_for_all,
            [],
            grader,
            samples[part],
            items[part],
            seconds=_CHECK_SECONDS * len(samples[part]),
        ),
        lambda n: _requests_or_failures(grader, samples[n], items[n]),
    )


def _requests_or_failures(
    grader: AnyGrader, sample: Sample, item: Item
) -> dict[str, dict[str, Any] | Outcome]:
    try:
        return requests_to_models(grader, sample, item)
    except (CutOff, OutOfMemory) as error:
        outcome = failed("other_error", f"the request to the model could not be made: {error}")
        asking = {name for name, one in singles(grader).items() if isinstance(one, ScoreModelGrader)}
        return dict.fromkeys(asking, outcome)


def grade_batch(
    grader: AnyGrader,
    samples: Sequence[Sample],
    items: Sequence[Item],
    mode: Mode,
    on_part: Callable[[], None] = lambda: None,
    *,
    answered: Sequence[Answered] | None = None,
) -> list[Outcome]:
    """The rewards of several answers; what models have answered about each is in `answered`. Where a process is ended,
    each of its answers is graded in one of its own. `on_part` is called as the work goes on."""
    answers = answered if answered is not None else [{}] * len(samples)
    return _in_parts(
        len(samples),
        on_part,
        lambda part: call_apart(
            grade_all, [], grader, samples[part], items[part], answers[part], mode,
            seconds=_GRADE_SECONDS * len(samples[part]),
        ),
        lambda n: grade_apart(grader, samples[n], items[n], answers[n], mode),
    )  # fmt: skip


def _in_parts(
    number: int,
    on_part: Callable[[], None],
    together: Callable[[slice], Sequence[Made]],
    alone: Callable[[int], Made],
) -> list[Made]:
    """What is made of each of so many answers: of some `together` in a process, or of each `alone` where that was
    ended."""
    made: list[Made] = []
    for begin in range(0, number, _AT_A_TIME):
        on_part()
        part = range(number)[begin : begin + _AT_A_TIME]
        try:
            made += together(slice(part.start, part.stop))
        except (CutOff, OutOfMemory):
            made += map(alone, part)
    return made
