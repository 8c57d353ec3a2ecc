"""How much one generation may ask for: text within the model's context, choices, and grammars that compile soon.

vLLM renders and tokenizes requests in one thread, and compiles grammars in a few: one request without limits would keep
everybody else's waiting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tunewright.api.gateway.grammar_costs import grammar_cost
from tunewright.api.gateway.tools import compiled_tools
from tunewright.errors import InvalidRequest, cut

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
_MOST_PLACES = 2048
"""Of patterns and lengths, together: about 10 seconds on one core with a vocabulary of 32,000."""
_MOST_OPTIONS = 1000
_LONGEST_OPTION = 1000

_TEXTS = ("prompt", "messages", "input", "instructions", "tools", "suffix", "documents")
_REPEATS = re.compile(r"\{\s*+(\d*+)\s*+,?\s*+(\d*+)\s*+\}")
"""Possessive throughout: else the time grows with the fourth power of the white space behind a brace."""
_MOST_LEVELS = 64
"""Of a schema that is sent as text; in the body itself `bodies.py` bounds them. The time to compile grows with their
cube."""
_SCHEMAS_AS_TEXT = ("json", "structural_tag")
_MOST_ITEMS = {"stop": 128, "bad_words": 256, "stop_token_ids": 1024, "logit_bias": 2048}
"""What vLLM looks through, or builds anew, for each token of an answer, or in each batch."""
_LONGEST_ITEM = 1000
_LONGEST_REPETITION = 128
"""Tokens: vLLM looks for repetitions in its scheduler, in the square of their length for each token."""
_COMPLETION_TOKENS = 16
"""Of a completion that names no number, as in OpenAI's API."""
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
    _check_lists(body)
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
    texts = max(whole(body.get("n"), 1), whole(body.get("best_of"), 1)) * prompts(body)
    default = _COMPLETION_TOKENS if "prompt" in body else context
    asked = whole(body.get("max_completion_tokens"), whole(body.get("max_tokens"), default))
    each = min(context, asked)
    if texts > 1 and texts * each > most:
        several = prompts(body) > 1
        raise InvalidRequest(
            f"The request asks for {texts} {'texts' if several else 'choices'} of up to {each} tokens, which is more "
            f"than the {most} tokens that one request may ask for (--max-generated-tokens): "
            f"{'send fewer prompts at once, or lower' if several else 'lower'} `n` or `max_tokens`.",
            param="prompt" if several else "n",
        )


def prompts(body: dict[str, Any]) -> int:
    """How many prompts the request has: texts, or lists of tokens."""
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def whole(value: Any, default: int) -> int:
    """A number of the request as vLLM reads it, from text too, where it is positive; else `default`."""
    try:
        number = default if isinstance(value, bool) or value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if number > 0 else default


def _check_lists(body: dict[str, Any]) -> None:
    for key, most in _MOST_ITEMS.items():
        value = body.get(key)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | dict):
            continue
        if len(items) > most:
            raise InvalidRequest(f"`{key}` has {len(items)} values: at most {most} are allowed.", param=key)
        if any(isinstance(item, str) and len(item) > _LONGEST_ITEM for item in items):
            raise InvalidRequest(
                f"`{key}` has a value of more than {_LONGEST_ITEM} characters: make it shorter.", param=key
            )
    repetition = body.get("repetition_detection")
    for key, size in repetition.items() if isinstance(repetition, dict) else ():
        if whole(size, 0) > _LONGEST_REPETITION:
            raise InvalidRequest(
                f"`repetition_detection` has a {cut(key, 40)} above {_LONGEST_REPETITION}, which is the most.",
                param="repetition_detection",
            )


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
    _check_cost(body)


def _check_cost(body: dict[str, Any]) -> None:
    parts = {key: body.get(key) for key in ("response_format", "structured_outputs", "text")}
    costs = {key: grammar_cost(part) for key, part in parts.items() if isinstance(part, dict)}
    costs["tools"] = grammar_cost(compiled_tools(body))
    total = sum(costs.values())
    if total > _MOST_PLACES:
        raise InvalidRequest(
            f"Patterns and lengths of the request have {total} places to compile, of at most {_MOST_PLACES}: a length "
            "of 100 (`minLength`, `maxLength`, {1,100}) has 100, and a class like [a-z]+ has 3. Leave out those that "
            "can be checked in the answer, or use fewer different lengths.",
            param=max(costs, key=lambda key: costs[key]),
        )


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
        elif key == "patternProperties" and isinstance(item, dict):
            for pattern, schema in item.items():
                _check_pattern(param, pattern)
                _check_grammar(param, schema)
        elif key == "grammar" and isinstance(item, str):
            _check_repeats(param, item)
        elif key in _LENGTHS and isinstance(item, int | float) and item > _MOST_REPEATS:
            raise InvalidRequest(
                f"`{param}` has {key} {item}: at most {_MOST_REPEATS} is allowed.", param=param
            )
        elif key in ("choice", "enum") and isinstance(item, list):
            _check_options(param, key, item)
        elif key in _SCHEMAS_AS_TEXT and isinstance(item, str):
            _check_grammar(param, _read(param, item))
        else:
            _check_grammar(param, item)


def _read(param: str, text: str) -> Any:
    """A schema that is sent as text. What is no JSON is left to the engine."""
    try:
        schema = json.loads(text)
    except ValueError:
        return None
    except RecursionError:
        schema = None
        levels = _MOST_LEVELS + 1
    else:
        levels = _levels(schema)
    if levels > _MOST_LEVELS:
        raise InvalidRequest(
            f"`{param}` has a schema of more than {_MOST_LEVELS} levels: make it flatter, with $defs for example.",
            param=param,
        )
    return schema


def _levels(value: Any) -> int:
    """How deep objects and lists lie in each other, counted up to one more than are allowed."""
    level, depth = [value], 0
    while depth <= _MOST_LEVELS and (inner := [part for part in level if isinstance(part, dict | list)]):
        depth += 1
        level = [child for part in inner for child in (part.values() if isinstance(part, dict) else part)]
    return depth


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
