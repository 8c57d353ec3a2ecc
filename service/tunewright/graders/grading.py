"""The reward of an answer. To be called in a process with limits (`calling.py`): graders and answers are strangers'."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunewright.graders import formula, sandbox, score_model
from tunewright.graders.models import (
    AnyGrader,
    JsonSchemaGrader,
    MultiGrader,
    PythonGrader,
    RegexGrader,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextSimilarityGrader,
)
from tunewright.graders.outcome import Outcome, failed, merged
from tunewright.graders.schemas import allows
from tunewright.graders.similarity import similarity
from tunewright.graders.templates import NoJson, Sample, TooLong, UnknownVariable, filled
from tunewright.graders.time_limit import TookTooLong, time_limit

Item = Mapping[str, Any]
Answered = Mapping[str, Outcome]
"""What models that grade have answered, by the name of the grader."""
_COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def grade(grader: AnyGrader, sample: Sample, item: Item, answered: Answered, mode: sandbox.Mode) -> Outcome:
    """The reward of the answer `sample` to the row `item`."""
    if not isinstance(grader, MultiGrader):
        return _grade_one(grader, grader.name, sample, item, answered, mode)
    outcomes = {
        name: _grade_one(one, name, sample, item, answered, mode) for name, one in grader.by_name.items()
    }
    rewards = {name: outcome.reward for name, outcome in outcomes.items()}
    errors = merged(outcome.errors for outcome in outcomes.values())
    tokens: dict[str, int] = {}
    for outcome in outcomes.values():
        tokens |= {model: tokens.get(model, 0) + count for model, count in outcome.tokens.items()}
    if errors.names:
        return Outcome(0.0, errors, rewards, tokens)
    try:
        return Outcome(formula.computed(grader.calculate_output, rewards), errors, rewards, tokens)
    except formula.NoResult as error:
        return Outcome(0.0, failed("formula_parse_error", str(error)).errors, rewards, tokens)


def requests(grader: AnyGrader, sample: Sample, item: Item) -> dict[str, dict[str, Any] | Outcome]:
    """The requests to models that grade, by the names of the graders; where one cannot be made, its outcome."""
    asked: dict[str, dict[str, Any] | Outcome] = {}
    graders = grader.by_name if isinstance(grader, MultiGrader) else {grader.name: grader}
    for name, one in graders.items():
        if isinstance(one, ScoreModelGrader):
            try:
                asked[name] = score_model.request(one, item, sample)
            except ValueError as error:
                asked[name] = _unfilled(error)
    return asked


def grade_all(
    grader: AnyGrader,
    samples: Sequence[Sample],
    items: Sequence[Item],
    answered: Sequence[Answered],
    mode: sandbox.Mode,
) -> list[Outcome]:
    """The rewards of several answers."""
    return [grade(grader, *one, mode) for one in zip(samples, items, answered, strict=True)]


def requests_for_all(
    grader: AnyGrader, samples: Sequence[Sample], items: Sequence[Item]
) -> list[dict[str, dict[str, Any] | Outcome]]:
    """The `requests` for several answers."""
    return [requests(grader, sample, item) for sample, item in zip(samples, items, strict=True)]


def _grade_one(
    grader: SingleGrader, name: str, sample: Sample, item: Item, answered: Answered, mode: sandbox.Mode
) -> Outcome:
    if name in answered:
        return answered[name]
    try:
        match grader:
            case StringCheckGrader():
                texts = (filled(text, item, sample) for text in (grader.input, grader.reference))
                return Outcome(float(_COMPARISONS[grader.operation](*texts)))
            case TextSimilarityGrader():
                texts = (filled(text, item, sample) for text in (grader.input, grader.reference))
                return Outcome(similarity(grader.evaluation_metric, *texts))
            case RegexGrader():
                return _matched(grader, filled(grader.input, item, sample))
            case JsonSchemaGrader():
                return _allowed(grader, filled(grader.input, item, sample))
            case PythonGrader():
                return sandbox.run(grader.source, sample, item, mode)
            case ScoreModelGrader():
                return failed("model_grader_server_error", f"{grader.model} was not asked")
    except ValueError as error:
        return _unfilled(error)


def _unfilled(error: ValueError) -> Outcome:
    if isinstance(error, UnknownVariable):
        return failed("invalid_variable_error", str(error))
    if isinstance(error, NoJson):
        return failed("sample_parse_error", str(error))
    if isinstance(error, TooLong):
        return failed("truncated_observation_error", str(error))
    return failed("other_error", str(error))


def _matched(grader: RegexGrader, text: str) -> Outcome:
    try:
        with time_limit():
            pattern = re.compile(grader.pattern)
            found = pattern.fullmatch(text) if grader.match == "full" else pattern.search(text)
    except TookTooLong as error:
        return failed("other_error", f"the pattern of {grader.name}: {error} on one answer")
    except (re.error, RecursionError, OverflowError) as error:
        return failed("other_error", f"the pattern of {grader.name}: {error}")
    return Outcome(float(found is not None))


def _allowed(grader: JsonSchemaGrader, text: str) -> Outcome:
    try:
        value = Sample(text).json
    except NoJson:
        return Outcome(0.0)
    try:
        with time_limit():
            return Outcome(float(allows(grader.json_schema, value)))
    except TookTooLong as error:
        return failed("other_error", f"the schema of {grader.name}: {error} on one answer")
    except Exception as error:  # the library's, for numbers that are too large and the like
        return failed("other_error", f"the schema of {grader.name}: {error}")
