"""The tokens of a generation, as vLLM tells them. A stream tells them only where it is asked to, so the gateway asks,
and keeps from the client what the client did not ask for (docs/decisions/0050)."""

from __future__ import annotations

import re
from typing import Any

USAGE = b'"usage":{'
"""How the object with the tokens begins. In a text the quotes would be escaped."""
_LENGTH = 512
"""Bytes of it in which the tokens are."""
_NUMBER = re.compile(rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens)": ?(\d{1,15})')
_NO_CHOICES = b'"choices":[]'
_TELLS_AT_THE_END = frozenset({"/v1/chat/completions", "/v1/completions"})


def with_usage(path: str, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The body, which asks for the usage of a stream, and whether the client did not. What is no valid option is left
    for vLLM to refuse."""
    options = body.get("stream_options")
    if path not in _TELLS_AT_THE_END or body.get("stream") is not True:
        return body, False
    if options is None:
        options = {}
    if not isinstance(options, dict) or options.get("include_usage") not in (None, False):
        return body, False
    # this one has had no effect until now
    others = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    return {**body, "stream_options": {**others, "include_usage": True}}, True


def usage_of(answer: bytes) -> tuple[int, int] | None:
    """The tokens of the prompt and of the answer, as the last `usage` in it says; None where it has none."""
    at = answer.rfind(USAGE)
    if at < 0:
        return None
    prompt = generated = 0
    for name, number in _NUMBER.findall(answer, at, at + _LENGTH):
        if name in (b"prompt_tokens", b"input_tokens"):
            prompt = int(number)
        else:
            generated = int(number)
    return prompt, generated


def without_usage(events: bytes) -> tuple[bytes, int]:
    """Whole events without those that have a usage and no choices, and how many these were."""
    parts = events.split(b"\n\n")
    kept = [event for event in parts if not (USAGE in event and _NO_CHOICES in event)]
    return b"\n\n".join(kept), len(parts) - len(kept)
