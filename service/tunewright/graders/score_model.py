"""`score_model`: the request to the model that grades, and the score in its answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tunewright.graders.models import SamplingParams, ScoreModelGrader
from tunewright.graders.outcome import Outcome, failed
from tunewright.graders.templates import Sample, filled

_MOST_TOKENS = 256
_KEY = "result"
_NO_COMPLETION = "the engine's answer is no chat completion"


def request(grader: ScoreModelGrader, item: Mapping[str, Any], sample: Sample) -> dict[str, Any]:
    """The body of a chat completion whose answer is `{"result": score}`. Raises as `templates.filled` does."""
    sampling = grader.sampling_params or SamplingParams()
    given = {"seed": sampling.seed, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return {
        "model": grader.model,
        "messages": [
            {"role": message.role, "content": "".join(filled(text, item, sample) for text in message.texts)}
            for message in grader.input
        ],
        "max_tokens": sampling.max_completions_tokens or _MOST_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "score",
                "schema": {
                    "type": "object",
                    "properties": {_KEY: {"type": "number"}},
                    "required": [_KEY],
                    "additionalProperties": False,
                },
            },
        },
        **{name: value for name, value in given.items() if value is not None},
    }


def outcome(grader: ScoreModelGrader, answer: bytes) -> Outcome:
    """The score in the answer of a chat completion."""
    try:
        return outcome_of(grader, json.loads(answer))
    except ValueError:
        return failed("model_grader_server_error", _NO_COMPLETION)


def outcome_of(grader: ScoreModelGrader, body: Any) -> Outcome:
    """The score in a chat completion."""
    try:
        message = body["choices"][0]["message"]
        used = body.get("usage") or {}
        tokens = {grader.model: int(used.get("total_tokens") or 0)}
        if message.get("refusal"):
            return _with_tokens(failed("model_grader_refusal_error", str(message["refusal"])), tokens)
    except (ValueError, LookupError, TypeError, AttributeError):
        return failed("model_grader_server_error", _NO_COMPLETION)
    content = message.get("content")
    try:
        score = json.loads(content)[_KEY]
        score = float(score) if isinstance(score, int | float) and not isinstance(score, bool) else math.nan
    except (ValueError, LookupError, TypeError, OverflowError):
        score = math.nan
    least, most = grader.range or (0.0, 1.0)
    if not least <= score <= most:
        text = (
            f"{grader.model} answered {str(content)[:200]!r}, which has no score from {least:g} to {most:g}"
        )
        return _with_tokens(failed("model_grader_parse_error", text), tokens)
    return Outcome(score, tokens=tokens)


def _with_tokens(outcome: Outcome, tokens: Mapping[str, int]) -> Outcome:
    return Outcome(outcome.reward, outcome.errors, tokens=tokens)
