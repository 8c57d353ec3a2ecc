"""Converts vLLM's errors to those of the API: public names, parameters that the request has, no text of Python's."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from tunewright.api.gateway.routing import Target
from tunewright.engine.http import read_error
from tunewright.errors import EngineUnavailable, InvalidRequest, NotFound, TunewrightError, UnsupportedFeature

_LONGEST_READ = 20_000
"""Characters of a message that are read: it may quote the whole body, several times."""
_MOST_FAULTS = 50
_GRAMMAR_FAILED = "Internal server error"
"""vLLM's whole message where it ends a request with an internal error; the usual cause is a faulty grammar."""
_GRAMMARS = ("response_format", "structured_outputs", "tools", "text")
_NO_GRAMMAR = ("Invalid structural tag specification", "Invalid grammar specification: 'triggers'")
"""How vLLM's messages begin where it can make no grammar of the calls that a request forces."""

_INPUTS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/tokenize": "prompt",
    "/detokenize": "tokens",
}
"""The parameter that has a route's text. vLLM's own names for it (`input_text`, `input_tokens`) are in no request."""

_PARAMETER = re.compile(r" ?\(parameter=[\w.]++(, value=)?")
_TOO_LONG = re.compile(r"maximum context length|longer than the maximum model length")
_UNSUPPORTED = re.compile(
    r"\b(not|only) (yet |currently )?supported\b|\bunsupported\b|not support|is not a multimodal"
)
_ABOUT_INPUT = re.compile(r"conversation|multimodal|\brole\b|\bmessages?\b|chat template")
_PYTHON = re.compile(
    r"'\w+' object |argument of type '|unhashable type|unsupported operand|(indices|argument) must be|^'\w*'$"
)
"""What the messages of Python's own exceptions say."""


LOST = "The engine was lost while answering: try again."
_DEAD = b"See stack trace (above) for the root cause"


def is_dead(text: bytes) -> bool:
    """Whether it is vLLM's answer to a request that its engine did not survive."""
    return _DEAD in text


def engine_error(
    status: int, text: bytes, target: Target, path: str, asked: dict[str, Any]
) -> TunewrightError:
    """The error for vLLM's answer `text` to the body `asked`, sent to `path` of vLLM."""
    message, param = read_error(status, text)
    message = message[:_LONGEST_READ].replace(target.internal_name, target.public_name)
    message = _without_parameter(message)
    if message == _GRAMMAR_FAILED and not asked.keys().isdisjoint(_GRAMMARS):
        return InvalidRequest(
            f"The engine cannot make a grammar of what the request asks for: look at {', '.join(_GRAMMARS)}."
        )
    if status == 501:
        return UnsupportedFeature(f"The engine does not offer this: {message}")
    if status >= 500:
        return EngineUnavailable(LOST if is_dead(text) else f"The engine failed: {message}")
    if status == 404 and message == "Not Found":
        return UnsupportedFeature(
            f"The engine of {target.public_name} does not offer this route.", param="model"
        )
    if status == 404 and target.public_name in message:
        return NotFound(message, param="model", code="model_not_found")
    if status == 404:
        return NotFound(message)
    return _refusal(message, param, path, asked)


def _without_parameter(message: str) -> str:
    """The message without the `(parameter=input_text, value=15050)` at its end, which names what no request has."""
    text = message.rstrip()
    if text.endswith(")"):
        for found in _PARAMETER.finditer(text):
            if found[1] or found.end() == len(text) - 1:
                return text[: found.start()]
    return message


def _refusal(message: str, param: str | None, path: str, asked: dict[str, Any]) -> InvalidRequest:
    text = "messages" if "messages" in asked else _INPUTS.get(path, "input")
    if (fault := _to_tell(_faults(message))) is not None:
        return _invalid(fault, text)
    message = message.partition(": {'")[0]  # a dict of Python's
    if message.startswith(_NO_GRAMMAR) and asked.get("tools"):
        return InvalidRequest(
            "The engine cannot make a grammar of the `parameters` of a function in `tools`, which the arguments of a "
            "forced call must follow: look at types, references and limits that no value meets.",
            param="tools",
        )
    if "--tool-call-parser to be set" in message:
        return UnsupportedFeature(
            f"No parser is known for the tool calls of {asked['model']}: start the service with --tool-call-parser.",
            param="tools",
        )
    if _TOO_LONG.search(message):
        return InvalidRequest(message, param=text, code="context_length_exceeded")
    if _PYTHON.search(message):
        return InvalidRequest(
            "A value of the request has a type that the engine does not take.",
            param=text if asked.get(text) is None else None,
        )
    kind = UnsupportedFeature if _UNSUPPORTED.search(message) else InvalidRequest
    return kind(message, param=_param(param, message, text, asked))


