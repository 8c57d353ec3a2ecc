"""What the body of a generation must be before vLLM sees it: JSON that can be passed on, and tokens that exist.

Everything else is vLLM's business, which answers with an error of its own. What could end vLLM is refused here.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from typing import Any

from tunewright.errors import InvalidRequest, TooLarge, UnsupportedFeature

_MOST_LEVELS = 128
"""vLLM takes JSON schemas of up to 64 levels, and wraps them in a few."""
_LONGEST_NAME = 512
_MOST_VALUES, _MOST_NAMES, _MOST_DECIMALS = 2**20, 2**18, 2**16
"""Reading them holds the interpreter, for this many up to a tenth of a second. Objects, lists and the names in objects
take longer than other values, and decimal numbers longer still."""
_SLICE = 2**14
"""Values of a list that are written at once, which holds the interpreter."""
LARGE = 2**16
"""Bytes from which on a body is read and written in a thread, so that the event loop goes on."""
_TOKEN_LISTS = ("prompt", "input", "stop_token_ids", "allowed_token_ids", "logprob_token_ids")

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS_AS_ZEROS = bytes(48 if chr(byte).isdecimal() else 32 for byte in range(128)) + b" " * 128
_LONG_NUMBER = b"0" * 19


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not valid JSON")


def _integer(digits: str) -> int:
    value = int(digits)
    if not -(2**63) <= value < 2**64:  # the range that vLLM can pass between its processes
        raise ValueError(f"the integer {digits[:24]}... does not fit into 64 bits")
    return value


def _decode(text: str, *, has_long_numbers: bool) -> Any:
    """Parse the text. Raises ValueError, RecursionError and TooLarge."""
    decimals = 0

    def decimal(digits: str) -> float:
        nonlocal decimals
        decimals += 1
        if decimals > _MOST_DECIMALS:
            raise TooLarge(f"The body has more than {_MOST_DECIMALS} decimal numbers: send less at once.")
        return float(digits)

    # `_integer` makes it many times slower, so it is used only where there are long numbers.
    whole = _integer if has_long_numbers else None
    return json.JSONDecoder(parse_constant=_refuse, parse_float=decimal, parse_int=whole).decode(text)


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), check_circular=False).encode


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse a request's body into a JSON object that names a model. Where a key is repeated, its last value counts.

    Raises InvalidRequest where the body is not UTF-8, not JSON, not an object, nested too deeply or without a model;
    TooLarge where it has too many values; UnsupportedFeature where it has a chat template.
    """
    if raw.count(b",") > _MOST_VALUES:  # also counts commas in strings; base64 images have none
        raise TooLarge(f"The body has more than {_MOST_VALUES} values: send less at once.")
    if raw.count(b"\\u") > _MOST_VALUES:
        raise TooLarge(f"The body has more than {_MOST_VALUES} escaped characters: send them as UTF-8.")
    containers = raw.count(b"[") + raw.count(b"{")  # also in strings
    if containers + raw.count(b":") > _MOST_NAMES:
        raise TooLarge(f"The body has more than {_MOST_NAMES} objects, lists and names: send less at once.")
    try:
        has_long_numbers = _LONG_NUMBER in raw.translate(_DIGITS_AS_ZEROS)
        body = _decode(raw.decode(), has_long_numbers=has_long_numbers)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # includes UnicodeDecodeError, and integers of more than 4300 digits
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    # The depth is computed only where there are enough brackets to exceed the limit.
    if containers > _MOST_LEVELS and _is_deep(body):
        raise _too_deep()
    if _HALF_PAIR.search(raw):
        _check_characters(body)
    _check_model(body.get("model"))
    if not isinstance(body.get("structured_outputs", {}), dict | None):  # vLLM fails with a 500 on these
        raise InvalidRequest("`structured_outputs` must be an object.", param="structured_outputs")
    given = body.get("chat_template_kwargs")
    if "chat_template" in body or (isinstance(given, dict) and "chat_template" in given):
        raise UnsupportedFeature(
            "A request cannot bring a chat template; train with one and its model uses it.",
            param="chat_template",
        )
    return body


def write_body(body: dict[str, Any], *, in_parts: bool = False) -> bytes:
    """Encode the body for vLLM. Raises InvalidRequest where a number is not finite, as 1e999 is after parsing.

    `in_parts` is slower, and lets other threads run in between.
    """
    try:
        return (_written(body) if in_parts else _encode(body)).encode()
    except ValueError:
        raise InvalidRequest("A number in the body is too large.", code="invalid_json") from None


def _written(value: Any) -> str:
    """The same as `_encode`, which is one call into C."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_encode(name)}:{_written(part)}" for name, part in value.items()) + "}"
    if not isinstance(value, list):
        return _encode(value)
    if any(isinstance(part, dict | list) for part in value):
        return "[" + ",".join(map(_written, value)) + "]"
    slices = (value[at : at + _SLICE] for at in range(0, len(value), _SLICE))
    return "[" + ",".join(_encode(part)[1:-1] for part in slices) + "]"


def check_tokens(body: dict[str, Any], vocabulary: int) -> None:
    """Raises InvalidRequest where the body has a token id outside the model's vocabulary of `vocabulary` tokens.

    vLLM compares some ids with the tokenizer's vocabulary, which may be larger, and older versions do not check others
    at all. Used as an index into a tensor, such an id ends the engine.
    """
    for key in _TOKEN_LISTS:
        _check_ids(key, body.get(key), vocabulary)
    bias = body.get("logit_bias")
    if isinstance(bias, dict):
        _check_ids("logit_bias", _integers(bias), vocabulary)
    transfer = body.get("kv_transfer_params")
    if isinstance(transfer, dict):
        _check_ids("kv_transfer_params", transfer.get("prompt_token_ids"), vocabulary)


def _check_ids(param: str, ids: Any, vocabulary: int) -> None:
    """`ids` may be any JSON value: a list of ids, of lists of ids, of strings, or no list."""
    if not isinstance(ids, list) or not ids:
        return
    try:
        if min(ids) >= 0 and max(ids) < vocabulary:
            return
    except TypeError:  # not all of them are numbers
        pass
    for id in ids:
        if isinstance(id, list):
            _check_ids(param, id, vocabulary)
        elif isinstance(id, int) and not 0 <= id < vocabulary:
            raise InvalidRequest(
                f"`{param}` has the token id {str(id)[:24]}, which is outside the model's vocabulary: "
                f"0 to {vocabulary - 1}.",
                param=param,
                code="token_out_of_vocabulary",
            )


def _integers(keys: Iterable[str]) -> list[int]:
    """The keys of a JSON object that are integers. vLLM reports the others itself."""
    found = []
    for key in keys:
        with contextlib.suppress(ValueError):
            found.append(int(key))
    return found


def _check_characters(body: dict[str, Any]) -> None:
    """Raises InvalidRequest where a string has half of a surrogate pair.

    It is valid JSON, but cannot be encoded as UTF-8, and makes vLLM fail.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise InvalidRequest(
            f"A text in the body has {half}, which is half of a character: send both halves, or neither.",
            code="invalid_json",
        ) from None


def _check_model(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidRequest("Name a model: `model` is missing or not a string.", param="model")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise InvalidRequest(
            f"`model` names no model: names have at most {_LONGEST_NAME} printable characters.", param="model"
        )


def _is_deep(body: dict[str, Any]) -> bool:
    level: list[Any] = [body]
    for _ in range(_MOST_LEVELS):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"The body is nested too deeply: objects and lists may have up to {_MOST_LEVELS} levels.",
        code="invalid_json",
    )
