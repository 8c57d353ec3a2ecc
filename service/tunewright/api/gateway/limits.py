"""How much one generation may ask for: text within the model's context, choices, and grammars that compile soon.

vLLM renders and tokenizes requests in one thread, and compiles grammars in a few: one request without limits would keep
everybody else's waiting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tunewright.errors import InvalidRequest

LONGEST_TOKEN = 32
"""Characters for each token of the context. Text has about 4; only long runs of one character have more than this."""
_TEXT_AT_ONCE = 2**21
"""Characters of several prompts together, where one prompt may not have as many: about a second to tokenize."""
CHOICES = 32
"""How often a request may ask for the whole context, where the operator sets no limit."""
_LARGEST_GRAMMAR = 2**16
_LARGEST_TOOLS = 2**18
_LONGEST_PATTERN = 2**11
_MOST_REPEATS = 10_000
_MOST_OPTIONS = 1000
_LONGEST_OPTION = 1000

_TEXTS = ("prompt", "messages", "input", "instructions", "tools", "suffix", "documents")
_REPEATS = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def check_limits(
    body: dict[str, Any], context: int | None, most_tokens: int | None, size: int | None = None
) -> None:
    """Raises InvalidRequest. `context`: of the model, in tokens, where it is known; `most_tokens`: the operator's;
    `size`: bytes of the body, if they are known, which has at most as many characters."""
    if context is not None:
        if size is None or size > context * LONGEST_TOKEN:
            _check_text(body, context)
        _check_choices(body, context, most_tokens or CHOICES * context)
    _check_grammars(body)


def _check_text(body: dict[str, Any], context: int) -> None:
    most = context * LONGEST_TOKEN
    total = 0
    for key in _TEXTS:
        value = body.get(key)
        prompts = value if key in ("prompt", "input") and isinstance(value, list) else [value]
        for prompt in prompts:
            length = sum(map(len, _strings(prompt)))
            total += length
            if length > most:
                raise InvalidRequest(
                    f"`{key}` has {length} characters, which is more than {context} tokens, the model's context, can "
                    f"have ({LONGEST_TOKEN} each): shorten it.",
                    param=key,
                    code="context_length_exceeded",
                )
    if total > max(most, _TEXT_AT_ONCE):
        raise InvalidRequest(
            f"The body has {total} characters of text: send at most {max(most, _TEXT_AT_ONCE)} at once.",
            code="context_length_exceeded",
        )


def _strings(value: Any) -> Iterator[str]:
    """The texts in a JSON value, without those of images and other media."""
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)


def _check_choices(body: dict[str, Any], context: int, most: int) -> None:
    choices = max(_count(body.get("n"), 1), _count(body.get("best_of"), 1))
    each = min(
        context,
        _count(body.get("max_completion_tokens"), _count(body.get("max_tokens"), context)),
    )
    if choices > 1 and choices * each > most:
        raise InvalidRequest(
            f"The request asks for {choices} choices of up to {each} tokens, which is more than the {most} tokens that "
            "one request may ask for (--max-generated-tokens): lower `n` or `max_tokens`.",
            param="n",
        )


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _check_grammars(body: dict[str, Any]) -> None:
    for key in ("response_format", "structured_outputs", "text"):
        value = body.get(key)
        if isinstance(value, dict):
            _check_size(key, value, _LARGEST_GRAMMAR)
            _check_grammar(key, value)
    tools = body.get("tools")
    if isinstance(tools, list):
        _check_size("tools", tools, _LARGEST_TOOLS)
        _check_grammar("tools", tools)


def _check_size(param: str, value: Any, most: int) -> None:
    if len(json.dumps(value)) > most:
        raise InvalidRequest(f"`{param}` has more than {most} characters: make it smaller.", param=param)


def _check_grammar(param: str, value: Any) -> None:
    """Walks through a schema, or any other grammar: patterns, lengths, and lists of options are bounded."""
    if isinstance(value, list):
        for item in value:
            _check_grammar(param, item)
        return
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("pattern", "regex") and isinstance(item, str):
            _check_pattern(param, item)
        elif key == "grammar" and isinstance(item, str):
            _check_repeats(param, item)
        elif key in _LENGTHS and isinstance(item, int | float) and item > _MOST_REPEATS:
            raise InvalidRequest(
                f"`{param}` has {key} {item}: at most {_MOST_REPEATS} is allowed.", param=param
            )
        elif key in ("choice", "enum") and isinstance(item, list):
            _check_options(param, key, item)
        else:
            _check_grammar(param, item)


def _check_pattern(param: str, pattern: str) -> None:
    if len(pattern) > _LONGEST_PATTERN:
        raise InvalidRequest(
            f"`{param}` has a pattern of {len(pattern)} characters: at most {_LONGEST_PATTERN} are allowed.",
            param=param,
        )
    _check_repeats(param, pattern)


def _check_repeats(param: str, pattern: str) -> None:
    for match in _REPEATS.finditer(pattern):
        if any(len(number) > 5 or int(number) > _MOST_REPEATS for number in match.groups() if number):
            raise InvalidRequest(
                f"`{param}` repeats a pattern more than {_MOST_REPEATS} times ({match[0][:40]}).", param=param
            )


def _check_options(param: str, key: str, options: list[Any]) -> None:
    if len(options) > _MOST_OPTIONS:
        raise InvalidRequest(
            f"`{param}` has {len(options)} values in {key}: at most {_MOST_OPTIONS} are allowed.", param=param
        )
    if any(isinstance(option, str) and len(option) > _LONGEST_OPTION for option in options):
        raise InvalidRequest(
            f"`{param}` has a value of more than {_LONGEST_OPTION} characters in {key}: make it shorter.",
            param=param,
        )
