"""Several choices at temperature 0, which OpenAI answers and vLLM refuses."""

from __future__ import annotations

from typing import Any

_GREEDY_BELOW = 1e-5
"""vLLM takes a lower temperature for 0."""


def with_greedy_choices(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat or a completion; where it asks for several choices at temperature 0, each of them is sampled
    from the one most likely token, so that vLLM answers.

    Log-probabilities do not change, since vLLM computes them before it applies the temperature.
    """
    n, temperature = body.get("n"), body.get("temperature")
    is_greedy = isinstance(temperature, int | float) and 0 <= temperature < _GREEDY_BELOW
    if not (isinstance(n, int) and n > 1 and is_greedy) or body.get("use_beam_search"):
        return body
    return {**body, "temperature": 1.0, "top_k": 1}