def _param(param: str | None, message: str, text: str, asked: dict[str, Any]) -> str | None:
    """vLLM's `param` where the request has it or lacks it, else the one that the message begins with or quotes."""
    if param is not None:
        name = param.removeprefix("body.")
        if name.partition(".")[0] in asked or name == text:
            return name
    first = re.match(r"\w+", message)
    quoted = [first[0]] if first else []
    quoted += re.findall(r"`(\w+)`", message)
    named = next((name for name in quoted if name in asked and name != "model"), None)
    return named or (text if _ABOUT_INPUT.search(message) else None)


@dataclass(frozen=True)
class _Fault:
    """One of pydantic's faults. `parts` is its location without the names of pydantic's own."""

    type: str
    branch: str
    """The type that the value was compared with, of those that are allowed there; empty where there is only one."""
    parts: tuple[str, ...]
    message: str
    is_whole: bool
    """The location begins at the request; else it is within a part of it that vLLM checks later, content parts."""


_PYDANTIC = re.compile(r"^(?P<location>\S+)\n  (?P<message>.*) \[type=(?P<type>\w+),", re.MULTILINE)
_TYPE_NAME = re.compile(
    r"[A-Z]++[a-z][A-Za-z]*+$|.*[\[\](){}]|(str|int|float|bool|list|dict|tuple|nullable)$"
)


def _faults(message: str) -> list[_Fault]:
    """The faults in a message that lists them: each a line with a Python dict, or pydantic's own text."""
    if not re.match(r"\d+ validation errors?", message):
        return []
    found = []
    for line in message.splitlines()[1:_MOST_FAULTS]:
        try:
            fault = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # it was cut
            continue
        if isinstance(fault, dict) and {"type", "loc", "msg"} <= fault.keys():
            found.append(_fault(fault["type"], fault["loc"], fault["msg"], is_whole=True))
    return found or [
        _fault(match["type"], match["location"], match["message"], is_whole=False)
        for match in _PYDANTIC.finditer(message)
    ]


def _fault(type: str, location: str | tuple[str | int, ...], message: str, *, is_whole: bool) -> _Fault:
    """`location` is dotted, or as older versions of vLLM have it, pydantic's own."""
    named = location.split(".") if isinstance(location, str) else [str(part) for part in location]
    named = named[1:] if named[:1] == ["body"] else named
    branch = next((part for part in named if _TYPE_NAME.match(part)), "")
    parts = tuple(part for part in named if not _TYPE_NAME.match(part))
    return _Fault(type, branch, parts, message, is_whole)


def _to_tell(faults: list[_Fault]) -> _Fault | None:
    """The fault to tell, with the messages of all at its place. Where several types are allowed, those are left out
    that the value does not claim to be: its `role` or `type` is another one."""
    others = {
        fault.branch
        for fault in faults
        if fault.type == "literal_error" and fault.parts[-1:] in (("role",), ("type",))
    }
    found = [fault for fault in faults if not (fault.branch and fault.branch in others)] or faults
    if not found:
        return None
    first = found[0]
    messages = dict.fromkeys(_sentence(fault) for fault in found if fault.parts == first.parts)
    return _Fault(first.type, first.branch, first.parts, "; or ".join(messages), first.is_whole)


def _sentence(fault: _Fault) -> str:
    text = fault.message.removeprefix("Value error, ").replace("should be iterable", "should be a list")
    return text[:1].lower() + text[1:]


def _invalid(fault: _Fault, text: str) -> InvalidRequest:
    place = ".".join(fault.parts)
    if not fault.is_whole:
        return InvalidRequest(
            f"Invalid {text}: in the parts of a content, {place}: {fault.message}.", param=text
        )
    if fault.type == "missing":
        return InvalidRequest(f"Missing parameter: {place}.", param=place, code="missing_parameter")
    if fault.type == "extra_forbidden":
        return InvalidRequest(f"Unknown parameter: {place}.", param=place, code="unknown_parameter")
    return InvalidRequest(f"Invalid {place or text}: {fault.message}.", param=place or text)
