"""The tokens of a generation, as vLLM tells them. A stream tells them only where it is asked to, so the gateway asks,
and keeps from the client what the client did not ask for (docs/decisions/0050)."""

from __future__ import annotations

import json
import re
from typing import Any

from tunewright.errors import InvalidRequest

USAGE = b'"usage":{'
"""How the object with the tokens begins. In a text the quotes would be escaped."""
_LENGTH = 512
"""Bytes of it in which the tokens are."""
_NUMBER = re.compile(rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens)": ?(\d{1,15})')
_NO_CHOICES = b'"choices":[]'
FINISHED = b'"finish_reason":"'
"""What the last event of each choice has."""
_FINGERPRINT = re.compile(rb'"system_fingerprint": ?"[^"]*"')
_TELLS_AT_THE_END = frozenset({"/v1/chat/completions", "/v1/completions"})
_ENDS_OF_RESPONSES = (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")


def check_stream(body: dict[str, Any]) -> None:
    """vLLM takes texts and numbers for booleans as well, and would stream what is not counted as a stream. Raises
    InvalidRequest."""
    options = body.get("stream_options")
    usage = options.get("include_usage") if isinstance(options, dict) else None
    for name, value in (("stream", body.get("stream")), ("stream_options.include_usage", usage)):
        if value is not None and not isinstance(value, bool):
            raise InvalidRequest(f"Invalid {name}: true or false is wanted.", param=name)


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


def usage_of_end(events: bytes) -> tuple[int, int] | None:
    """`usage_of` the event that ends a response, where it is among these: the others repeat the client's tools, which
    may have a property of that name."""
    for event in events.split(b"\n\n"):
        if event.startswith(_ENDS_OF_RESPONSES):
            return usage_of(event.partition(b"data:")[2])
    return None


def usage_of(answer: bytes) -> tuple[int, int] | None:
    """The tokens of the prompt and of the answer, as its `usage` says; None where it has none."""
    at = answer.rfind(USAGE)
    if at < 0:
        return None
    if answer.find(USAGE) != at and (told := _told(answer)):  # a response repeats the client's tools
        return told
    prompt = generated = 0
    for name, number in _NUMBER.findall(answer, at, at + _LENGTH):
        if name in (b"prompt_tokens", b"input_tokens"):
            prompt = int(number)
        else:
            generated = int(number)
    return prompt, generated


def _told(answer: bytes) -> tuple[int, int] | None:
    """As `usage_of`, of an answer or of the response in an event; None where it is no JSON, as several events."""
    try:
        found = json.loads(answer)
    except ValueError:
        return None
    of = found.get("response", found) if isinstance(found, dict) else None
    if not isinstance(of, dict):
        return None
    usage: dict[str, int] = of["usage"] if isinstance(of.get("usage"), dict) else {}
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    return prompt, usage.get("completion_tokens", usage.get("output_tokens", 0))


def without_usage(events: bytes) -> tuple[bytes, int]:
    """Whole events without those that have a usage and no choices, and how many these were. The fingerprint in them,
    which vLLM sends with the last event only, goes to the event before: there it is in a stream without a usage."""
    kept: list[bytes] = []
    parts = events.split(b"\n\n")
    for event in parts:
        if not (USAGE in event and _NO_CHOICES in event):
            kept.append(event)
        elif (found := _FINGERPRINT.search(event)) and kept and FINISHED in kept[-1]:
            kept[-1] = kept[-1].removesuffix(b"}") + b"," + found[0] + b"}"
    return b"\n\n".join(kept), len(parts) - len(kept)


def unfinished(events: bytes) -> tuple[bytes, bytes]:
    """Whole events in two parts. The second is the last event, where a choice ends with it, else empty: the usage may
    come next, and its fingerprint belongs to that event."""
    cut = events.rfind(b"\n\n", 0, -2) + 2 if events.count(b"\n\n") > 1 else 0
    return (events[:cut], events[cut:]) if FINISHED in events[cut:] else (events, b"")
